"""`timeline-ranker serve`: runs the server until it is told to stop."""

from __future__ import annotations

import argparse
import ctypes
import functools
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from google.protobuf.internal import api_implementation

from service.bundle import BundleError
from service.config import Config, ConfigError, add_arguments, from_arguments
from service.experiments import Experiments, ExperimentsError, read_experiments
from service.live_models import LiveModels
from service.model import LoadResult, load_model
from service.model_loader import ModelLoader
from service.policy import Policy, PolicyError, read_policy
from service.repository import STABLE, Repository
from service.server import Server
from service.serving import Serving, ServingError
from service.tls import TlsError

__all__ = ["add_arguments", "run"]

STOPPED, FAILED, USAGE = 0, 1, 2
LOOK_S = 0.5  # how long a signal may go unnoticed
# Of glibc's malloc (docs/decisions/0077). By default each thread has a heap of its own, up to eight a core, and each of
# these grows to the most that it ever needed; and memory goes to the system and back, some MiB at a time.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # as in malloc.h
MALLOC = {M_ARENA_MAX: 2, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20}
logger = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT, then drains; returns the exit status."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    # Python's own implementation would take milliseconds for what upb does in microseconds.
    if api_implementation.Type() != "upb":
        logger.error("protobuf runs on %r, not on upb", api_implementation.Type())
        return FAILED
    _keep_memory_steady()
    stop, hurry = threading.Event(), threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            hurry.set()  # the second signal: somebody does not want to wait for the drain
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        config = from_arguments(arguments, os.environ)
        experiments = _read_experiments(config, _read_policy(config))
    except ConfigError as error:
        print(f"timeline-ranker serve: {error}", file=sys.stderr)
        return USAGE
    logger.info("settings: %s", config)
    return _serve(config, experiments, stop, hurry)


def _keep_memory_steady() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries than glibc have neither
        for setting, value in MALLOC.items():
            mallopt(setting, value)


def _serve(config: Config, experiments: Experiments, stop: threading.Event, hurry: threading.Event) -> int:
    try:
        config.connections.reserve_descriptors()
        server = Server(config, experiments.arms)
        server.start()
    except (OSError, TlsError) as error:
        print(f"timeline-ranker serve: {error}", file=sys.stderr)
        return FAILED
    faults = _load(config, experiments, server, stop)
    if faults:
        for fault in faults:
            print(f"timeline-ranker serve: {fault}", file=sys.stderr)
        stop.set()
        server.drain(lambda _: None)
        return FAILED
    print(f"ready grpc={server.grpc_address} metrics={server.metrics_address}", flush=True)
    _wait(stop, math.inf)
    server.drain(functools.partial(_wait, hurry))
    return STOPPED


def _wait(event: threading.Event, timeout_s: float) -> None:
    """Waits for a signal, a little at a time: one that comes just before a wait begins does not end it by itself."""
    give_up_s = time.monotonic() + timeout_s
    while (left_s := give_up_s - time.monotonic()) > 0 and not event.wait(min(left_s, LOOK_S)):
        pass


def _load(config: Config, experiments: Experiments, server: Server, stop: threading.Event) -> Sequence[str]:
    """Has the server serve the settings' models, and new ones until `stop`; returns why not, a line each, if not."""
    if config.bundle is not None:
        try:
            model = load_model(config.bundle, config.intra_op_threads)
            server.serve(Serving({STABLE: model}, experiments))
        except BundleError as error:
            return error.faults
        except ServingError as error:
            return [str(error)]
        server.report_load(model.version, LoadResult.now())
        return []
    assert config.model_repository is not None  # noqa: S101 - one of the two is there
    live = LiveModels(
        Repository(config.model_repository),
        ModelLoader(config.intra_op_threads, config.slowdown_max).load,
        lambda models: server.serve(Serving(models, experiments)),
        server.report_load,
        {STABLE, *(treatment.model for treatment in experiments.treatments)},
    )
    live.update()
    if not live.serving:
        faults = [f"version {version}: {line}" for version, load in server.loads.items() for line in load.faults]
        return [*faults, *filter(None, [live.complaint])]
    threading.Thread(target=live.watch, args=(stop, config.model_check_ms / 1e3), name="models", daemon=True).start()
    return []


def _read_policy(config: Config) -> Policy:
    if config.policy is None:
        return Policy()
    try:
        return read_policy(config.policy.read_text())
    except (OSError, UnicodeDecodeError, PolicyError) as error:
        raise ConfigError(f"--policy {config.policy}: {error}") from error


def _read_experiments(config: Config, policy: Policy) -> Experiments:
    if config.experiments is None:
        return Experiments((), policy)
    try:
        return Experiments(read_experiments(config.experiments.read_text()), policy)
    except (OSError, UnicodeDecodeError, ExperimentsError) as error:
        raise ConfigError(f"--experiments {config.experiments}: {error}") from error
