"""The server with its scorer held: who waits, who does not, and what a failure tells. No sleeps: events only."""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import queue
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from service import config
from service.align import Tables
from service.errors import INTERNAL_TEXT
from service.experiments import Experiments
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from service.metrics import CALLS_TOGETHER
from service.model import LoadResult, Model, load_model
from service.policy import Policy
from service.scoring import Scorer, Scores
from service.server import LOADS_MAX, Server
from service.serving import Serving
from tests import toy

THREADS = 2
RANK_TIMELINE = "/timelines.ranking.v1.TimelineRankingService/RankTimeline"
STARTED = "grpc_server_started_total"
RANK = {"grpc_service": "timelines.ranking.v1.TimelineRankingService", "grpc_method": "RankTimeline"}
REQUEST = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1, 2]))


class HeldScorer(Scorer):
    """A scorer that waits to be released, or fails."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.cost_points = scorer.cost_points
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


def rank(
    channel: grpc.Channel, timeout: float | None = 60, request: pb.RankTimelineRequest = REQUEST
) -> grpc.Future[pb.RankTimelineResponse]:
    """A call under way."""
    future: grpc.Future[pb.RankTimelineResponse] = ranking_pb2_grpc.TimelineRankingServiceStub(
        channel
    ).RankTimeline.future(request, timeout=timeout)
    return future


def code_of(call: grpc.Future[Any]) -> grpc.StatusCode:
    error = call.exception(timeout=60)
    assert isinstance(error, grpc.Call)
    return error.code()


def count(server: Server, name: str, **labels: str) -> float | None:
    return server.metrics.registry.get_sample_value(name, labels)


def ask_until(channel: grpc.Channel, happened: Callable[[], bool]) -> None:
    """Asks for the server's health until something that the server does by itself has happened."""
    for _ in range(10_000):
        if happened():
            return
        check_health(channel)
    pytest.fail("it did not happen")


def test_not_ready_before_a_model_is_there(channel: grpc.Channel) -> None:
    """Health answers NOT_SERVING, everything else UNAVAILABLE."""
    assert check_health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert code_of(rank(channel)) is grpc.StatusCode.UNAVAILABLE


def test_calls_beyond_the_threads_are_refused_at_once(
    server: Server, channel: grpc.Channel, serving: HeldScorer
) -> None:
    """Of 40 calls every thread holds one; the others are told to come back, and probes and metrics are prompt."""
    calls = [rank(channel) for _ in range(40)]
    for _ in range(THREADS):
        assert serving.arrived.acquire(timeout=60)
    refused = list(itertools.islice(as_done(calls), 40 - THREADS))

    for call in refused:
        assert code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = call.exception(timeout=60)
        assert isinstance(error, grpc.Call)
        status = rpc_status.from_call(error)
        assert status is not None
        info = error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        assert info.retry_delay.ToMilliseconds() >= 1
    assert check_health(channel) == health_pb2.HealthCheckResponse.SERVING
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as page:
        assert b'timeline_refused_total{reason="calls"} 38.0' in page.read()
    assert count(server, STARTED, **RANK) == 40
    assert count(server, "grpc_server_handled_total", grpc_code="RESOURCE_EXHAUSTED", **RANK) == 38
    assert serving.runs == THREADS

    serving.release.set()
    answered = [call for call in calls if call not in refused]
    assert all(list(call.result(timeout=60).ranked.tweet_ids) == [2, 1] for call in answered)
    assert rank(channel).result(timeout=60)
    ask_until(channel, lambda: not server._ranking._running)  # no call is remembered when it has ended


def test_reflection_and_watches_do_not_wait_for_timelines(channel: grpc.Channel, serving: HeldScorer) -> None:
    """All threads for calls are held; who wants to know about the server has others."""
    calls = [rank(channel) for _ in range(THREADS)]
    for _ in calls:
        assert serving.arrived.acquire(timeout=60)

    watch: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/grpc.health.v1.Health/Watch")
    stream = watch(b"", timeout=10)
    assert health_pb2.HealthCheckResponse.FromString(next(stream)).status == health_pb2.HealthCheckResponse.SERVING
    stream.cancel()
    reflect: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
    asked = reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()
    (answer,) = reflect(iter([asked]), timeout=10)
    assert reflection_pb2.ServerReflectionResponse.FromString(answer).list_services_response.service

    serving.release.set()
    assert all(call.result(timeout=60) for call in calls)


def test_only_the_latest_loads_are_told_of(server: Server) -> None:
    """A repository that gets a version every minute does not make DescribeModel grow."""
    for version in range(LOADS_MAX + 1):
        server.report_load(str(version), LoadResult.now())

    assert list(server.loads) == [str(version) for version in range(1, LOADS_MAX + 1)]


def as_done(calls: list[grpc.Future[pb.RankTimelineResponse]]) -> Iterator[grpc.Future[pb.RankTimelineResponse]]:
    """The calls, as they end."""
    done: queue.SimpleQueue[grpc.Future[pb.RankTimelineResponse]] = queue.SimpleQueue()
    for call in calls:
        call.add_done_callback(done.put)
    for _ in calls:
        yield done.get(timeout=60)


def test_calls_without_a_body(server: Server, channel: grpc.Channel, serving: HeldScorer) -> None:
    """Those that come first hold a thread each until they give up, the next is refused unread; none holds a probe."""
    serving.release.set()
    bodies = threading.Event()
    send: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(RANK_TIMELINE)

    def no_body() -> Iterator[bytes]:
        bodies.wait()
        yield from ()

    streams = [send.future(no_body(), timeout=60) for _ in range(THREADS)]
    ask_until(channel, lambda: count(server, STARTED, **RANK) == THREADS)
    unread = send.future(no_body(), timeout=60)
    assert code_of(unread) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert check_health(channel) == health_pb2.HealthCheckResponse.SERVING

    streams[0].cancel()
    ask_until(channel, lambda: rank(channel).exception(timeout=60) is None)
    bodies.set()
    assert code_of(streams[1]) is grpc.StatusCode.INVALID_ARGUMENT
    assert rank(channel).result(timeout=60)


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
    # A body is waited for as long: much less, and a busy machine has not brought it by then.
    server = start("--default-deadline-ms", "1000", "--grace-ms", "1000")
    serve(server, replace(model, scorer=scorer))
    with grpc.insecure_channel(server.grpc_address) as channel:
        call = rank(channel)
        assert scorer.arrived.acquire(timeout=60)
        with caplog.at_level(logging.WARNING):
            server.drain()
        assert code_of(call) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    scorer.release.set()

    assert "1 calls were cut off after 1000 ms" in caplog.text


def test_calls_that_were_given_up_are_not_cut_off(
    model: Model, scorer: HeldScorer, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread may still be at work for a caller that has gone: the stop does not wait for it, and blames nobody."""
    server = start("--grace-ms", "60000")
    serve(server, replace(model, scorer=scorer))
    with grpc.insecure_channel(server.grpc_address) as channel:
        call = rank(channel)
        assert scorer.arrived.acquire(timeout=60)
        call.cancel()
        with caplog.at_level(logging.WARNING):
            server.drain()
    scorer.release.set()

    assert "cut off" not in caplog.text


def test_a_call_does_not_outlast_its_connection(model: Model, scorer: HeldScorer) -> None:
    """It has the grace period when its connection has come of age, whatever deadline it has."""
    server = start("--connection-age-ms", "1000", "--keepalive-ms", "400", "--grace-ms", "1000")
    serve(server, replace(model, scorer=scorer))
    with grpc.insecure_channel(server.grpc_address) as channel:
        assert code_of(rank(channel, 600)) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    scorer.release.set()
    server.drain()


# What a call takes on the slow server: 10 ms for each Tweet.
SLOW = [(0, 0.0), (1_000, 10e9)]
TWEETS = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1.0] * 500))
ALL_TWEETS = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1.0] * 500), require_full_ranking=True)


class FullGate(NamedTuple):
    server: Server
    channel: grpc.Channel
    held: grpc.Future[pb.RankTimelineResponse]


def test_calls_are_counted_on_another_thread(
    server: Server, channel: grpc.Channel, serving: HeldScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without anybody asking, once there are 32: the caller of the last one does not wait for it."""
    serving.release.set()
    counting: queue.SimpleQueue[str] = queue.SimpleQueue()
    monkeypatch.setattr(server.metrics, "count", lambda: counting.put(threading.current_thread().name))

    for _ in range(CALLS_TOGETHER):
        rank(channel, 60, pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1.0]))).result(timeout=60)

    assert counting.get(timeout=60).startswith("refuse")


@pytest.fixture
def full_gate(model: Model, scorer: HeldScorer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FullGate]:
    """A slow server of one processor, a channel to it, and a call of 5,000 Tweets in the scorer, for 50 s it seems."""
    monkeypatch.setattr("service.server.cpus", lambda: 1)
    scorer.cost_points = SLOW
    server = start("--threads", "8")
    serve(server, replace(model, scorer=scorer))
    with grpc.insecure_channel(server.grpc_address) as channel:
        held = rank(channel, 600, pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1.0] * 5_000)))
        assert scorer.arrived.acquire(timeout=60)
        yield FullGate(server, channel, held)
        scorer.release.set()
        server.drain()


def test_recovery_after_a_full_gate(full_gate: FullGate, scorer: HeldScorer) -> None:
    """A call that can wait gets all its Tweets scored when the gate is free, and so does the next one."""
    server, channel, held = full_gate
    waiting = rank(channel, 600, ALL_TWEETS)
    ask_until(channel, lambda: count(server, "timeline_queue_rows") == 5_500)
    assert not waiting.done()

    scorer.release.set()
    for call, rows in ((held, 5_000), (waiting, 500), (rank(channel, 600, ALL_TWEETS), 500)):
        response = call.result(timeout=60)
        assert response.degradation == pb.DEGRADATION_NONE
        assert len(response.ranked.tweet_ids) + len(response.remainder.tweet_ids) == rows
    ask_until(channel, lambda: count(server, "timeline_queue_rows") == 0)


def test_newest_first_when_the_queue_is_too_long(full_gate: FullGate, scorer: HeldScorer) -> None:
    """The answer comes at once, while the scorer is held, and says what it is; it is counted."""
    server, channel, _ = full_gate

    response = rank(channel, 40, TWEETS).result(timeout=30)

    assert response.degradation == pb.DEGRADATION_REVERSE_CHRONOLOGICAL
    assert list(response.remainder.tweet_ids) == list(range(500, 0, -1))
    assert all(math.isnan(score) for score in response.remainder.scores)
    assert scorer.runs == 1
    assert count(server, "timeline_degraded_total", degradation="reverse_chronological") == 1


def test_the_newest_scored_when_the_queue_takes_most_of_the_time(full_gate: FullGate, scorer: HeldScorer) -> None:
    """Of 127 s the queue takes 50, which count 2.5 times; in two 200 Tweets can be scored, more for each second since.

    Ten seconds would have to pass before there is time for all.
    """
    server, channel, _ = full_gate
    tweets = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1.0] * 2_000))
    call = rank(channel, 127, tweets)
    ask_until(channel, lambda: (count(server, "timeline_queue_rows") or 0) > 5_000)
    assert not call.done()

    scorer.release.set()
    response = call.result(timeout=60)

    assert response.degradation == pb.DEGRADATION_PARTIAL
    assert max(response.ranked.tweet_ids) == 2_000
    rows = len(response.ranked.tweet_ids) + sum(not math.isnan(score) for score in response.remainder.scores)
    assert 200 <= rows < 2_000
    assert count(server, "timeline_degraded_total", degradation="partial") == 1


def test_a_lasting_overload_is_refused_before_bodies_are_read(full_gate: FullGate) -> None:
    """Places are free, but the budget for answers with less went to a call that waits for 2 s worth of scores."""
    server, channel, _ = full_gate
    waiting = rank(channel, 127, TWEETS)
    ask_until(channel, lambda: (count(server, "timeline_queue_rows") or 0) > 5_000)
    never = threading.Event()
    send: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(RANK_TIMELINE)

    unread = send.future(iter(never.wait, None), timeout=40)  # type: ignore[arg-type]  # it never gives a body

    assert code_of(unread) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert count(server, "timeline_refused_total", reason="calls") == 1
    assert not waiting.done()
    description = ranking_pb2_grpc.TimelineRankingServiceStub(channel).DescribeModel(pb.DescribeModelRequest())
    assert description.model_version
    never.set()


def test_an_unknown_model_is_refused_without_waiting(full_gate: FullGate) -> None:
    """By both methods, while the gate is full."""
    _, channel, _ = full_gate
    stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
    scores = pb.ScoreTweetsRequest(viewer_id=1, model="9", candidates=TWEETS.candidates)
    timeline = pb.RankTimelineRequest(viewer_id=1, model="9", candidates=TWEETS.candidates)
    for call in (rank(channel, 600, timeline), stub.ScoreTweets.future(scores, timeout=600)):
        assert code_of(call) is grpc.StatusCode.NOT_FOUND


def score_tweets(channel: grpc.Channel, timeout: float) -> grpc.Future[pb.ScoreTweetsResponse]:
    future: grpc.Future[pb.ScoreTweetsResponse] = ranking_pb2_grpc.TimelineRankingServiceStub(
        channel
    ).ScoreTweets.future(pb.ScoreTweetsRequest(viewer_id=1, candidates=TWEETS.candidates), timeout=timeout)
    return future


def test_all_or_nothing_is_refused_when_the_queue_is_too_long(full_gate: FullGate, scorer: HeldScorer) -> None:
    """At once, with the time to come back after: when the 5,000 Tweets are through."""
    server, channel, _ = full_gate
    for call in (rank(channel, 52, ALL_TWEETS), score_tweets(channel, 52)):
        assert code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = call.exception(timeout=60)
        assert isinstance(error, grpc.Call)
        status = rpc_status.from_call(error)
        assert status is not None
        info = error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        assert 40_000 < info.retry_delay.ToMilliseconds() <= 50_000  # less what they have run for
    assert count(server, "timeline_refused_total", reason="queue") == 2
    assert scorer.runs == 1


def test_all_or_nothing_is_refused_when_even_an_idle_server_could_not(full_gate: FullGate) -> None:
    """By the server, long before the deadline: 500 Tweets take 5 s."""
    server, channel, _ = full_gate
    error = rank(channel, 4, ALL_TWEETS).exception(timeout=60)

    assert isinstance(error, grpc.Call)
    assert (error.code(), error.details()) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "the time left is too short to score 500 Tweets",
    )
    assert count(server, "timeline_refused_total", reason="deadline") == 1


def test_a_caller_that_gives_up_leaves_the_queue(full_gate: FullGate, scorer: HeldScorer) -> None:
    """Its Tweets are never scored, and it is counted."""
    server, channel, _ = full_gate
    call = rank(channel, 600, TWEETS)
    ask_until(channel, lambda: count(server, "timeline_queue_rows") == 5_500)

    call.cancel()

    ask_until(channel, lambda: count(server, "timeline_queue_rows") == 5_000)
    ask_until(channel, lambda: count(server, "timeline_refused_total", reason="cancelled") == 1)
    scorer.release.set()
    assert rank(channel, 600, TWEETS).result(timeout=60).degradation == pb.DEGRADATION_NONE
    assert scorer.runs == 2  # the 5,000 Tweets, in one part as nobody else had called, and the 500 of the last call
