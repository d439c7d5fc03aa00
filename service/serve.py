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
from service.model import Served, load_model
from service.policy import Policy, PolicyError, effective, read_policy
from service.server import Server

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
        policy = _read_policy(config)
    except (ConfigError, PolicyError) as error:
        print(f"timeline-ranker serve: {error}", file=sys.stderr)
        return USAGE
    logger.info("settings: %s", config)
    return _serve(config, policy, stop, hurry)


def _serve(config: Config, policy: Policy, stop: threading.Event, hurry: threading.Event) -> int:
    server = Server(config)
    try:
        server.start()
    except OSError as error:
        print(f"timeline-ranker serve: {error}", file=sys.stderr)
        return FAILED
    try:
        model = load_model(config.bundle, config.intra_op_threads)
        served = Served(model, effective(policy, model.schema, model.icymi_relevance_min))
    except (BundleError, PolicyError) as error:
        for line in error.faults if isinstance(error, BundleError) else [f"policy: {error}"]:
            print(f"timeline-ranker serve: {line}", file=sys.stderr)
        stop.set()
        server.drain(lambda _: None)
        return FAILED
    server.serve(served)
    print(f"ready grpc={server.grpc_address} metrics={server.metrics_address}", flush=True)
    stop.wait()
    server.drain(hurry.wait)
    return STOPPED


def _read_policy(config: Config) -> Policy:
    if config.policy is None:
        return Policy()
    try:
        return read_policy(config.policy.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--policy {config.policy}: {error}") from error
