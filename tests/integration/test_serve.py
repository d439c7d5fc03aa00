"""`timeline-ranker serve` from outside: ready line, health, reflection, metrics, statuses, start and stop."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from service.health import HEALTH_THREADS, REFLECTION_THREADS
from tests import toy
from tests.server_process import Addresses, serving

SERVICE = "timelines.ranking.v1.TimelineRankingService"
RANK_TIMELINE = f"/{SERVICE}/RankTimeline"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
SERVE = [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--grpc-port", "0", "--metrics-port", "0"]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def server(toy_bundle: Path) -> Iterator[Addresses]:
    """A server with a small limit on messages."""
    with serving(toy_bundle, "--message-bytes-max", "200000") as addresses:
        yield addresses


@pytest.fixture
def channel(server: Addresses) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


def sample(server: Addresses, series: str) -> float:
    """The value of one series, as written in the text format."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as answer:
        text = answer.read().decode()
    (value,) = re.findall(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(value)


def refused(channel: grpc.Channel, request: pb.RankTimelineRequest) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        ranking_pb2_grpc.TimelineRankingServiceStub(channel).RankTimeline(request)
    return caught.value


def send(channel: grpc.Channel, method: str, body: bytes) -> bytes:
    """A call from bytes to bytes."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    return call(body)


def check_health(channel: grpc.Channel, service: str = "") -> int:
    """The server's health, within ten seconds."""
    check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2.HealthCheckResponse.FromString(check(request.SerializeToString(), timeout=10)).status


def watch_health(channel: grpc.Channel) -> Iterator[int]:
    """The server's health, whenever it changes."""
    watch: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/grpc.health.v1.Health/Watch")
    return (health_pb2.HealthCheckResponse.FromString(answer).status for answer in watch(b""))


def test_ranks_and_counts(server: Addresses, channel: grpc.Channel) -> None:
    """An answer, and the series that it moves."""
    started = f'grpc_server_started_total{{grpc_method="RankTimeline",grpc_service="{SERVICE}"}}'
    handled = f'grpc_server_handled_total{{grpc_code="OK",grpc_method="RankTimeline",grpc_service="{SERVICE}"}}'
    before = [sample(server, series) for series in (started, handled, "timeline_candidates_sum")]

    request = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([3, 1, 2]))
    response = ranking_pb2_grpc.TimelineRankingServiceStub(channel).RankTimeline(request)

    assert list(response.ranked.tweet_ids) == [3, 2, 1]
    after = [sample(server, series) for series in (started, handled, "timeline_candidates_sum")]
    assert [a - b for a, b in zip(after, before, strict=True)] == [1, 1, 3]


def test_a_bad_request_names_its_field(server: Addresses, channel: grpc.Channel) -> None:
    """INVALID_ARGUMENT with a google.rpc.BadRequest, and counted as such."""
    handled = (
        f'grpc_server_handled_total{{grpc_code="INVALID_ARGUMENT",grpc_method="RankTimeline",grpc_service="{SERVICE}"}}'
    )
    before = sample(server, handled)
    error = refused(channel, pb.RankTimelineRequest())

    status = rpc_status.from_call(error)  # type: ignore[arg-type] # what a call raises is also the call
    assert status is not None
    detail = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(detail)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [v.field for v in detail.field_violations] == ["viewer_id"]
    assert sample(server, handled) == before + 1


def test_an_unknown_model_is_not_found(channel: grpc.Channel) -> None:
    """NOT_FOUND, with the names that there are."""
    error = refused(channel, pb.RankTimelineRequest(viewer_id=1, model="canary"))

    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "stable" in (error.details() or "")


def test_bytes_that_do_not_parse(channel: grpc.Channel) -> None:
    """It is the caller's mistake, so not INTERNAL."""
    for method in ("RankTimeline", "ScoreTweets", "DescribeModel"):
        with pytest.raises(grpc.RpcError) as caught:
            send(channel, f"/{SERVICE}/{method}", b"\xff\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_oversized_message(channel: grpc.Channel) -> None:
    """gRPC itself refuses it; the server goes on."""
    with pytest.raises(grpc.RpcError) as caught:
        send(channel, RANK_TIMELINE, bytes(200_001))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
    assert stub.RankTimeline(pb.RankTimelineRequest(viewer_id=1)).degradation == pb.DEGRADATION_NONE


def test_an_unknown_method(channel: grpc.Channel) -> None:
    """UNIMPLEMENTED, as gRPC has it."""
    with pytest.raises(grpc.RpcError) as caught:
        send(channel, f"/{SERVICE}/Rank", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_by_name(channel: grpc.Channel) -> None:
    """The server as a whole and the service; any other name is not found."""
    for name in ("", SERVICE):
        assert check_health(channel, name) == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        check_health(channel, "other")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection(channel: grpc.Channel) -> None:
    """A client without the .proto learns services and messages, under the file's own name."""
    database = ProtoReflectionDescriptorDatabase(channel)
    service = DescriptorPool(database).FindServiceByName(SERVICE)

    assert set(database.get_services()) >= {SERVICE, "grpc.health.v1.Health"}
    assert [m.name for m in service.methods] == ["RankTimeline", "ScoreTweets", "DescribeModel"]
    assert service.file.name == "timelines/ranking/v1/ranking.proto"


@contextmanager
def silent_streams(channel: grpc.Channel, method: str, count: int) -> Iterator[Sequence[grpc.Call]]:
    """Calls that send their headers and nothing else, and have no deadline; given up at the end."""
    release = threading.Event()

    def silence() -> Iterator[bytes]:
        release.wait()
        yield from ()

    call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
    streams = [call(silence()) for _ in range(count)]
    try:
        yield streams
    finally:
        release.set()
        for stream in streams:
            stream.cancel()


def test_probes_do_not_wait_for_forgotten_reflection_streams(channel: grpc.Channel) -> None:
    """A reflection stream keeps a thread for as long as it is open: those threads are not the probes'."""
    with silent_streams(channel, REFLECT, 2 * REFLECTION_THREADS):
        # On the same connection: the streams' headers are at the server before this is.
        assert check_health(channel) == SERVING


def test_reflection_does_not_wait_for_forgotten_streams_for_long(channel: grpc.Channel) -> None:
    """One that asks nothing for some seconds is ended."""
    with silent_streams(channel, REFLECT, REFLECTION_THREADS) as streams:
        assert SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()
        assert {stream.code() for stream in streams} == {grpc.StatusCode.CANCELLED}


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_probes_do_not_wait_for_probes_without_a_body(channel: grpc.Channel, method: str) -> None:
    """Each holds a thread: more of them than there are threads, and the server ends them."""
    with silent_streams(channel, f"/grpc.health.v1.Health/{method}", 2 * HEALTH_THREADS) as streams:
        assert check_health(channel) == SERVING
        assert {stream.code() for stream in streams} == {grpc.StatusCode.CANCELLED}


def test_a_call_without_a_deadline_has_the_servers(toy_bundle: Path) -> None:
    """A millisecond is too short for 2,000 columns of 5,000 rows."""
    candidates = toy.candidates([0.0] * 5_000)
    candidates.tweets.columns.extend(f"c{i}" for i in range(1_999))
    candidates.tweets.values[:] = [0.0] * (5_000 * 2_000)
    request = pb.RankTimelineRequest(viewer_id=1, candidates=candidates)
    with (
        serving(toy_bundle, "--default-deadline-ms", "1", "--message-bytes-max", str(64 << 20)) as addresses,
        grpc.insecure_channel(addresses.grpc) as channel,
    ):
        error = refused(channel, request)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert error.details() == "the deadline passed before the Tweets could be scored"

        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        assert len(stub.RankTimeline(request, timeout=60).remainder.tweet_ids) == 5_000 - 30


@contextmanager
def started(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server's process and gRPC address; killed if the test leaves it running."""
    with subprocess.Popen([*SERVE, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = re.fullmatch(r"ready grpc=(\S+) metrics=(\S+)\n", process.stdout.readline())
        try:
            assert ready, process.communicate()[1]
            yield process, ready[1]
        finally:
            process.kill()


def signal_another_thread(process: subprocess.Popen[str]) -> None:
    """SIGTERM, taken by a thread that is not the main one: that has to notice by itself."""
    threads = [int(name) for name in os.listdir(f"/proc/{process.pid}/task") if int(name) != process.pid]
    assert ctypes.CDLL(None).tgkill(process.pid, threads[0], signal.SIGTERM) == 0


def test_sigterm_drains(toy_bundle: Path) -> None:
    """Health first, then a while for callers to notice, then the stop; a call under way is answered; exit 0."""
    body = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1, 2])).SerializeToString()
    go_on = threading.Event()

    def late_body() -> Iterator[bytes]:
        go_on.wait()
        yield body

    # An hour to notice: the drain ends when this test says so.
    with (
        started("--bundle", str(toy_bundle), "--drain-ms", "3600000", "--grace-ms", "60000") as (process, address),
        grpc.insecure_channel(address) as channel,
    ):
        call: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(RANK_TIMELINE)
        under_way: grpc.Future[bytes] = call.future(late_body())
        statuses = watch_health(channel)
        assert next(statuses) == SERVING

        signal_another_thread(process)
        assert next(statuses) == NOT_SERVING
        assert send(channel, RANK_TIMELINE, body)  # callers that have not noticed yet

        signal_another_thread(process)  # nobody waits any longer: the server stops taking calls
        assert list(statuses) == []  # the watch ends, or the server would wait for it
        go_on.set()
        assert len(pb.RankTimelineResponse.FromString(under_way.result(timeout=60)).ranked.tweet_ids) == 2
        assert process.wait(timeout=60) == 0


def test_a_bad_bundle_refuses_to_start(own_bundle: Path) -> None:
    """Exit 1, a line per fault, no ready line."""
    (own_bundle / "model.onnx").write_bytes(b"")
    done = subprocess.run([*SERVE, "--bundle", str(own_bundle)], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (1, "")
    assert "timeline-ranker serve: model.onnx: has 0 bytes, the manifest says" in done.stderr
    assert "draining" not in done.stderr  # there is nobody to be drained


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rows-max", "many"], "--rows-max is 'many', not a number"),
        (["--policy", "/nowhere.toml"], "--policy /nowhere.toml: "),
        (["--no-such-flag", "1"], "unrecognized arguments: --no-such-flag 1"),
    ],
)
def test_a_bad_setting_refuses_to_start(flags: list[str], message: str) -> None:
    """Exit 2, and the setting is named."""
    done = subprocess.run([*SERVE, *flags], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_policy_that_the_model_cannot_follow(toy_bundle: Path, tmp_path: Path) -> None:
    """A head that the model lacks is refused at load."""
    policy = tmp_path / "policy.toml"
    policy.write_text("head_weights.retweet = 1")
    done = subprocess.run(
        [*SERVE, "--bundle", str(toy_bundle), "--policy", str(policy)], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 1
    assert "head_weights.retweet: the model has no such head" in done.stderr


def test_a_policy_is_in_force(toy_bundle: Path, tmp_path: Path) -> None:
    """Its values are in DescribeModel, its version in answers."""
    policy = tmp_path / "policy.toml"
    policy.write_text("ranked_size = 1")
    with serving(toy_bundle, "--policy", str(policy)) as addresses, grpc.insecure_channel(addresses.grpc) as channel:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        described = stub.DescribeModel(pb.DescribeModelRequest())
        response = stub.RankTimeline(pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1, 2])))

    assert described.policy_toml.startswith("ranked_size = 1\n")
    assert [list(response.ranked.tweet_ids), list(response.remainder.tweet_ids)] == [[2], [1]]


def test_a_taken_port(server: Addresses, toy_bundle: Path) -> None:
    """Two servers on one port are a mistake."""
    port = server.grpc.rpartition(":")[2]
    done = subprocess.run(
        [*SERVE, "--bundle", str(toy_bundle), "--grpc-port", port], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 1
    assert f"--grpc-port: cannot listen on 127.0.0.1:{port}" in done.stderr

    port = server.metrics.rpartition(":")[2]
    done = subprocess.run(
        [*SERVE[:-2], "--metrics-port", port, "--bundle", str(toy_bundle)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"--metrics-port: cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr


def test_verify(own_bundle: Path) -> None:
    """Exit 0 and a word for a good bundle, 1 and a line per fault for any other."""
    verify = [sys.executable, "-m", "service", "verify", str(own_bundle)]
    good = subprocess.run(verify, capture_output=True, text=True, timeout=60)
    (own_bundle / "golden.binpb").unlink()
    (own_bundle / "weights.bin").touch()
    bad = subprocess.run(verify, capture_output=True, text=True, timeout=60)

    assert (good.returncode, good.stderr) == (0, "")
    assert bad.returncode == 1
    assert bad.stdout == "weights.bin: does not belong into a bundle\ngolden.binpb: is missing\n"
