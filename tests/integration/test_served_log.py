"""The served log of a real server: what stands in it, and what happens when it can not be written."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import pyarrow.parquet as pq
import pytest

from model_export.__main__ import main as trainer
from service import config
from service.experiments import Experiments
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from service.model import load_model
from service.policy import Policy
from service.served_log import LogFiles, ServedLog, read_log
from service.server import Server
from service.serving import Serving
from tests import toy
from tests.server_process import Addresses, serving

EXPERIMENTS = """
[[experiments]]
name = "sizes"
salt = "1"
arms = [{name = "all", share = 1, policy = {ranked_size = 1, icymi_size = 1, icymi_candidates_min = 3}}]
[[experiments]]
name = "exploring"
salt = "2"
arms = [{name = "on", share = 1, exploration_epsilon = 0.5}]
"""
HOUR_MS = 3_600_000


def request(number: int) -> pb.RankTimelineRequest:
    """Four Tweets, after a day away."""
    return pb.RankTimelineRequest(
        request_id=f"r{number}",
        viewer_id=number + 1,
        last_visit_ms=10 * HOUR_MS,
        request_time_ms=40 * HOUR_MS,
        candidates=toy.candidates([900, 100, 300, 200]),
    )


def rank(addresses: Addresses, requests: list[pb.RankTimelineRequest]) -> list[pb.RankTimelineResponse]:
    with grpc.insecure_channel(addresses.grpc) as channel:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        return [stub.RankTimeline(request, timeout=30) for request in requests]


def dropped(addresses: Addresses) -> float:
    with urllib.request.urlopen(f"http://{addresses.metrics}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    (line,) = [line for line in lines if line.startswith("timeline_served_log_dropped_total ")]
    return float(line.split()[1])


def test_every_timeline_is_in_the_log(toy_bundle: Path, tmp_path: Path) -> None:
    """After the drain: each answer byte for byte, with the features of about half of the requests."""
    log = tmp_path / "deep" / "log"
    (tmp_path / "experiments.toml").write_text(EXPERIMENTS)
    flags = ["--served-log", str(log), "--log-features", "0.5", "--experiments", str(tmp_path / "experiments.toml")]
    requests = [request(number) for number in range(100)]
    with serving(toy_bundle, *flags) as addresses:
        responses = rank(addresses, requests)
        assert dropped(addresses) == 0
    records = list(read_log(log))

    assert [pb.RankTimelineResponse.FromString(record.response) for record in records] == responses
    assert [record.viewer_id for record in records] == [request.viewer_id for request in requests]
    with_features = [(record, asked) for record, asked in zip(records, requests, strict=True) if record.request]
    assert all(record.request == asked.SerializeToString() for record, asked in with_features)
    assert 30 < len(with_features) < 70


def test_the_log_becomes_a_table(toy_bundle: Path, tmp_path: Path) -> None:
    """A row per Tweet and experiment, positions from 0 in each section, the exploration's probabilities.

    Tweet 1 is in ICYMI; 3 holds the one ranked slot, and gives it to 2 or 4 half of the time.
    """
    (tmp_path / "experiments.toml").write_text(EXPERIMENTS)
    flags = ["--served-log", str(tmp_path / "log"), "--experiments", str(tmp_path / "experiments.toml")]
    with serving(toy_bundle, *flags) as addresses:
        (response,) = rank(addresses, [request(0)])
    table = tmp_path / "served.parquet"
    assert trainer(["served-log", str(tmp_path / "log"), "--out", str(table)]) == 0
    found = pq.read_table(table).to_pylist()

    assert len(found) == 2 * 4
    assert {(row["experiment"], row["arm"]) for row in found} == {("sizes", "all"), ("exploring", "on")}
    probabilities = {row["tweet_id"]: row["inclusion_probability"] for row in found}
    assert probabilities == {1: 1, 2: 0.25, 3: 0.5, 4: 0.25}
    places = [(row["section"], row["position"]) for row in found]
    assert places == 2 * [("icymi", 0), ("ranked", 0), ("remainder", 0), ("remainder", 1)]
    icymi, ranked = found[:2]
    assert icymi["tweet_id"] == 1
    assert (ranked["tweet_id"], ranked["score"]) == (response.ranked.tweet_ids[0], response.ranked.scores[0])
    assert {(row["request_id"], row["viewer_id"], row["model_version"]) for row in found} == {
        ("r0", 1, response.served_by.model_version)
    }
    assert abs(icymi["served_at_ms"] - (tmp_path / "log").stat().st_mtime_ns // 1_000_000) < 600_000


def test_a_degraded_answer_is_logged_as_it_was_served(toy_bundle: Path, tmp_path: Path) -> None:
    """Ten seconds a Tweet leave no time for scores: all in the remainder, newest first, scores null."""
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    flags = ["--host", "127.0.0.1", "--grpc-port", "0", "--metrics-port", "0", "--drain-ms", "0"]
    server = Server(config.from_arguments(parser.parse_args([*flags, "--served-log", str(tmp_path / "log")]), {}))
    server.start()
    model = load_model(toy_bundle, threads=1)
    model.scorer.cost_points = [(0, 0.0), (1_000, 1e13)]
    server.serve(Serving({"stable": model}, Experiments((), Policy())))
    try:
        (response,) = rank(Addresses(server.grpc_address, server.metrics_address), [request(0)])
    finally:
        server.drain()
    table = tmp_path / "served.parquet"
    assert trainer(["served-log", str(tmp_path / "log"), "--out", str(table)]) == 0
    found = pq.read_table(table).to_pylist()

    assert response.degradation == pb.DEGRADATION_REVERSE_CHRONOLOGICAL
    (record,) = read_log(tmp_path / "log")
    assert pb.RankTimelineResponse.FromString(record.response).degradation == response.degradation
    assert [(row["tweet_id"], row["section"], row["position"], row["score"]) for row in found] == [
        (tweet, "remainder", place, None) for place, tweet in enumerate([4, 3, 2, 1])
    ]


def test_scores_alone_are_not_logged(toy_bundle: Path, tmp_path: Path) -> None:
    """ScoreTweets serves no timeline."""
    with serving(toy_bundle, "--served-log", str(tmp_path)) as addresses, grpc.insecure_channel(addresses.grpc) as ch:
        asked = pb.ScoreTweetsRequest(viewer_id=1, candidates=toy.candidates([1]))
        ranking_pb2_grpc.TimelineRankingServiceStub(ch).ScoreTweets(asked)

    assert list(read_log(tmp_path)) == []


def test_a_disk_that_is_gone_costs_records_and_no_requests(toy_bundle: Path, tmp_path: Path) -> None:
    """With the log's directory gone all is answered and counted; with it back the log goes on."""
    log = tmp_path / "log"
    with serving(toy_bundle, "--served-log", str(log)) as addresses:
        shutil.rmtree(log)
        assert len(rank(addresses, [request(number) for number in range(10)])) == 10
        give_up_s = time.monotonic() + 60
        while dropped(addresses) < 10:  # the log's thread is no request's: it may take its time
            assert time.monotonic() < give_up_s
        log.mkdir()
        rank(addresses, [request(10)])

    assert [record.viewer_id for record in read_log(log)] == [11]


def test_a_disk_that_is_stuck_delays_no_request(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the log's thread held in a write all requests are answered; a server that stops waits until it wrote all."""
    released = threading.Event()

    class StuckDisk(LogFiles):
        def append(self, payload: bytes) -> None:
            released.wait()
            super().append(payload)

    class Closing(ServedLog):
        def close(self, timeout_s: float = 60) -> None:
            released.set()
            super().close(timeout_s)

    monkeypatch.setattr("service.server.LogFiles", StuckDisk)
    monkeypatch.setattr("service.server.ServedLog", Closing)
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    flags = ["--host", "127.0.0.1", "--grpc-port", "0", "--metrics-port", "0", "--drain-ms", "0"]
    server = Server(config.from_arguments(parser.parse_args([*flags, "--served-log", str(tmp_path)]), {}))
    server.start()
    server.serve(Serving({"stable": load_model(toy_bundle, threads=1)}, Experiments((), Policy())))
    try:
        responses = rank(
            Addresses(server.grpc_address, server.metrics_address), [request(number) for number in range(20)]
        )
        assert not released.is_set()
    finally:
        server.drain()

    assert len(responses) == 20
    assert [record.viewer_id for record in read_log(tmp_path)] == list(range(1, 21))


def test_a_log_that_can_not_be_written_does_not_start(toy_bundle: Path, tmp_path: Path) -> None:
    """The directory is a file: one line on stderr says so."""
    (tmp_path / "log").write_text("")
    command = [sys.executable, "-m", "service", "serve", "--bundle", str(toy_bundle), "--host", "127.0.0.1"]
    flags = ["--grpc-port", "0", "--metrics-port", "0", "--served-log", str(tmp_path / "log")]
    outcome = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60)

    assert (outcome.returncode, outcome.stdout) == (1, "")
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("timeline-ranker serve: ")]
    assert f"File exists: '{tmp_path / 'log'}'" in line
