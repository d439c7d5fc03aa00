from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from tests import toy
from tests.server_process import serving

pytestmark = [pytest.mark.foreign, pytest.mark.slow]

# Calls at an even pace for longer than the window that rates are taken over.
CALLS_PER_S = 25
CALLS = 150
REFUSED = 3
WINDOW = "4s"
TWEETS = 4

CONFIG = """
global: {{scrape_interval: 250ms, scrape_timeout: 250ms}}
scrape_configs:
  - job_name: timeline-ranker
    static_configs: [{{targets: ["{target}"]}}]
"""


class Observed(NamedTuple):
    """A Prometheus that has seen all of the traffic."""

    query: Callable[[str], dict[str, float]]
    paced_until_s: float
    sha256: str


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Looks again and again, for at most 20 seconds."""
    deadline_s = time.monotonic() + 20
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        pause.wait(0.05)


@contextmanager
def prometheus(target: str, directory: Path) -> Iterator[Callable[[str], dict[str, float]]]:
    """A real Prometheus that scrapes `target`; gives a function from a query to {value of `key` label: sample}."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed")
    (directory / "prometheus.yml").write_text(CONFIG.format(target=target))
    address = f"127.0.0.1:{free_port()}"
    command = [binary, f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'data'}"]

    def query(expression: str) -> dict[str, float]:
        url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            result = json.load(answer)["data"]["result"]
        return {series["metric"].get("key", ""): float(series["value"][1]) for series in result}

    def scraped() -> bool:
        try:
            return query("up") == {"": 1.0}
        except (urllib.error.URLError, ConnectionError):
            return False

    with subprocess.Popen([*command, f"--web.listen-address={address}", "--log.level=error"]) as process:
        try:
            wait_until(scraped, "the first scrape")
            yield query
        finally:
            process.terminate()


def send_traffic(target: str) -> float:
    """CALLS timelines at an even pace, then REFUSED bad requests; returns when the pace ended, in Unix seconds."""
    request = pb.RankTimelineRequest(
        viewer_id=7, last_visit_ms=1, candidates=toy.candidates(likes=[1.0, 2.0, 3.0, 4.0])
    )
    pace = threading.Event()
    with grpc.insecure_channel(target) as channel:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        start_s = time.monotonic()
        for i in range(CALLS):
            pace.wait(max(start_s + i / CALLS_PER_S - time.monotonic(), 0))
            stub.RankTimeline(request)
        paced_until_s = time.time()
        for _ in range(REFUSED):
            with pytest.raises(grpc.RpcError):
                stub.RankTimeline(pb.RankTimelineRequest())
    return paced_until_s


@pytest.fixture(scope="module")
def observed(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """What Prometheus knows after the traffic, of a server that had no other."""
    directory = tmp_path_factory.mktemp("prometheus")
    sha256 = hashlib.sha256((toy_bundle / "model.onnx").read_bytes()).hexdigest()
    with serving(toy_bundle) as addresses, prometheus(addresses.metrics, directory) as query:
        paced_until_s = send_traffic(addresses.grpc)
        handled = "sum(grpc_server_handled_total)"
        wait_until(lambda: query(handled) == {"": float(CALLS + REFUSED)}, "a scrape after the last call's end")
        yield Observed(query, paced_until_s, sha256)


def labelled(selector: str, label: str) -> str:
    """A query whose samples are told apart by one label."""
    return f'label_replace({selector}, "key", "$1", "{label}", "(.*)")'


def test_calls_are_counted_by_method_and_status(observed: Observed) -> None:
    """Begun and ended, with the standard names of gRPC servers."""
    service = 'grpc_service="timelines.ranking.v1.TimelineRankingService",grpc_method="RankTimeline"'

    handled = observed.query(labelled(f"grpc_server_handled_total{{{service}}} > 0", "grpc_code"))

    assert handled == {"OK": CALLS, "INVALID_ARGUMENT": REFUSED}
    assert observed.query(f"grpc_server_started_total{{{service}}}") == {"": CALLS + REFUSED}


def test_the_rate_is_that_of_the_calls(observed: Observed) -> None:
    """Within a fifth: a scrape may fall just before or after a call, and a busy machine delays both."""
    handled = 'grpc_server_handled_total{grpc_code="OK"}'

    (rate,) = observed.query(f"sum(rate({handled}[{WINDOW}] @ {observed.paced_until_s:.3f}))").values()

    assert rate == pytest.approx(CALLS_PER_S, rel=0.2)


def test_latency_has_a_quantile(observed: Observed) -> None:
    """From buckets around what a timeline takes: neither under the first nor over the last."""
    quantile = 'histogram_quantile(0.5, grpc_server_handling_seconds_bucket{grpc_method="RankTimeline"})'

    (median_s,) = observed.query(quantile).values()

    assert 0.0001 < median_s < 1


def test_every_stage_of_every_timeline_is_timed(observed: Observed) -> None:
    """Seven stages; what was refused got through none of them."""
    counts = observed.query(labelled("timeline_stage_duration_seconds_count", "stage"))

    assert counts == dict.fromkeys(("decode", "queue", "align", "score", "combine", "build", "encode"), CALLS)


def test_rows_columns_and_decisions_are_counted(observed: Observed) -> None:
    """Of the toy's features the request sends one of each author and Tweet, and none of the viewer."""
    assert observed.query("timeline_candidates_sum") == {"": CALLS * TWEETS}
    assert observed.query(labelled("timeline_icymi_total > 0", "decision")) == {"too_few_candidates": CALLS}
    present = 'timeline_features_total{state="present"}'
    absent = 'timeline_features_total{state="absent"}'
    assert observed.query(labelled(present, "group")) == {"viewer": 0, "author": CALLS, "tweet": CALLS}
    assert observed.query(labelled(absent, "group")) == {"viewer": 2 * CALLS, "author": CALLS, "tweet": 3 * CALLS}


def test_probabilities_are_seen_by_head(observed: Observed) -> None:
    """Likes 1 to 4 and strength 1: raw 0.202 to 0.205, and half of that calibrated."""
    assert observed.query(labelled("timeline_probability_count", "head")) == dict.fromkeys(
        ("like", "reply", "negative"), CALLS * TWEETS
    )
    sums = observed.query(labelled("timeline_probability_sum", "head"))
    assert sums["like"] == pytest.approx(CALLS * (0.202 + 0.203 + 0.204 + 0.205) / 2, rel=1e-5)


def test_the_model_that_serves_is_known(observed: Observed) -> None:
    """By version and checksum, and that it was loaded once."""
    assert observed.query(labelled("timeline_model_info", "sha256")) == {observed.sha256: 1}
    assert observed.query(labelled("timeline_model_info", "version")) == {observed.sha256[:12]: 1}
    assert observed.query(labelled("timeline_model_loads_total", "result")) == {"loaded": 1, "refused": 0}
