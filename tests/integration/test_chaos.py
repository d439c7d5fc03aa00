"""A real server through bad days: killed, stopped, its disk full, its callers slow, gone or too many. No sleeps."""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from service import config
from service.experiments import Experiments
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from service.model import load_model
from service.policy import Policy
from service.served_log import read_log
from service.server import Server
from service.serving import Serving
from tests import toy
from tests.http2 import GREETING, SETTINGS, call_body, call_headers, connect, frames
from tests.server_process import Running, sample, started

RANK_TIMELINE = "/timelines.ranking.v1.TimelineRankingService/RankTimeline"
REQUEST = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1, 2]))
LARGE = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1.0] * 5_000))
LABELS = '{grpc_method="RankTimeline",grpc_service="timelines.ranking.v1.TimelineRankingService"}'
SECONDS_COUNT = f"grpc_server_handling_seconds_count{LABELS}"
PROMPT_S = 5.0  # Far more than it takes, far less than it would if it waited for any of what goes wrong here.
PATIENCE_S = 60
NOON_MS, HOUR_MS = 1_700_000_000_000, 3_600_000


def drain(server: Running) -> None:
    server.process.terminate()
    assert server.process.wait(PATIENCE_S) == 0


@contextmanager
def connected(server: Running) -> Iterator[grpc.Channel]:
    """A connection of its own, seen to be healthy at once."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.addresses.grpc, options) as channel:
        health: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        answer = health_pb2.HealthCheckResponse.FromString(health(b"", timeout=PROMPT_S))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        yield channel


def check_prompt(server: Running) -> None:
    """On a connection of its own, health and a timeline are there at once."""
    with connected(server) as channel:
        response = ranking_pb2_grpc.TimelineRankingServiceStub(channel).RankTimeline(REQUEST, timeout=PROMPT_S)
        assert response.degradation == pb.DEGRADATION_NONE


def ask_until(server: Running, happened: Callable[[], bool]) -> None:
    """Asks for health, on a new connection each time, until what the server does by itself has happened."""
    give_up_s = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < give_up_s
        with connected(server):
            pass


@pytest.fixture
def server(toy_bundle: Path) -> Iterator[Running]:
    """A server of four threads that still drains when the test is over."""
    with started(toy_bundle, "--threads", "4", "--grace-ms", "2000") as server:
        check_prompt(server)
        yield server
        drain(server)


def test_killed_under_load(toy_bundle: Path, tmp_path: Path) -> None:
    """Callers that try again are answered by the next server; all that it answered and nothing torn is in the log."""
    stop = threading.Event()
    answered = [threading.Event() for _ in range(3)]

    def call(number: int, address: str) -> list[str]:
        """Request ids in the order of their answers."""
        ids: list[str] = []
        with grpc.insecure_channel(address) as channel:
            stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
            while not stop.is_set():
                request = pb.RankTimelineRequest(request_id=f"{number}-{len(ids)}", viewer_id=1)
                request.candidates.CopyFrom(REQUEST.candidates)
                code = stub.RankTimeline.future(request, timeout=PATIENCE_S, wait_for_ready=True).code()
                assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
                if code is grpc.StatusCode.UNAVAILABLE:
                    continue
                ids.append(request.request_id)
                answered[number].set()
        return ids

    def until_all_are_answered() -> None:
        for event in answered:
            event.clear()
        for event in answered:
            assert event.wait(PATIENCE_S)

    with ThreadPoolExecutor(3) as callers, ExitStack() as stack:
        stack.callback(stop.set)
        first = stack.enter_context(started(toy_bundle, "--served-log", str(tmp_path)))
        calls = [callers.submit(call, number, first.addresses.grpc) for number in range(3)]
        begun_s = time.monotonic()
        while not list(read_log(tmp_path)):  # the log is written behind the answers
            assert time.monotonic() - begun_s < PATIENCE_S
            until_all_are_answered()
        first.process.kill()
        assert first.process.wait(PATIENCE_S) == -signal.SIGKILL
        before = len(list(read_log(tmp_path)))
        port = first.addresses.grpc.rpartition(":")[2]
        second = stack.enter_context(started(toy_bundle, "--served-log", str(tmp_path), grpc_port=port))
        until_all_are_answered()
        stop.set()
        last = [call.result(PATIENCE_S)[-1] for call in calls]
        drain(second)

    logged = [pb.RankTimelineResponse.FromString(record.response).request_id for record in read_log(tmp_path)]
    assert len(logged) > before > 0
    assert set(last) <= set(logged[before:])


def test_stopped_and_continued(server: Running) -> None:
    """Callers get their deadline while the process stands still, and answers as soon as it goes on."""
    with grpc.insecure_channel(server.addresses.grpc) as channel:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        stub.RankTimeline(REQUEST, timeout=PATIENCE_S)
        server.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED | os.WNOWAIT)  # until each of its threads stands still
        try:
            impatient = [stub.RankTimeline.future(REQUEST, timeout=0.2) for _ in range(20)]
            patient = [stub.RankTimeline.future(REQUEST, timeout=PATIENCE_S) for _ in range(4)]
            assert {call.code() for call in impatient} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        finally:
            server.process.send_signal(signal.SIGCONT)
        # Those that nobody waits for any more may still have taken all places.
        assert {call.code() for call in patient} <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    ask_until(server, lambda: sample(server.addresses, "timeline_queue_rows") == 0)
    check_prompt(server)


def test_told_to_stop_under_load(toy_bundle: Path) -> None:
    """Callers that go elsewhere once they are told to are told so, each of them: no call ends in any other way."""
    answered = threading.Semaphore(0)

    def call(address: str) -> grpc.StatusCode:
        """How the first call ended that was not answered."""
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(RANK_TIMELINE)
            body = REQUEST.SerializeToString()
            while (code := send.future(body, timeout=PATIENCE_S).code()) is grpc.StatusCode.OK:
                answered.release()
            return code

    with ThreadPoolExecutor(32) as callers, started(toy_bundle, "--threads", "64") as server:
        calls = [callers.submit(call, server.addresses.grpc) for _ in range(32)]
        for _ in range(100):
            assert answered.acquire(timeout=PATIENCE_S)
        drain(server)

    assert {call.result(PATIENCE_S) for call in calls} == {grpc.StatusCode.UNAVAILABLE}


def test_a_full_disk(toy_bundle: Path, tmp_path: Path) -> None:
    """All timelines are answered; those that the log has no room for are counted, those before can be read."""
    # A file may have so many blocks of 512 bytes; writing more is an error, as it is on a full disk.
    with started(toy_bundle, "--served-log", str(tmp_path), first="ulimit -f 8") as server:
        with grpc.insecure_channel(server.addresses.grpc) as channel:
            stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
            for _ in range(100):
                assert len(stub.RankTimeline(REQUEST, timeout=PROMPT_S).ranked.tweet_ids) == 2
        drops = "timeline_served_log_dropped_total"
        ask_until(server, lambda: sample(server.addresses, drops) > 10)
        drain(server)

    records = list(read_log(tmp_path))
    assert 10 < len(records) < 100
    assert all(len(pb.RankTimelineResponse.FromString(r.response).ranked.tweet_ids) == 2 for r in records)


def test_bodies_that_do_not_come(server: Running) -> None:
    """Each holds a thread, and no deadline ends it; the server does, in its grace period, and all threads are free."""
    go_on = threading.Event()

    def no_body() -> Iterator[bytes]:
        go_on.wait()
        yield from ()

    with grpc.insecure_channel(server.addresses.grpc) as channel:
        send: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(RANK_TIMELINE)
        calls = [send.future(no_body()) for _ in range(4)]
        try:
            assert {call.code() for call in calls} == {grpc.StatusCode.CANCELLED}
        finally:
            go_on.set()
    check_prompt(server)


def test_a_watch_of_a_name_that_nobody_has(server: Running) -> None:
    """Is told so and goes on, and no such name is remembered: here they would take 200 MB."""

    def memory_mb() -> float:
        return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

    before_mb = memory_mb()
    with grpc.insecure_channel(server.addresses.grpc) as channel:
        watch: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/grpc.health.v1.Health/Watch")
        for number in range(200):
            name = f"{number:03}" + "x" * 1_000_000
            stream = watch(health_pb2.HealthCheckRequest(service=name).SerializeToString(), timeout=PROMPT_S)
            answer = health_pb2.HealthCheckResponse.FromString(next(stream))
            assert answer.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            assert stream.is_active()
            stream.cancel()

    assert memory_mb() < before_mb + 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have one heap")
def test_threads_share_two_heaps(toy_bundle: Path) -> None:
    """However many call at a time: of glibc's heaps but the first each begins at a multiple of 64 MiB."""
    with (
        ThreadPoolExecutor(32) as callers,
        started(toy_bundle, "--threads", "64") as server,
        connected(server) as channel,
    ):
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        calls = [callers.submit(stub.RankTimeline, LARGE, timeout=PATIENCE_S) for _ in range(64)]
        assert all(call.result(PATIENCE_S).degradation == pb.DEGRADATION_NONE for call in calls)
        maps = [line.split() for line in Path(f"/proc/{server.process.pid}/maps").read_text().splitlines()]

    heaps = [area for area, rights, *_, inode in (m for m in maps if len(m) == 5) if (rights, inode) == ("rw-p", "0")]
    assert sum(int(area.partition("-")[0], 16) % (64 << 20) == 0 for area in heaps) <= 1


def test_answers_that_nobody_reads(server: Running) -> None:
    """Callers that take nothing in after they sent their request hold no thread."""
    with ExitStack() as stack:
        for _ in range(20):  # three calls each
            connection = stack.enter_context(connect(server.addresses.grpc))
            connection.sendall(GREETING)
            for stream in (1, 3, 5):
                connection.sendall(call_headers(RANK_TIMELINE, stream))
                connection.sendall(call_body(LARGE.SerializeToString(), stream))
        ask_until(server, lambda: sample(server.addresses, SECONDS_COUNT) > 60)  # answered or refused
        check_prompt(server)


def test_callers_that_vanish_in_the_middle(server: Running) -> None:
    """Half a body, then a reset: a hundred of them leave no descriptor behind, and the four threads free."""
    body = call_body(LARGE.SerializeToString())
    before = server.descriptors
    for _ in range(100):
        with connect(server.addresses.grpc) as connection:
            connection.sendall(GREETING + call_headers(RANK_TIMELINE) + body[: len(body) // 2])
            assert next(frames(connection)).kind == SETTINGS
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ask_until(server, lambda: server.descriptors <= before + 2)
    for _ in range(4):
        check_prompt(server)


def test_a_thousand_idle_connections(toy_bundle: Path) -> None:
    """They cost others nothing, though the process began with leave for 200 descriptors; they go without a trace."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2_000), hard))
    with started(toy_bundle, first="ulimit -Sn 200") as server:
        check_prompt(server)
        before = server.descriptors
        with ExitStack() as stack:
            for _ in range(1_000):
                connection = stack.enter_context(connect(server.addresses.grpc))
                connection.sendall(GREETING)
                assert next(frames(connection)).kind == SETTINGS
            assert server.descriptors > 1_000
            check_prompt(server)
        ask_until(server, lambda: server.descriptors <= before + 2)
        check_prompt(server)
        drain(server)


def test_a_clock_that_jumps(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day says how old Tweets are and when something was served; what is waited for, no clock moves."""
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    ports = ["--host", "127.0.0.1", "--grpc-port", "0", "--metrics-port", "0", "--drain-ms", "0"]
    server = Server(config.from_arguments(parser.parse_args(ports), {}))
    hours = itertools.cycle([0, 20, -20])
    monkeypatch.setattr("service.server.time.time_ns", lambda: NOON_MS * 1_000_000 + next(hours) * HOUR_MS * 1_000_000)
    server.start()
    server.serve(Serving({"stable": load_model(toy_bundle, threads=1)}, Experiments((), Policy())))
    away = pb.RankTimelineRequest(
        viewer_id=1, last_visit_ms=NOON_MS - 30 * HOUR_MS, candidates=toy.candidates([900.0] * 200)
    )
    try:
        with grpc.insecure_channel(server.grpc_address) as channel:
            stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
            responses = [stub.RankTimeline(away, timeout=PROMPT_S) for _ in range(30)]
    finally:
        server.drain()

    # Away for 30 hours, for 50, for 10: the last is too short for ICYMI, whose default is 12.
    shown, too_recent = pb.ICYMI_DECISION_SHOWN, pb.ICYMI_DECISION_TOO_RECENT
    assert [response.icymi_decision for response in responses] == [shown, shown, too_recent] * 10
    assert {response.degradation for response in responses} == {pb.DEGRADATION_NONE}
    assert all(0 < response.timings.score_us < PROMPT_S * 1e6 for response in responses)
