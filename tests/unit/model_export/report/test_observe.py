"""What a report draws, against slow sums over the bundle's graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest

from model_export.datasets.records import Impressions, RecordSet
from model_export.evaluate import relative_cross_entropy, reliability
from model_export.report.observe import HISTOGRAM_EDGES, Observed, histograms, observe, rce_interval, session_uniform
from model_export.score import open_graph
from service.bundle import Bundle


def test_reliability_of_a_run_is_that_of_its_graph_row_by_row(records: RecordSet, bundle: Bundle) -> None:
    """Both diagrams equal plain Python means over bins, from a run of the shipped graph for each single impression."""
    days = records.days[-2:]
    observed = observe(open_graph(bundle.model), records, days, rows=10_000)

    session = onnxruntime.InferenceSession(bundle.model, providers=["CPUExecutionProvider"])
    answers = []
    for batch in records.batches(days):
        for i in range(len(batch)):
            feeds = {"viewer": "viewer", "author": "authors", "tweet": "tweets"}
            rows = {name: batch.tables[group][i : i + 1] for group, name in feeds.items()}  # type: ignore[index]  # groups
            answers.append(session.run(["raw_probabilities", "probabilities"], {**rows, "author_index": np.array([0])}))
    truth = np.concatenate([pq.read_table(records.root / f"day={day:03d}.parquet")["reachable.reply"] for day in days])
    assert observed.simulated
    assert len(answers) == len(observed.truth) == len(truth) == 3_000
    for said, which in ((observed.raw, 0), (observed.calibrated, 1)):
        ours = sorted((float(answer[which][0, 1]), float(p)) for answer, p in zip(answers, truth, strict=True))
        found = reliability(observed.truth[:, 1], said[:, 1])
        for column in (0, 1):
            expected = [sum(row[column] for row in ours[start : start + 150]) / 150 for start in range(0, 3_000, 150)]
            if column == 0:
                assert found[column] == pytest.approx(expected, rel=1e-4)
            else:  # rows of one prediction may lie on either side of an edge
                assert found[column] == pytest.approx(expected, rel=0.05)
                assert found[column].mean() == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_session_is_drawn_whole(make_impressions: Callable[[int, int], Impressions]) -> None:
    """Its impressions share one number, and sessions have different ones."""
    impressions = make_impressions(50, 0)
    impressions.ids["viewer_id"][:] = impressions.ids["session"] + 7

    numbers = session_uniform(impressions).reshape(5, 10)

    assert (numbers == numbers[:, :1]).all()
    assert len(set(numbers[:, 0])) == 5
    assert ((numbers >= 0) & (numbers < 1)).all()


def test_a_part_of_the_sessions_is_observed(records: RecordSet, bundle: Bundle) -> None:
    """About as many impressions as were asked for; none is an error."""
    graph = open_graph(bundle.model)

    assert 400 < len(observe(graph, records, records.days, rows=500).truth) < 600
    with pytest.raises(ValueError, match="no session was drawn"):
        observe(graph, records, records.days, rows=0)


def test_histograms_by_hand() -> None:
    """A row counts in both by its probability; what lies below the lowest edge is in the first bin."""
    with_it, without = histograms(np.array([1.0, 0.25, 0.0]), np.array([0.99, 0.0, 0.5]))

    assert len(with_it) == len(HISTOGRAM_EDGES) - 1
    assert with_it[[0, -1]] == pytest.approx([0.2, 0.8])
    assert without[0] == pytest.approx(0.75 / 1.75)
    assert without[-2] == pytest.approx(1 / 1.75)  # 0.5 lies in [10^(-1/3), 10^(-1/6))
    assert without.sum() == with_it.sum() == pytest.approx(1)


def test_no_positive_leaves_its_histogram_empty() -> None:
    """Not NaN."""
    with_it, without = histograms(np.zeros(3), np.full(3, 0.1))

    assert with_it.sum() == 0
    assert without.sum() == 1


def test_the_interval_of_a_head_is_that_of_its_viewers() -> None:
    """Around the head's own figure; one viewer's rows repeated ten times over leave it as wide, new viewers' do not."""
    rng = np.random.default_rng(0)
    truth = np.clip(rng.beta(1, 9, (800, 2)), 0.001, 0.999)
    predicted = np.stack([truth[:, 0], np.full(800, 0.1)], axis=1)

    def seen(times: int, step: int) -> Observed:
        p, q = np.concatenate([truth] * times), np.concatenate([predicted] * times)
        viewers = np.concatenate([np.arange(800) // 4 + i * step for i in range(times)])
        return Observed(raw=q, calibrated=q, truth=p, simulated=True, viewers=viewers)

    low, high = rce_interval(seen(1, 0), 0)
    assert low < relative_cross_entropy(truth[:, 0], truth[:, 0]) < high
    assert high - low > 5 * float(np.ptp(rce_interval(seen(1, 0), 1)))
    assert rce_interval(seen(10, 0), 0) == pytest.approx((low, high))
    assert float(np.ptp(rce_interval(seen(10, 1_000), 0))) < 0.5 * (high - low)
