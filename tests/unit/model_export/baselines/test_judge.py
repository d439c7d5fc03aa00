"""Calibration and judgement of models whose quality is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from model_export.baselines.judge import calibrated, figures, judge
from model_export.datasets.records import Impressions, RecordSet
from model_export.evaluate import relative_cross_entropy
from model_export.steps.calibrate import Parameters

PLAN = Parameters(positives_min=50, block_events_min=10)
RATES = np.array([0.5, 0.1])


def _truth(impressions: Impressions) -> NDArray[np.float32]:
    assert impressions.reachable is not None
    return impressions.reachable


def _in_sampled_world(impressions: Impressions) -> NDArray[np.float32]:
    """The true probabilities as a model says them that learned from a share of the negatives."""
    odds = _truth(impressions) / (1 - _truth(impressions)) / RATES
    return np.asarray(odds / (1 + odds), np.float32)


def _noise(impressions: Impressions) -> NDArray[np.float32]:
    return np.random.default_rng(0).random(impressions.labels.shape).astype(np.float32)


def test_judged_by_what_is_true(make_records: Callable[[int, int], RecordSet]) -> None:
    """A model that knows the truth is near the reachable after calibration and ahead of noise, on the same rows."""
    records = make_records(6, 2_000)
    models = {"truth": _in_sampled_world, "noise": _noise}
    fitted = calibrated(models, records, records.days[:4], RATES, PLAN)
    judged = judge(fitted, records, records.days[4:])
    assert judged.simulated
    assert len(judged.labels) == 4_000
    found = figures(judged, records.schema.head_names, against="noise", draws=100, seed=1)
    for head in records.schema.head_names:
        best, noise = found["truth"][head], found["noise"][head]
        assert best["rce"] > 0.9 * best["reachable_rce"] > 0
        assert best["rce_low"] < best["rce"] < best["rce_high"]
        assert best["calibration_error"] < 0.15
        assert (best["rce_difference"]["verdict"], best["pr_auc_difference"]["verdict"]) == ("ahead", "ahead")
        assert best["rce_difference"]["value"] == pytest.approx(best["rce"] - noise["rce"])
        assert "rce_difference" not in noise
    positives = sum(int(day.labels[:, 0].sum()) for day in records.batches(records.days[4:]))
    assert found["truth"]["like"]["evaluated_positives"] == positives


def test_on_real_data_the_labels_are_what_is_true(make_records: Callable[[int, int], RecordSet]) -> None:
    """Without reachable probabilities figures are those of the labels, and stand inside their intervals."""
    records = make_records(2, 3_000)
    judged = judge({"truth": _truth, "noise": _noise}, records, records.days)
    real = replace(judged, truth=judged.labels, simulated=False)
    found = figures(real, records.schema.head_names, against="noise", draws=100, seed=1)
    for j, head in enumerate(records.schema.head_names):
        best = found["truth"][head]
        assert best["rce"] == pytest.approx(
            relative_cross_entropy(judged.labels[:, j], judged.predicted["truth"][:, j])
        )
        assert best["rce_low"] < best["rce"] < best["rce_high"]
        assert best["pr_auc_low"] < best["pr_auc"] < best["pr_auc_high"]
        assert best["rce_difference"]["verdict"] == "ahead"
        assert "reachable_rce" not in best
