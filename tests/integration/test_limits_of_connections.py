"""The limits of connections, each seen at work on a real server: gRPC passes over names of options that it lacks."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from tests import toy
from tests.http2 import (
    GREETING,
    MAX_CONCURRENT_STREAMS,
    PING,
    RST_STREAM,
    SETTINGS,
    call_headers,
    connect,
    frame,
    frames,
    last_words,
)
from tests.server_process import serving, started

REQUEST = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1, 2]))
RANK_TIMELINE = "/timelines.ranking.v1.TimelineRankingService/RankTimeline"
SHORT_LIVES = ["--connection-age-ms", "1000", "--keepalive-ms", "400", "--grace-ms", "1000"]


def test_connections_are_renewed_and_no_call_notices(toy_bundle: Path) -> None:
    """One that stands idle is told that it has reached its age; all calls on another one succeed meanwhile."""
    stop = threading.Event()

    def call(channel: grpc.Channel) -> int:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        calls = 0
        while not stop.is_set():
            assert len(stub.RankTimeline(REQUEST, timeout=30).ranked.tweet_ids) == 2
            calls += 1
        return calls

    with (
        serving(toy_bundle, *SHORT_LIVES) as addresses,
        grpc.insecure_channel(addresses.grpc) as channel,
        ThreadPoolExecutor(4) as callers,
    ):
        calls = [callers.submit(call, channel) for _ in range(4)]
        try:
            for _ in range(2):  # the callers' connection has come of age at the end of the second one's life
                with connect(addresses.grpc) as connection:
                    connection.sendall(GREETING)
                    assert last_words(connection) == "max_age"
        finally:
            stop.set()
        assert min(call.result() for call in calls) > 2


def test_a_connection_that_says_nothing_is_closed(toy_bundle: Path) -> None:
    """Whoever vanished without a word does not answer the ping; who answers stays until its age."""
    with serving(toy_bundle, *SHORT_LIVES) as addresses, connect(addresses.grpc) as connection:
        connection.sendall(GREETING)
        assert last_words(connection, answers_pings=False) == "ping_timeout"


def test_a_connection_that_never_says_what_it_is_is_closed(toy_bundle: Path) -> None:
    """A port scanner, or worse; all of many are, and told why.

    gRPC closes one in thirty before its last words are out.
    """
    with ExitStack() as stack:
        addresses = stack.enter_context(serving(toy_bundle, *SHORT_LIVES))
        silent = [stack.enter_context(connect(addresses.grpc)) for _ in range(10)]
        reasons = {last_words(connection) for connection in silent} - {""}
    assert reasons == {"Did not receive HTTP/2 settings before handshake timeout"}


def test_a_client_that_pings_too_often_is_sent_away(toy_bundle: Path) -> None:
    """Too often is a setting."""
    for interval_ms, reason in (("60000", "too_many_pings"), ("1", "max_age")):
        flags = [*SHORT_LIVES, "--keepalive-ms", "100", "--ping-interval-min-ms", interval_ms]
        with serving(toy_bundle, *flags) as addresses, connect(addresses.grpc) as connection:
            connection.sendall(GREETING)
            # Each ping of the server's, a tenth of a second after the one before, gets one back.
            assert last_words(connection, with_its_answer=frame(PING, payload=bytes(8))) == reason


def test_too_long_headers_are_refused(toy_bundle: Path) -> None:
    """RESOURCE_EXHAUSTED for the one call; the next is answered."""
    flags = ["--header-bytes-max", "4000"]
    with serving(toy_bundle, *flags) as addresses, grpc.insecure_channel(addresses.grpc) as channel:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        for size, code in (
            (3_000, grpc.StatusCode.OK),
            (4_000, grpc.StatusCode.RESOURCE_EXHAUSTED),
            (3_000, grpc.StatusCode.OK),
        ):
            call = stub.RankTimeline.future(REQUEST, metadata=(("note", "x" * size),), timeout=30)
            assert call.code() is code


def test_headers_up_to_the_limit_are_taken(toy_bundle: Path) -> None:
    """All of them: gRPC has a second limit, 80 % of this one by default, above which it refuses some at random."""
    flags = ["--header-bytes-max", "40000"]
    with serving(toy_bundle, *flags) as addresses, grpc.insecure_channel(addresses.grpc) as channel:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        calls = [stub.RankTimeline.future(REQUEST, metadata=(("note", "x" * 36_000),), timeout=30) for _ in range(20)]
        assert {call.code() for call in calls} == {grpc.StatusCode.OK}


def test_connections_beyond_the_limit_are_closed(toy_bundle: Path) -> None:
    """Those that stand go on; when one of them goes there is room again."""
    with serving(toy_bundle, "--connections-max", "2") as addresses, ExitStack() as stack:
        first, second = (stack.enter_context(connect(addresses.grpc)) for _ in range(2))
        for connection in (first, second):
            connection.sendall(GREETING)
            assert next(frames(connection)).kind == SETTINGS
        with connect(addresses.grpc) as third:
            assert list(frames(third)) == []
        second.close()
        with grpc.insecure_channel(addresses.grpc) as channel:
            stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
            assert len(stub.RankTimeline(REQUEST, timeout=30, wait_for_ready=True).ranked.tweet_ids) == 2


def test_a_system_that_grants_too_few_descriptors(toy_bundle: Path) -> None:
    """The limit on connections is a promise: exit 1 and one line where it can not be kept."""
    grant_few = ["sh", "-c", 'ulimit -n 500 && exec "$@"', "sh"]
    command = [sys.executable, "-m", "service", "serve", "--bundle", str(toy_bundle), "--host", "127.0.0.1"]
    flags = ["--grpc-port", "0", "--metrics-port", "0", "--connections-max", "1000"]
    done = subprocess.run([*grant_few, *command, *flags], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        "timeline-ranker serve: connections_max 1000 takes 1096 descriptors, but ulimit -Hn is 500"
    )


def test_a_small_message_that_unpacks_to_a_large_one(toy_bundle: Path) -> None:
    """The limit is one on what comes out of it, and holds before it takes up memory."""
    flags = ["--message-bytes-max", "200000", "--rows-max", "5000"]
    with started(toy_bundle, *flags) as server, grpc.insecure_channel(server.addresses.grpc) as channel:
        send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(RANK_TIMELINE)
        before_mb = server.peak_memory_mb
        for size, code in (
            (1 << 17, grpc.StatusCode.INVALID_ARGUMENT),
            (200 << 20, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            assert send.future(bytes(size), compression=grpc.Compression.Gzip, timeout=60).code() is code
        assert server.peak_memory_mb < before_mb + 100


def test_calls_beyond_the_limit_of_a_connection(toy_bundle: Path) -> None:
    """The settings say how many at a time; the one too many is reset, while the others wait for their bodies."""
    with serving(toy_bundle, "--streams-max", "2") as addresses, connect(addresses.grpc) as connection:
        connection.sendall(GREETING)
        received = frames(connection)
        settings = next(each for each in received if each.kind == SETTINGS).payload
        values = {settings[i : i + 2]: settings[i + 2 : i + 6] for i in range(0, len(settings), 6)}
        assert values[MAX_CONCURRENT_STREAMS] == (2).to_bytes(4)
        for stream in (1, 3, 5):
            connection.sendall(call_headers(RANK_TIMELINE, stream))
        assert next(each for each in received if each.kind == RST_STREAM).stream == 5


def test_without_a_wish_the_system_decides(toy_bundle: Path) -> None:
    """Where a process may have few descriptors, as in some containers, it takes fewer connections and starts."""
    with started(toy_bundle, first="ulimit -n 500") as running:
        grant = Path(f"/proc/{running.process.pid}/limits").read_text()
        assert re.search(r"Max open files +500 +500", grant)
