from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from grpc_health.v1 import health_pb2

from service.__main__ import main
from tests.server_process import Addresses, answering


@pytest.fixture
def unready_target() -> Iterator[str]:
    """Where a server listens that does not serve yet."""
    answer = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING).SerializeToString()
    with answering("grpc.health.v1.Health", {"Check": lambda _body, _context: answer}) as target:
        yield target


def test_a_server_that_serves_is_healthy(toy_server: Addresses, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0, without a word."""
    assert main(["health", "--target", toy_server.grpc]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_server_that_does_not_serve_is_not(unready_target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It answers, but not with SERVING."""
    assert main(["health", "--target", unready_target]) == 1
    assert capsys.readouterr() == ("", f"timeline-ranker health: {unready_target}: NOT_SERVING\n")


def test_nobody_is_not_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    """The status of the failed call is the reason, with what is known of it."""
    assert main(["health", "--target", "127.0.0.1:1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"timeline-ranker health: 127\.0\.0\.1:1: UNAVAILABLE: .*Connection refused\n", err)


@pytest.mark.parametrize("target", ["localhost", "http://localhost:8001", ":8001", "localhost:x"])
def test_a_target_is_a_host_and_a_port(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """gRPC would ask port 443, or call it a misformed name."""
    with pytest.raises(SystemExit):
        main(["health", "--target", target])
    assert f"{target!r} is not HOST:PORT" in capsys.readouterr().err
