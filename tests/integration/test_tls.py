"""TLS on a real server with real certificates: who gets in, who may call, and certificates that change."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2

from service.__main__ import main
from service.demo import SAMPLE_REQUEST
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from service.generated.timelines.ranking.v1.served_log_pb2 import ServedRecord
from service.served_log import LogFiles
from tests import toy
from tests.server_process import Addresses, sample, serving

REQUEST = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1, 2]))
RANK_TIMELINE = "/timelines.ranking.v1.TimelineRankingService/RankTimeline"
CA, CLIENT_CA, STRANGER_CA = trustme.CA(), trustme.CA(), trustme.CA()
SERVER = CA.issue_cert("127.0.0.1")
BACKEND = CLIENT_CA.issue_cert("spiffe-like.example", "backend.example")
BATCH = CLIENT_CA.issue_cert("batch.example")
BY_COMMON_NAME = CLIENT_CA.issue_cert(common_name="old-backend")
STRANGER = STRANGER_CA.issue_cert("backend.example")


def pem(ca: trustme.CA) -> bytes:
    return ca.cert_pem.bytes()


def write_pair(directory: Path, pair: trustme.LeafCert) -> list[str]:
    """The files as flags of `serve`, each put in place by renaming it, as whoever renews certificates does."""
    for name, content in (
        ("cert.pem", b"".join(p.bytes() for p in pair.cert_chain_pems)),
        ("key.pem", pair.private_key_pem.bytes()),
    ):
        (directory / "new").write_bytes(content)
        (directory / "new").replace(directory / name)
    return ["--tls-cert", str(directory / "cert.pem"), "--tls-key", str(directory / "key.pem")]


@contextmanager
def connected(addresses: Addresses, ca: trustme.CA, pair: trustme.LeafCert | None = None) -> Iterator[grpc.Channel]:
    """A connection of its own."""
    shown = (None, None) if pair is None else (pair.private_key_pem.bytes(), pair.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_channel_credentials(pem(ca), *shown)
    with grpc.secure_channel(addresses.grpc, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def outcome(channel: grpc.Channel) -> grpc.StatusCode:
    """What a call ends with."""
    call = ranking_pb2_grpc.TimelineRankingServiceStub(channel).RankTimeline.future(REQUEST, timeout=30)
    code: grpc.StatusCode = call.code()
    return code


@pytest.fixture(scope="module")
def mutual(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A server that only the backend may call."""
    directory = tmp_path_factory.mktemp("tls")
    (directory / "clients.pem").write_bytes(pem(CLIENT_CA))
    flags = ["--tls-client-ca", str(directory / "clients.pem"), "--tls-allow", "old-backend, backend.example"]
    with serving(toy_bundle, *write_pair(directory, SERVER), *flags) as addresses:
        yield addresses


def test_only_who_trusts_the_server_gets_an_answer(toy_bundle: Path, tmp_path: Path) -> None:
    """TLS with its authority is answered; another authority, and no TLS, are not."""
    with serving(toy_bundle, *write_pair(tmp_path, SERVER)) as addresses:
        with connected(addresses, CA) as channel:
            assert outcome(channel) is grpc.StatusCode.OK
        with connected(addresses, STRANGER_CA) as channel:
            assert outcome(channel) is grpc.StatusCode.UNAVAILABLE
        with grpc.insecure_channel(addresses.grpc) as channel:
            assert outcome(channel) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("pair", [None, STRANGER], ids=["no certificate", "another authority's"])
def test_who_has_no_certificate_of_the_authority_does_not_get_in(
    mutual: Addresses, pair: trustme.LeafCert | None
) -> None:
    """Not even to health."""
    with connected(mutual, CA, pair) as channel:
        assert outcome(channel) is grpc.StatusCode.UNAVAILABLE
        health: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert health.future(b"", timeout=30).code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("pair", [BACKEND, BY_COMMON_NAME], ids=["alternative name", "common name"])
def test_who_is_on_the_list_is_answered(mutual: Addresses, pair: trustme.LeafCert) -> None:
    """By any of its names."""
    with connected(mutual, CA, pair) as channel:
        assert outcome(channel) is grpc.StatusCode.OK


def test_who_is_not_on_the_list_is_refused_before_its_body_is_read(mutual: Addresses) -> None:
    """PERMISSION_DENIED while the body is still to come, with the names that it has; counted; health is for all."""
    refused = sample(mutual, 'timeline_refused_total{reason="identity"}')
    never = threading.Event()

    def no_body() -> Iterator[bytes]:
        never.wait()
        yield from ()

    with connected(mutual, CA, BATCH) as channel:
        send: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(RANK_TIMELINE)
        call = send.future(no_body(), timeout=30)
        try:
            assert call.code() is grpc.StatusCode.PERMISSION_DENIED
            assert call.details() == "none of the names in the client's certificate may call: batch.example"
        finally:
            never.set()
        health: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert health_pb2.HealthCheckResponse.FromString(health(b"", timeout=30)).status == 1
    assert sample(mutual, 'timeline_refused_total{reason="identity"}') == refused + 1


def test_renewed_certificates_are_used_without_a_restart(toy_bundle: Path, tmp_path: Path) -> None:
    """New connections see the new one, connections that stand go on; files that are no good change nothing."""
    renewed = STRANGER_CA.issue_cert("127.0.0.1")
    with serving(toy_bundle, *write_pair(tmp_path, SERVER)) as addresses, connected(addresses, CA) as standing:
        assert outcome(standing) is grpc.StatusCode.OK

        (tmp_path / "cert.pem").write_text("not a certificate")
        for refused in (1, 1):  # looked at for each connection, told of once
            with connected(addresses, CA) as channel:
                assert outcome(channel) is grpc.StatusCode.OK
            assert sample(addresses, 'timeline_tls_reloads_total{result="refused"}') == refused

        write_pair(tmp_path, renewed)
        with connected(addresses, STRANGER_CA) as channel:
            assert outcome(channel) is grpc.StatusCode.OK
        with connected(addresses, CA) as channel:
            assert outcome(channel) is grpc.StatusCode.UNAVAILABLE
        assert outcome(standing) is grpc.StatusCode.OK
        assert sample(addresses, 'timeline_tls_reloads_total{result="loaded"}') == 1


def test_another_authority_for_clients_is_used_without_a_restart(toy_bundle: Path, tmp_path: Path) -> None:
    """Who had a certificate of the old one is out, who has one of the new one is in."""
    clients = tmp_path / "clients.pem"
    clients.write_bytes(pem(CLIENT_CA))
    with serving(toy_bundle, *write_pair(tmp_path, SERVER), "--tls-client-ca", str(clients)) as addresses:
        for ca, codes in (
            (CLIENT_CA, (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)),
            (STRANGER_CA, (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK)),
        ):
            clients.write_bytes(pem(ca))
            for pair, code in zip((BACKEND, STRANGER), codes, strict=True):
                with connected(addresses, CA, pair) as channel:
                    assert outcome(channel) is code


def test_commands_speak_tls(mutual: Addresses, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """rank, status and health, with their certificate; without it the server is not there for them."""
    (tmp_path / "ca.pem").write_bytes(pem(CA))
    write_pair(tmp_path, BACKEND)
    trust = ["--tls-ca", str(tmp_path / "ca.pem")]
    shown = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    (tmp_path / "models").mkdir()
    rank = ["rank", "--deadline-ms", "30000", str(SAMPLE_REQUEST)]
    for command in (rank, ["status", str(tmp_path / "models")], ["health"]):
        assert main([*command, "--target", mutual.grpc, *trust, *shown]) == 0
        assert main([*command, "--target", mutual.grpc, *trust]) == 1
        assert "UNAVAILABLE" in capsys.readouterr().err


def test_replay_speaks_tls(mutual: Addresses, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its certificate it gets an answer, not that of the log; without it none."""
    (tmp_path / "ca.pem").write_bytes(pem(CA))
    trust = ["--tls-ca", str(tmp_path / "ca.pem")]
    logged = pb.RankTimelineResponse(degradation=pb.DEGRADATION_NONE).SerializeToString()
    files = LogFiles(tmp_path / "log")
    asked = pb.RankTimelineRequest(viewer_id=1).SerializeToString()
    files.append(ServedRecord(viewer_id=1, response=logged, request=asked).SerializeToString())
    files.close()
    replay = ["replay", str(tmp_path / "log"), "--target", mutual.grpc, *trust]

    assert main([*replay, *write_pair(tmp_path, BACKEND)]) == 1
    assert f"1 OK from {mutual.grpc}" in capsys.readouterr().out
    assert main(replay) == 2
    assert "UNAVAILABLE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tls-cert", "c"], "--tls-cert and --tls-key go together"),
        (["--tls-cert", "c", "--tls-key", "k"], "--tls-cert needs --tls-ca"),
        (["--tls-ca", "/nowhere.pem"], "/nowhere.pem: No such file or directory"),
    ],
)
def test_flags_of_commands_that_do_not_fit(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, like any other misuse."""
    with pytest.raises(SystemExit) as caught:
        main(["health", "--target", "127.0.0.1:1", *flags])

    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"timeline-ranker health: error: {message}"


def test_a_server_with_bad_files_does_not_start(toy_bundle: Path, tmp_path: Path) -> None:
    """Exit 1 and one line."""
    flags = write_pair(tmp_path, SERVER)
    (tmp_path / "key.pem").write_bytes(BACKEND.private_key_pem.bytes())
    command = [sys.executable, "-m", "service", "serve", "--bundle", str(toy_bundle), "--host", "127.0.0.1"]
    ports = ["--grpc-port", "0", "--metrics-port", "0"]
    done = subprocess.run([*command, *ports, *flags], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (1, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("timeline-ranker serve: ")]
    assert line.endswith("are not a certificate and its private key: KEY_VALUES_MISMATCH")
