"""The shadow model on the real server: what its metrics say, and that no caller ever waits for it."""

from __future__ import annotations

import argparse
import re
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
from scipy import stats

from service import config, shadow
from service.agreement import Agreement, compare
from service.experiments import Experiments
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from service.model import load_model
from service.policy import Policy
from service.repository import Repository
from service.server import Server
from service.serving import Serving
from tests import toy
from tests.server_process import Addresses, serving_models

PATIENCE_S = 60
FLAGS = ["--shadow-model", "canary", "--shadow-share", "1"]


def request(number: int) -> pb.RankTimelineRequest:
    """Forty Tweets by three authors."""
    rng = np.random.default_rng(number)
    candidates = toy.candidates(
        rng.uniform(0, 300, 40).tolist(), rng.integers(0, 3, 40).tolist(), strength=rng.uniform(0, 4, 3).tolist()
    )
    return pb.RankTimelineRequest(request_id=f"r{number}", viewer_id=number + 1, candidates=candidates)


def samples(metrics: str) -> dict[str, float]:
    """Series -> value, of the shadow."""
    with urllib.request.urlopen(f"http://{metrics}/metrics") as answer:
        found = re.findall(r"^(timeline_shadow_\S+) (\S+)$", answer.read().decode(), re.MULTILINE)
    return {series: float(value) for series, value in found}


def until(metrics: str, series: str, count: int) -> dict[str, float]:
    """Asks, over the network each time, until the counter stands there."""
    give_up_s = time.monotonic() + PATIENCE_S
    while (found := samples(metrics))[series] < count:
        assert time.monotonic() < give_up_s, found
    return found


def flat(response: pb.RankTimelineResponse) -> dict[int, float]:
    """Tweet -> score."""
    sections = (response.icymi, response.ranked, response.remainder)
    return {tweet: score for s in sections for tweet, score in zip(s.tweet_ids, s.scores, strict=True)}


def test_the_shadow_says_what_the_other_model_would_have_answered(tmp_path: Path, toy_bundle: Path) -> None:
    """Overlap, correlation and drift are those between the answers of both models to whoever asks for them by name."""
    weights = {**toy.WEIGHTS, "author": np.float32(0.2) * toy.WEIGHTS["author"]}
    repository = Repository(tmp_path / "models")
    repository.publish(toy_bundle)
    repository.publish(toy.write(tmp_path / "other", weights))
    repository.promote(1, "stable")
    repository.promote(2, "canary")
    overlaps, correlations, drifts = [], [], []
    with (
        serving_models("--model-repository", str(repository.root), *FLAGS) as addresses,
        grpc.insecure_channel(addresses.grpc) as channel,
    ):
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        for number in range(5):
            served, other = (stub.RankTimeline(request(number), timeout=30), request(number))
            found = until(addresses.metrics, 'timeline_shadow_total{result="compared"}', number + 1)
            other.model = "canary"
            wanted = flat(stub.RankTimeline(other, timeout=30))
            until(addresses.metrics, 'timeline_shadow_total{result="same_version"}', number + 1)
            one = flat(served)
            tweets = sorted(one)
            best, other_best = (set(sorted(tweets, key=scores.__getitem__)[-10:]) for scores in (one, wanted))
            overlaps.append(len(best & other_best) / 10)
            columns = ([scores[tweet] for tweet in tweets] for scores in (one, wanted))
            correlations.append(stats.spearmanr(*columns).statistic)
            drifts.append(found['timeline_shadow_difference_total{direction="down",head="like"}'])

    assert found["timeline_shadow_top_overlap_sum"] == pytest.approx(sum(overlaps))
    assert sum(overlaps) < 5
    assert found["timeline_shadow_rank_correlation_sum"] == pytest.approx(sum(correlations))
    assert found['timeline_shadow_tweets_total{head="like"}'] == 5 * 40
    assert drifts == sorted(drifts)
    assert drifts[0] > 0
    assert found['timeline_shadow_total{result="failed"}'] == 0


def test_no_request_waits_for_the_shadow(tmp_path: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the shadow's thread held in a comparison all requests are answered; released, it does what it has queued."""
    released = threading.Event()

    def held(one: pb.RankTimelineResponse, other: pb.RankTimelineResponse) -> Agreement:
        released.wait()
        return compare(one, other)

    monkeypatch.setattr(shadow, "compare", held)
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    flags = ["--host", "127.0.0.1", "--grpc-port", "0", "--metrics-port", "0", "--drain-ms", "0", *FLAGS]
    settings = config.from_arguments(parser.parse_args([*flags, "--model-repository", str(tmp_path)]), {})
    server = Server(settings)
    server.start()
    stable = load_model(toy_bundle, threads=1)
    canary = load_model(toy.write(tmp_path / "other", {**toy.WEIGHTS, "viewer": 2 * toy.WEIGHTS["viewer"]}), threads=1)
    server.serve(Serving({"stable": stable, "canary": canary}, Experiments((), Policy())))
    try:
        with grpc.insecure_channel(server.grpc_address) as channel:
            stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
            answers = [stub.RankTimeline(request(number), timeout=30) for number in range(30)]
        waiting = samples(server.metrics_address)
    finally:
        released.set()
        server.drain()
    after = {
        result: server.metrics.registry.get_sample_value("timeline_shadow_total", {"result": result}) or 0
        for result in shadow.RESULTS
    }

    assert [answer.degradation for answer in answers] == [pb.DEGRADATION_NONE] * 30
    assert waiting['timeline_shadow_total{result="compared"}'] == 0
    assert after["compared"] + after["dropped"] == 30
    assert 1 <= after["compared"] <= 1 + shadow.QUEUE_MAX


def test_without_a_shadow_there_is_nothing_of_it(toy_server: Addresses) -> None:
    """No series of it."""
    assert samples(toy_server.metrics) == {}
