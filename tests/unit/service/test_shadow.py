"""The shadow model beside two real ones: what is compared, what is not, and what is told of it."""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from scipy import stats

from service import pipeline, shadow
from service.admission import Admission
from service.experiments import Arm, Experiment, Experiments
from service.fast_decode import RequestDecoder
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.limits import Limits
from service.model import Model, load_model
from service.pipeline import Answer, Call
from service.policy import Policy
from service.serving import Serving
from service.shadow import Shadow, ShadowMetrics
from tests import toy

HEADS = ("like", "reply", "negative")
DECODER = RequestDecoder(Limits())


@pytest.fixture(scope="module")
def stable(toy_bundle: Path) -> Model:
    return replace(load_model(toy_bundle, threads=1), version="1")


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model to which authors matter less."""
    weights = {**toy.WEIGHTS, "author": np.float32(0.2) * toy.WEIGHTS["author"]}
    return replace(load_model(toy.write(tmp_path_factory.mktemp("canary") / "toy", weights), threads=1), version="2")


def request(number: int) -> pb.RankTimelineRequest:
    """Thirty Tweets by three authors; another order for another number."""
    rng = np.random.default_rng(number)
    candidates = toy.candidates(
        rng.uniform(0, 300, 30).tolist(), rng.integers(0, 3, 30).tolist(), strength=rng.uniform(0, 4, 3).tolist()
    )
    return pb.RankTimelineRequest(request_id=f"r{number}", viewer_id=number + 1, candidates=candidates)


def answer(serving: Serving, asked: pb.RankTimelineRequest) -> Answer:
    call = Call(
        now_ms=10_000,
        clock=lambda: 0,
        arrived_ns=0,
        deadline_ns=math.inf,
        admission=Admission(1),
        on_end=lambda _: True,
        make_id=lambda: "made",
    )
    return rank(asked.SerializeToString(), serving, call)


def rank(body: bytes, serving: Serving, call: Call) -> Answer:
    return pipeline.rank_timeline(body, serving, DECODER, call)


class Bench:
    """A shadow, and its registry."""

    def __init__(
        self, share: float = 1.0, busy: Callable[[], bool] = lambda: False, logged_together: int = 100
    ) -> None:
        self.registry = CollectorRegistry()
        metrics = ShadowMetrics(self.registry)
        self.shadow = Shadow("canary", share, rank, busy, metrics, logged_together)

    def serve(self, serving: Serving, asked: pb.RankTimelineRequest) -> pb.RankTimelineResponse:
        """Answers, and offers the answer to the shadow."""
        served = answer(serving, asked)
        assert served.ranking is not None
        self.shadow.offer(serving, served.ranking, asked.SerializeToString(), served.body)
        return pb.RankTimelineResponse.FromString(served.body)

    def drained(self) -> dict[str, float]:
        """Ends the shadow; gives what became of the timelines."""
        self.shadow.close()
        return {result: self.sample("timeline_shadow_total", result=result) for result in shadow.RESULTS}

    def sample(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, labels)
        return -1 if value is None else value


def only(results: dict[str, float]) -> dict[str, float]:
    return {result: count for result, count in results.items() if count}


def serving(stable: Model, canary: Model | None) -> Serving:
    models = {"stable": stable} if canary is None else {"stable": stable, "canary": canary}
    return Serving(models, Experiments((), Policy(ranked_size=5)))


def test_a_model_agrees_with_its_copy(stable: Model) -> None:
    """Two versions that are the same: overlap and correlation 1, no difference."""
    bench = Bench()
    for number in range(5):
        bench.serve(serving(stable, replace(stable, version="2")), request(number))
    results = bench.drained()

    assert only(results) == {"compared": 5}
    assert bench.sample("timeline_shadow_top_overlap_sum") == 5
    assert bench.sample("timeline_shadow_rank_correlation_sum") == pytest.approx(5)
    for head in HEADS:
        assert bench.sample("timeline_shadow_tweets_total", head=head) == 5 * 30
        for direction in ("up", "down"):
            assert bench.sample("timeline_shadow_difference_total", head=head, direction=direction) == 0


def test_another_model_differs_by_as_much_as_scipy_says(stable: Model, canary: Model) -> None:
    """Overlap, correlation and differences of ten timelines, from probabilities worked out without a graph."""
    bench = Bench()
    overlaps, correlations = [], []
    up, down = np.zeros(3), np.zeros(3)
    both = serving(stable, canary)
    less = {**toy.WEIGHTS, "author": np.float32(0.2) * toy.WEIGHTS["author"]}
    nan = math.nan
    for number in range(8):
        asked = request(number)
        bench.serve(both, asked)
        tables = (
            np.array([[nan, nan]]),
            np.array([[strength, nan] for strength in asked.candidates.authors.values]),
            np.asarray(asked.candidates.author_index),
            np.array([[likes, nan, nan, nan, nan] for likes in asked.candidates.tweets.values]),
        )
        ours, theirs = (toy.raw_probabilities(*tables, weights=weights) / 2 for weights in (toy.WEIGHTS, less))
        one, other = (probabilities @ [1, 2, -3] for probabilities in (ours, theirs))
        overlaps.append(len(set(np.argsort(one)[-10:]) & set(np.argsort(other)[-10:])) / 10)
        correlations.append(stats.spearmanr(one, other).statistic)
        up += np.clip(theirs - ours, 0, None).sum(axis=0)
        down += np.clip(ours - theirs, 0, None).sum(axis=0)
    results = bench.drained()

    assert only(results) == {"compared": 8}
    assert 0 < np.mean(overlaps) < 1
    assert bench.sample("timeline_shadow_top_overlap_sum") == pytest.approx(sum(overlaps))
    assert bench.sample("timeline_shadow_rank_correlation_sum") == pytest.approx(sum(correlations))
    for i, head in enumerate(HEADS):
        for direction, sums in (("up", up), ("down", down)):
            found = bench.sample("timeline_shadow_difference_total", head=head, direction=direction)
            assert found == pytest.approx(sums[i], rel=1e-5, abs=1e-6)


def test_what_is_not_compared_is_counted_by_why(stable: Model, canary: Model) -> None:
    """A busy server, no model of that label, the same version, and a degraded answer."""
    busy = Bench(busy=lambda: True)
    busy.serve(serving(stable, canary), request(0))
    assert only(busy.drained()) == {"busy": 1}

    bench = Bench()
    bench.serve(serving(stable, None), request(0))
    bench.serve(serving(stable, stable), request(1))
    served = answer(serving(stable, canary), request(2))
    assert served.ranking is not None
    degraded = served.ranking.timeline._replace(degradation=pb.DEGRADATION_PARTIAL)
    bench.shadow.offer(serving(stable, canary), served.ranking._replace(timeline=degraded), b"", served.body)
    assert only(bench.drained()) == {"no_model": 1, "same_version": 1, "busy": 1}


def test_a_full_queue_drops_and_waits_for_nobody(stable: Model, canary: Model) -> None:
    """With the thread held, what the queue has no room for is dropped, at once; released, the others are compared."""
    reached, released = threading.Event(), threading.Event()

    def busy() -> bool:
        reached.set()
        return not released.wait()

    bench = Bench(busy=busy)
    bench.serve(serving(stable, canary), request(0))
    reached.wait()
    for number in range(1, shadow.QUEUE_MAX + 4):
        bench.serve(serving(stable, canary), request(number))
    assert bench.sample("timeline_shadow_total", result="dropped") == 3
    released.set()

    assert only(bench.drained()) == {"compared": shadow.QUEUE_MAX + 1, "dropped": 3}


def test_a_share_of_the_timelines_is_sampled(stable: Model) -> None:
    """By request id, so the same ones again; a third of 300, give or take four standard deviations."""
    both = serving(stable, None)
    full = answer(both, request(0)).ranking
    assert full is not None
    degraded = full._replace(timeline=full.timeline._replace(degradation=pb.DEGRADATION_PARTIAL))  # counted at once

    def sampled() -> list[int]:
        bench = Bench(share=1 / 3)
        numbers, before = [], 0.0
        for number in range(300):
            bench.shadow.offer(both, degraded._replace(request_id=f"r{number}"), b"", b"")
            after = bench.sample("timeline_shadow_total", result="busy")
            if after > before:
                numbers.append(number)
            before = after
        bench.drained()
        return numbers

    assert sampled() == sampled()
    assert 67 < len(sampled()) < 133


def test_a_failure_is_told_once_and_ends_nothing(
    stable: Model, canary: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """Arms that the shadow model does not go with: one warning for all in a row, and comparing goes on after."""
    arm = Arm("on", 0.0, policy={"head_weights": {"reply": 1.0}})
    experiment = Experiment("weights", "1", (Arm("off", 1.0), arm))
    poor = replace(canary, schema=replace(canary.schema, heads=canary.schema.heads[:1]))
    both = Serving({"stable": stable, "canary": poor}, Experiments((experiment,), Policy(ranked_size=5)))
    bench = Bench()
    for number in range(3):
        forced = request(number)
        forced.forced_arms["weights"] = "on"
        bench.serve(both, forced)
    bench.serve(serving(stable, canary), request(9))
    results = bench.drained()

    assert only(results) == {"failed": 3, "compared": 1}
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "request r0: InvalidRequest: model: does not go with arms {'weights': 'on'}" in warnings[0].message


def test_the_log_sums_up(stable: Model, canary: Model, caplog: pytest.LogCaptureFixture) -> None:
    """A line for so many comparisons, one when the versions change, and one at the end."""
    caplog.set_level(logging.INFO)
    bench = Bench(logged_together=2)
    both = serving(stable, canary)
    for number in range(3):
        bench.serve(both, request(number))
    bench.serve(serving(stable, replace(stable, version="3")), request(3))
    bench.drained()
    lines = [record.message for record in caplog.records if record.message.startswith("shadow: ")]

    assert [re.sub(" timelines: .*", "", line) for line in lines] == [
        "shadow: version 2 beside 1, 2",
        "shadow: version 2 beside 1, 1",
        "shadow: version 3 beside 1, 1",
    ]
    assert lines[2].endswith(
        "1 timelines: top 10 overlap 1.0000, rank correlation 1.0000; "
        "drift of probabilities (mean size): like +0 (0), reply +0 (0), negative +0 (0)"
    )
    assert re.search(r"overlap 0\.\d{4}, rank correlation 0\.\d{4}; .*: like -0\.\d+ \(0\.\d+\), reply -0\.0", lines[0])


def test_a_request_without_id_and_time_is_compared_as_it_was_served(stable: Model) -> None:
    """The id that seeded the exploration and the server's time are those of the answer: a copy agrees in all."""
    arm = Arm("on", 1.0, exploration_epsilon=0.5)
    experiments = Experiments((Experiment("exploring", "1", (arm,)),), Policy(ranked_size=5))
    both = Serving({"stable": stable, "canary": replace(stable, version="2")}, experiments)
    asked = request(0)
    asked.request_id = ""
    asked.last_visit_ms = 9_999  # legal at the time of the answer, 10,000
    bench = Bench()
    bench.serve(both, asked)

    assert only(bench.drained()) == {"compared": 1}
