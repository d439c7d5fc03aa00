"""The server with its scorer held: who waits, who does not, and what a failure tells. No sleeps: events only."""

from __future__ import annotations

import argparse
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from service import config
from service.align import Tables
from service.errors import INTERNAL_TEXT
from service.experiments import Experiments
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from service.model import Model, load_model
from service.policy import Policy
from service.scoring import Scorer, Scores
from service.server import Server
from service.serving import Serving
from tests import toy

THREADS = 2
REQUEST = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1, 2]))


class HeldScorer(Scorer):
    """A scorer that waits to be released, or fails."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.arrived = threading.Semaphore(0)
        self.release = threading.Event()
        self.runs = 0
        self.error: Exception | None = None

    def score(self, tables: Tables) -> Scores:
        self.runs += 1
        self.arrived.release()
        self.release.wait()
        if self.error is not None:
            raise self.error
        return self._scorer.score(tables)


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Model:
    return load_model(toy_bundle, threads=1)


@pytest.fixture
def scorer(model: Model) -> HeldScorer:
    return HeldScorer(model.scorer)


def start(*flags: str) -> Server:
    """A started server of two threads, without a model yet."""
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    ports = ["--host", "127.0.0.1", "--grpc-port", "0", "--metrics-port", "0", "--drain-ms", "0"]
    server = Server(config.from_arguments(parser.parse_args([*ports, "--threads", str(THREADS), *flags]), {}))
    server.start()
    return server


@pytest.fixture
def server(scorer: HeldScorer) -> Iterator[Server]:
    """A server that is drained, its scorer released, when the test is over."""
    server = start()
    yield server
    scorer.release.set()
    server.drain()


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield channel


@pytest.fixture
def serving(server: Server, model: Model, scorer: HeldScorer) -> HeldScorer:
    """The server's scorer, once the server serves."""
    serve(server, replace(model, scorer=scorer))
    return scorer


def serve(server: Server, model: Model) -> None:
    server.serve(Serving({"stable": model}, Experiments((), Policy())))


def check_health(channel: grpc.Channel) -> int:
    check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
    return health_pb2.HealthCheckResponse.FromString(check(b"", timeout=10)).status


def rank(channel: grpc.Channel, timeout: float | None = 60) -> grpc.Future[pb.RankTimelineResponse]:
    """A call under way."""
    future: grpc.Future[pb.RankTimelineResponse] = ranking_pb2_grpc.TimelineRankingServiceStub(
        channel
    ).RankTimeline.future(REQUEST, timeout=timeout)
    return future


def code_of(call: grpc.Future[pb.RankTimelineResponse]) -> grpc.StatusCode:
    error = call.exception(timeout=60)
    assert isinstance(error, grpc.Call)
    return error.code()


def test_not_ready_before_a_model_is_there(channel: grpc.Channel) -> None:
    """Health answers NOT_SERVING, everything else UNAVAILABLE."""
    assert check_health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert code_of(rank(channel)) is grpc.StatusCode.UNAVAILABLE


def test_probes_do_not_wait_for_timelines(channel: grpc.Channel, serving: HeldScorer) -> None:
    """Every thread is held and calls queue up: health answers; released, all are answered, and the next one too."""
    calls = [rank(channel) for _ in range(5 * THREADS)]
    for _ in range(THREADS):
        assert serving.arrived.acquire(timeout=60)

    assert check_health(channel) == health_pb2.HealthCheckResponse.SERVING
    assert serving.runs == THREADS

    serving.release.set()
    assert all(list(call.result(timeout=60).ranked.tweet_ids) == [2, 1] for call in calls)
    assert rank(channel).result(timeout=60)


def test_a_call_that_ran_out_of_time_in_the_queue_is_not_scored(channel: grpc.Channel, serving: HeldScorer) -> None:
    """Its caller is told at its deadline; later its turn passes without work."""
    held = [rank(channel) for _ in range(THREADS)]
    for _ in range(THREADS):
        assert serving.arrived.acquire(timeout=60)

    assert code_of(rank(channel, timeout=0.05)) is grpc.StatusCode.DEADLINE_EXCEEDED

    serving.release.set()
    assert all(call.result(timeout=60) for call in held)
    assert rank(channel).result(timeout=60)
    assert serving.runs == THREADS + 1


def test_our_own_failure_tells_nothing(
    channel: grpc.Channel, serving: HeldScorer, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets a fixed text, the log the rest; the server goes on."""
    serving.release.set()
    serving.error = RuntimeError("tensor of /secret/path has no shape")
    with caplog.at_level(logging.ERROR):
        error = rank(channel).exception(timeout=60)

    assert isinstance(error, grpc.Call)
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, INTERNAL_TEXT)
    assert "/secret/path" in caplog.text
    serving.error = None
    assert rank(channel).result(timeout=60)


def test_calls_that_outlast_the_grace_period_are_counted(
    model: Model, scorer: HeldScorer, caplog: pytest.LogCaptureFixture
) -> None:
    """They are cut off, and the log says how many."""
    server = start("--default-deadline-ms", "1", "--grace-ms", "1")
    serve(server, replace(model, scorer=scorer))
    with grpc.insecure_channel(server.grpc_address) as channel:
        call = rank(channel)
        assert scorer.arrived.acquire(timeout=60)
        with caplog.at_level(logging.WARNING):
            server.drain()
        assert code_of(call) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    scorer.release.set()

    assert "1 calls were cut off after 1 ms" in caplog.text
