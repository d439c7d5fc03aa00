"""What is counted, and that every series is there from the start."""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from service import metrics as module
from service.align import ColumnCounts, Counts
from service.decode import Floats
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.metrics import CALLS_TOGETHER, BulkHistogram, Metrics, ProbabilityHistogram
from service.model import load_model
from service.pipeline import Answer, Ranking
from service.schema import Head, Schema
from service.shadow import ShadowMetrics
from service.timeline import Timeline
from tests import toy

COUNTS = Counts(ColumnCounts(1, 2, 3, 9), ColumnCounts(0, 4, 0, 9), ColumnCounts(5, 0, 0, 9))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


NO_ROWS = np.empty(0, np.intp)
NO_FLOATS = np.empty(0, np.float32)
TIMELINE = Timeline(NO_ROWS, NO_ROWS, NO_ROWS, pb.ICYMI_DECISION_SHOWN, NO_FLOATS, NO_FLOATS)


RANKING = Ranking(1, "r", 0, {"e": "b"}, TIMELINE, None)


def answer(ranking: Ranking | None = RANKING) -> Answer:
    """Three Tweets, two of them scored, three heads, 3 ms in the model."""
    probabilities = np.array([[0.5, 0.25, 0], [0.3, 0.1, 0]], np.float32)
    stages_ns = {"decode": 150_000, "score": 3_000_000}
    return Answer(b"", stages_ns, toy.SCHEMA.head_names, 3, probabilities, COUNTS, ranking)


def count(metrics: Metrics, answer: Answer, code: grpc.StatusCode = grpc.StatusCode.OK, ms: int = 1) -> None:
    """A call from begin to end."""
    method = metrics.methods["One"]
    metrics.begun(method)
    metrics.ended(method, code, ms * 1_000_000, answer)


def test_every_series_is_there_from_the_start(toy_bundle: Path) -> None:
    """A counter that appears with its first event has no rate for it."""
    metrics = Metrics("a.B", ["One", "Two"], [("e", "a"), ("e", "b")])
    metrics.serve([load_model(toy_bundle, threads=1)])

    assert value(metrics, "grpc_server_started_total", grpc_service="a.B", grpc_method="Two") == 0
    for code in grpc.StatusCode:
        labels = {"grpc_service": "a.B", "grpc_method": "One", "grpc_code": code.name}
        assert value(metrics, "grpc_server_handled_total", **labels) == 0
    for stage in ("decode", "queue", "align", "score", "combine", "build", "encode"):
        assert value(metrics, "timeline_stage_duration_seconds_count", stage=stage) == 0
    for decision in ("shown", "first_visit", "too_few_candidates", "too_recent", "below_floor", "degraded"):
        assert value(metrics, "timeline_icymi_total", decision=decision) == 0
    for group in ("viewer", "author", "tweet"):
        for state in ("present", "absent", "unknown"):
            assert value(metrics, "timeline_features_total", group=group, state=state) == 0
    for reason in ("deadline", "queue", "calls", "cancelled"):
        assert value(metrics, "timeline_refused_total", reason=reason) == 0
    for degradation in ("partial", "reverse_chronological"):
        assert value(metrics, "timeline_degraded_total", degradation=degradation) == 0
    assert value(metrics, "timeline_queue_rows") == 0
    for head in ("like", "reply", "negative"):
        assert value(metrics, "timeline_probability_count", head=head) == 0
    for arm in ("a", "b"):
        assert value(metrics, "timeline_arm_total", experiment="e", arm=arm) == 0
    assert value(metrics, "timeline_served_log_dropped_total") == 0
    assert value(metrics, "timeline_icymi_total", decision="unspecified") is None


def test_the_model_that_serves(toy_bundle: Path) -> None:
    """Version and hash are labels of a gauge that is 1."""
    metrics = Metrics("a.B", ["One"], [("e", "a"), ("e", "b")])
    model = load_model(toy_bundle, threads=1)
    metrics.serve([model])

    assert value(metrics, "timeline_model_info", version=model.version, sha256=model.sha256) == 1


def test_models_come_and_go(toy_bundle: Path) -> None:
    """A model that serves no more has no series; the heads of a new one begin at 0, those of the old one go on."""
    metrics = Metrics("a.B", ["One"], [])
    old = load_model(toy_bundle, threads=1)
    heads = (Head("bookmark", 1.0, 1), *toy.SCHEMA.heads[:2])
    new = replace(old, version="2", schema=Schema(toy.SCHEMA.features, heads))
    metrics.serve([old])
    count(metrics, answer()._replace(ranking=None))
    metrics.serve([old, new])

    for model in (old, new):
        assert value(metrics, "timeline_model_info", version=model.version, sha256=model.sha256) == 1
    assert value(metrics, "timeline_probability_count", head="bookmark") == 0
    metrics.serve([new])
    count(metrics, answer()._replace(heads=("bookmark", "like", "reply"), ranking=None))
    assert value(metrics, "timeline_model_info", version=old.version, sha256=old.sha256) is None
    assert value(metrics, "timeline_model_info", version="2", sha256=new.sha256) == 1
    sums = {head: value(metrics, "timeline_probability_sum", head=head) for head in ("bookmark", "like", "reply")}
    assert sums == pytest.approx({"bookmark": 0.8, "like": 0.8 + 0.35, "reply": 0.35})
    assert value(metrics, "timeline_probability_count", head="negative") == 2


def test_an_answer_is_counted(toy_bundle: Path) -> None:
    """Stages in seconds, Tweets, decision, columns by group and state, probabilities by head."""
    metrics = Metrics("a.B", ["One"], [("e", "a"), ("e", "b")])
    metrics.serve([load_model(toy_bundle, threads=1)])
    count(metrics, answer())

    assert value(metrics, "timeline_stage_duration_seconds_sum", stage="score") == 0.003
    assert value(metrics, "timeline_stage_duration_seconds_bucket", stage="decode", le="0.0001") == 0
    assert value(metrics, "timeline_stage_duration_seconds_bucket", stage="decode", le="0.0002") == 1
    assert value(metrics, "timeline_candidates_sum") == 3
    assert value(metrics, "timeline_icymi_total", decision="shown") == 1
    assert [value(metrics, "timeline_arm_total", experiment="e", arm=arm) for arm in ("a", "b")] == [0, 1]
    found = {
        (group, state): value(metrics, "timeline_features_total", group=group, state=state)
        for group in ("viewer", "author", "tweet")
        for state in ("present", "absent", "unknown")
    }
    assert list(found.values()) == [1, 2, 3, 0, 4, 0, 5, 0, 0]
    assert value(metrics, "timeline_probability_sum", head="like") == pytest.approx(0.8)
    assert value(metrics, "timeline_probability_count", head="reply") == 2
    assert value(metrics, "timeline_probability_bucket", head="like", le="0.5") == 2
    assert value(metrics, "timeline_probability_bucket", head="like", le="0.25") == 0


def test_calls_are_counted(toy_bundle: Path) -> None:
    """By method and code, with how long they took; one that has not ended has begun."""
    metrics = Metrics("a.B", ["One", "Two"], [("e", "b")])
    metrics.serve([load_model(toy_bundle, threads=1)])
    metrics.begun(metrics.methods["Two"])
    for _ in range(CALLS_TOGETHER + 1):
        count(metrics, answer(), ms=2)
    metrics.begun(metrics.methods["One"])
    metrics.ended(metrics.methods["One"], grpc.StatusCode.INTERNAL, 3_000_000, None)

    of_one, of_two = ({"grpc_service": "a.B", "grpc_method": method} for method in ("One", "Two"))
    assert value(metrics, "grpc_server_started_total", **of_one) == CALLS_TOGETHER + 2
    assert value(metrics, "grpc_server_started_total", **of_two) == 1
    assert value(metrics, "grpc_server_handled_total", **of_one, grpc_code="OK") == CALLS_TOGETHER + 1
    assert value(metrics, "grpc_server_handled_total", **of_one, grpc_code="INTERNAL") == 1
    assert value(metrics, "grpc_server_handling_seconds_bucket", **of_one, le="0.002") == CALLS_TOGETHER + 1
    assert value(metrics, "grpc_server_handling_seconds_count", **of_one) == CALLS_TOGETHER + 2
    seconds = value(metrics, "grpc_server_handling_seconds_sum", **of_one)
    assert seconds == pytest.approx(0.002 * (CALLS_TOGETHER + 1) + 0.003)
    assert value(metrics, "grpc_server_handling_seconds_count", **of_two) == 0


def test_calls_are_counted_now_and_then() -> None:
    """Whoever ends the 32nd of those that wait is told; until somebody counts or asks nothing is counted."""
    metrics = Metrics("a.B", ["One"], [])
    one = metrics.methods["One"]
    told = [metrics.ended(one, grpc.StatusCode.OK, 1, None) for _ in range(CALLS_TOGETHER + 1)]
    assert told == [False] * (CALLS_TOGETHER - 1) + [True, False]
    ok = one.handled[grpc.StatusCode.OK]
    assert ok._value.get() == 0
    metrics.count()
    assert ok._value.get() == CALLS_TOGETHER + 1


def test_what_can_not_be_counted_harms_no_other_call(toy_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Calls are counted together: one that fails to be is logged, the others are counted, and nobody's answer fails."""
    metrics = Metrics("a.B", ["One"], [("e", "b")])
    metrics.serve([load_model(toy_bundle, threads=1)])
    count(metrics, answer(RANKING._replace(arms={"e": "an arm that nobody knows"})))
    for _ in range(CALLS_TOGETHER):
        count(metrics, answer())

    labels = {"grpc_service": "a.B", "grpc_method": "One"}
    assert value(metrics, "grpc_server_handled_total", **labels, grpc_code="OK") == CALLS_TOGETHER
    assert value(metrics, "grpc_server_handling_seconds_count", **labels) == CALLS_TOGETHER
    assert value(metrics, "timeline_arm_total", experiment="e", arm="b") == CALLS_TOGETHER
    assert value(metrics, "timeline_probability_count", head="like") == 2 * CALLS_TOGETHER
    assert [record.message for record in caplog.records] == ["a call is not counted"]


def test_an_answer_without_a_timeline(toy_bundle: Path) -> None:
    """Scores alone decide nothing about ICYMI."""
    metrics = Metrics("a.B", ["One"], [("e", "a"), ("e", "b")])
    metrics.serve([load_model(toy_bundle, threads=1)])
    count(metrics, answer(ranking=None))

    assert value(metrics, "timeline_icymi_total", decision="shown") == 0
    assert value(metrics, "timeline_arm_total", experiment="e", arm="b") == 0
    assert value(metrics, "timeline_candidates_count") == 1


def test_a_degraded_timeline_is_counted(toy_bundle: Path) -> None:
    """By how much of it was scored."""
    metrics = Metrics("a.B", ["One"], [("e", "b")])
    metrics.serve([load_model(toy_bundle, threads=1)])
    count(metrics, answer())
    count(metrics, answer(RANKING._replace(timeline=TIMELINE._replace(degradation=pb.DEGRADATION_PARTIAL))))

    assert value(metrics, "timeline_degraded_total", degradation="partial") == 1
    assert value(metrics, "timeline_degraded_total", degradation="reverse_chronological") == 0


BOUNDS = (0.0, 0.001, 0.5, 1.0, 20.0)
seconds = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.floats(0, 30) | st.sampled_from([*BOUNDS, math.nextafter(0.5, 1)]))
)


@settings(max_examples=200)
@given(st.lists(seconds, max_size=3))
def test_many_values_are_counted_as_by_prometheus_own_histogram(batches: list[list[tuple[str, float]]]) -> None:
    """Bucket by bucket, the edges among them, and the sum."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    bulk = BulkHistogram("t", "", ("of",), BOUNDS)
    ours.register(bulk)
    reference = Histogram("t", "", ("of",), buckets=BOUNDS, registry=theirs)
    series = {name: bulk.series(name) for name in ("a", "b")}
    for batch in batches:
        bulk.observe([series[name] for name, _ in batch], [amount for _, amount in batch])
        for name, amount in batch:
            reference.labels(name).observe(amount)

    for sample in (sample for family in theirs.collect() for sample in family.samples):
        found = ours.get_sample_value(sample.name, sample.labels)
        assert found == pytest.approx(sample.value, rel=1e-12), sample


def test_the_page_names_every_metric_and_no_other() -> None:
    """docs/metrics.md is what somebody who is woken at night reads."""
    metrics = Metrics("a.B", ["One"], [("e", "a")])
    ShadowMetrics(metrics.registry)
    exposed = {
        line.split()[2] for line in generate_latest(metrics.registry).decode().splitlines() if line.startswith("# TYPE")
    }
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)} == exposed


def test_a_series_that_is_there_goes_on() -> None:
    """Asked for again it is the same, with what is in it; one without labels has none."""
    registry, bulk = CollectorRegistry(), BulkHistogram("t", "", (), (1.0,))
    registry.register(bulk)
    bulk.observe([bulk.series()], [2.0])
    bulk.observe([bulk.series()], [0.5])

    assert registry.get_sample_value("t_sum") == 2.5
    assert [registry.get_sample_value("t_bucket", {"le": le}) for le in ("1.0", "+Inf")] == [1, 2]


edges = st.sampled_from([2.0**-k for k in range(20)] + [math.nextafter(2.0**-k, 1) for k in range(20)] + [0.0])
probabilities = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 40), st.just(2)), elements=st.floats(0, 1, width=32) | edges.map(np.float32)
)


@settings(max_examples=200)
@given(st.lists(probabilities, max_size=3))
def test_probabilities_are_counted_as_by_prometheus_own_histogram(answers: list[Floats]) -> None:
    """Bucket by bucket, the edges among them; the sum to six digits."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    bulk = ProbabilityHistogram(ours)
    bulk.add_heads(("a", "b"))
    bounds = [2.0**-exponent for exponent in range(ProbabilityHistogram.EXPONENTS, -1, -1)]
    reference = Histogram("timeline_probability", "", ["head"], buckets=bounds, registry=theirs)
    for head in ("a", "b"):
        reference.labels(head)
    bulk.observe((("a", "b"), values) for values in answers)
    for values in answers:
        for head, column in zip(("a", "b"), values.T, strict=True):
            for probability in column:
                reference.labels(head).observe(float(probability))

    for head in ("a", "b"):
        for bound in [*map(str, bounds), "+Inf"]:
            labels = {"head": head, "le": bound}
            name = "timeline_probability_bucket"
            assert ours.get_sample_value(name, labels) == theirs.get_sample_value(name, labels)
        total = theirs.get_sample_value("timeline_probability_sum", {"head": head})
        assert ours.get_sample_value("timeline_probability_sum", {"head": head}) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("invalid", [math.nan, math.inf, -math.inf, -0.001, 1.001])
@pytest.mark.parametrize("head", [0, 1])
def test_what_is_no_probability_is_counted_apart(invalid: float, head: int) -> None:
    """The Tweet is in no bucket and no sum; those beside it are."""
    registry = CollectorRegistry()
    histogram = ProbabilityHistogram(registry)
    histogram.add_heads(("a", "b"))
    probabilities = np.full((3, 2), 0.5, np.float32)
    probabilities[1, head] = invalid

    histogram.observe([(("a", "b"), probabilities)])

    assert registry.get_sample_value("timeline_invalid_probabilities_total") == 1
    for name in ("a", "b"):
        assert registry.get_sample_value("timeline_probability_count", {"head": name}) == 2
        assert registry.get_sample_value("timeline_probability_sum", {"head": name}) == 1.0


def test_no_call_has_ended_that_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that comes and goes in the middle of counting: Prometheus must not see its end before its begin."""
    metrics = Metrics("a.B", ["One"], [])
    method = metrics.methods["One"]
    popped = module._popped

    def busy(calls: deque[Any]) -> list[Any]:
        found = popped(calls)
        metrics.begun(method)
        metrics.ended(method, grpc.StatusCode.OK, 1, None)
        return found

    monkeypatch.setattr(module, "_popped", busy)
    metrics.count()

    begun = method.started._value.get()
    ended = method.handled[grpc.StatusCode.OK]._value.get()
    assert (begun, ended) == (1, 0)
