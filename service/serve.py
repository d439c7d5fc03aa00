"""`timeline-ranker serve`: runs the server until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from types import FrameType

from google.protobuf.internal import api_implementation

from service.bundle import BundleError
from service.config import Config, ConfigError, add_arguments, from_arguments
from service.experiments import Experiments, ExperimentsError, read_experiments
from service.model import load_model
from service.policy import Policy, PolicyError, read_policy
from service.repository import STABLE
from service.server import Server
from service.serving import Serving, ServingError

__all__ = ["add_arguments", "run"]

STOPPED, FAILED, USAGE = 0, 1, 2
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


def _serve(config: Config, experiments: Experiments, stop: threading.Event, hurry: threading.Event) -> int:
    try:
        server = Server(config, experiments.arms)
        server.start()
    except OSError as error:
        print(f"timeline-ranker serve: {error}", file=sys.stderr)
        return FAILED
    try:
        server.serve(Serving({STABLE: load_model(config.bundle, config.intra_op_threads)}, experiments))
    except (BundleError, ServingError) as error:
        for line in error.faults if isinstance(error, BundleError) else [str(error)]:
            print(f"timeline-ranker serve: {line}", file=sys.stderr)
        stop.set()
        server.drain(lambda _: None)
        return FAILED
    server.metrics.loads["loaded"].inc()
    print(f"ready grpc={server.grpc_address} metrics={server.metrics_address}", flush=True)
    stop.wait()
    server.drain(hurry.wait)
    return STOPPED


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
