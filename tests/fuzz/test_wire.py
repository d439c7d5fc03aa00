"""Whatever bytes come in, a real server answers each call, says whose fault it is, and is none the worse for it.

TIMELINE_RANKER_FUZZ_CALLS    how many calls: make fuzz takes many more
TIMELINE_RANKER_FUZZ_SEED     where to begin; a failure tells its own
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from tests import toy
from tests.fuzz.mutations import mutant
from tests.http2 import DATA, GREETING, HEADERS, SETTINGS, call_body, call_headers, connect, frame, frames
from tests.property.requests import SPOILERS, Drawn, Spoiler, drawn_requests
from tests.server_process import Running, sample, started

CALLS = int(os.environ.get("TIMELINE_RANKER_FUZZ_CALLS", "2000"))
SEED = int(os.environ.get("TIMELINE_RANKER_FUZZ_SEED", "1"))
CALLS_A_REQUEST = 40
THREADS = 64  # more than calls at a time: none is refused for want of a place
MEMORY_GROWTH_MB_MAX = 200
REQUEST = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1, 2]))
RANKING = "/timelines.ranking.v1.TimelineRankingService/"
RANK_TIMELINE = f"{RANKING}RankTimeline"
HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
CALLERS_FAULT = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}


@pytest.fixture(scope="module")
def server(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("served")
    with started(toy_bundle, "--threads", str(THREADS), "--served-log", str(log)) as server:
        yield server
        server.process.terminate()
        assert server.process.wait(60) == 0


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.addresses.grpc) as channel:
        yield channel


@pytest.fixture(autouse=True)
def unharmed(server: Running) -> Iterator[None]:
    """After each test it answers as ever, its memory has not grown by much, and no failure was its own."""
    before_mb = server.peak_memory_mb
    yield
    with grpc.insecure_channel(server.addresses.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        response = ranking_pb2_grpc.TimelineRankingServiceStub(channel).RankTimeline(REQUEST, timeout=10)
    assert list(response.ranked.tweet_ids) == [2, 1]
    assert server.peak_memory_mb < before_mb + MEMORY_GROWTH_MB_MAX
    for method in ("RankTimeline", "ScoreTweets", "DescribeModel"):
        labels = f'grpc_code="INTERNAL",grpc_method="{method}",grpc_service="{RANKING.strip("/")}"'
        assert sample(server.addresses, f"grpc_server_handled_total{{{labels}}}") == 0


def unary(channel: grpc.Channel, method: str) -> Callable[[bytes], Any]:
    """Begins calls from bytes to bytes; gives the call, whose class the stubs do not name."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    return lambda body: call.future(body, timeout=30)


def wire_form(request: pb.RankTimelineRequest, method: str) -> bytes:
    """The request as the method takes it."""
    if method == "RankTimeline":
        return request.SerializeToString()
    asked = pb.ScoreTweetsRequest(viewer_id=request.viewer_id, request_id=request.request_id, model=request.model)
    asked.candidates.CopyFrom(request.candidates)
    return asked.SerializeToString()


@pytest.mark.parametrize("method", ["RankTimeline", "ScoreTweets"])
def test_requests_and_what_comes_of_them(channel: grpc.Channel, method: str) -> None:
    """A drawn request is answered, or refused if something is wrong with it, and so is everything close to it.

    The request itself is sent first, so that a server that remembers it meets its mutants.
    """
    send = unary(channel, RANKING + method)

    @seed(SEED)
    @settings(
        max_examples=max(1, CALLS // (2 * CALLS_A_REQUEST)),
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn_requests(), st.sampled_from([None, *SPOILERS]), st.integers(0, 2**32 - 1))
    def fuzz(drawn: Drawn, spoiler: Spoiler | None, rng_seed: int) -> None:
        rng = random.Random(rng_seed)
        body = wire_form(drawn.request, method)
        assert send(body).code() is grpc.StatusCode.OK
        if spoiler is not None:
            spoiler.spoil(drawn.request)
        bodies = [mutant(wire_form(drawn.request, method), rng) for _ in range(CALLS_A_REQUEST)]
        for changed, call in [(changed, send(changed)) for changed in bodies]:
            assert call.code() in CALLERS_FAULT, (call.code(), call.details(), changed.hex())

    fuzz()


def random_body(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 2, 10, 100, 1_000, rng.randrange(100_000)]))


SEEDS: dict[str, Message] = {
    RANK_TIMELINE: REQUEST,
    f"{RANKING}ScoreTweets": pb.ScoreTweetsRequest(viewer_id=1, candidates=REQUEST.candidates),
    f"{RANKING}DescribeModel": pb.DescribeModelRequest(model="stable"),
    f"{HEALTH}Check": health_pb2.HealthCheckRequest(service="timelines.ranking.v1.TimelineRankingService"),
}


@pytest.mark.parametrize("method", SEEDS)
def test_any_bytes_on_any_method(channel: grpc.Channel, method: str) -> None:
    """Bytes that are nothing, and bytes that are nearly a message."""
    rng = random.Random(SEED)
    send = unary(channel, method)
    seed_body = SEEDS[method].SerializeToString()
    for _ in range(max(1, CALLS // (8 * CALLS_A_REQUEST))):
        bodies = [rng.choice([random_body(rng), mutant(seed_body, rng)]) for _ in range(CALLS_A_REQUEST)]
        for body, call in [(body, send(body)) for body in bodies]:
            assert call.code() in CALLERS_FAULT, (call.code(), call.details(), body.hex())


@pytest.mark.parametrize("method", [f"{HEALTH}Watch", REFLECTION])
def test_any_bytes_on_streams(channel: grpc.Channel, method: str) -> None:
    """The stream ends with a word on whose fault it is, or goes on."""
    rng = random.Random(SEED)
    request = (
        reflection_pb2.ServerReflectionRequest(list_services="") if method == REFLECTION else SEEDS[f"{HEALTH}Check"]
    )
    seed_body = request.SerializeToString() + b"\x08\x01"
    stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
    for _ in range(max(1, CALLS // 40)):
        call = stream(iter([rng.choice([random_body(rng), mutant(seed_body, rng)])]), timeout=30)
        try:
            next(call)
        except StopIteration:
            assert call.code() is grpc.StatusCode.OK
        except grpc.RpcError:
            assert call.code() in CALLERS_FAULT, (call.code(), call.details())
        call.cancel()


def garbage(rng: random.Random) -> bytes:
    """Something that is not HTTP/2, or HTTP/2 that goes wrong at some point."""
    call = call_headers(RANK_TIMELINE) + call_body(REQUEST.SerializeToString())
    kinds: list[Callable[[], bytes]] = [
        lambda: rng.randbytes(rng.randint(1, 2_000)),
        lambda: GREETING + rng.randbytes(rng.randint(1, 2_000)),
        lambda: (
            GREETING
            + b"".join(
                frame(
                    rng.randrange(12),
                    rng.randrange(256),
                    rng.choice([0, 1, 2, 3, 2**31 - 1]),
                    rng.randbytes(rng.randrange(64)),
                )
                for _ in range(20)
            )
        ),
        lambda: GREETING + mutant(call, rng),
        lambda: GREETING + call_headers(RANK_TIMELINE) + frame(DATA, 1, 1, mutant(call_body(b"")[9:], rng)),
        lambda: GREETING + frame(HEADERS, 4, 1, rng.randbytes(100)),
        lambda: GREETING + frame(SETTINGS, 0, 0, rng.randbytes(6 * rng.randrange(20))),
        lambda: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]
    return rng.choice(kinds)()


def test_garbage_on_the_port(server: Running) -> None:
    """Connections on which anything may come: each is let go, and what it took with it."""
    rng = random.Random(SEED)
    descriptors = server.descriptors
    for _ in range(max(1, CALLS // 10)):
        with connect(server.addresses.grpc) as connection:
            connection.sendall(garbage(rng))
            next(frames(connection), None)  # its settings, or the end of it
    give_up_s = time.monotonic() + 60
    while server.descriptors > descriptors + 5:
        assert time.monotonic() < give_up_s
