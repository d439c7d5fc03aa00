"""Which head is calibrated how, on scores made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from model_export.calibrate import ScoreCounts, apply_knots
from model_export.steps.calibrate import Parameters, fit_head


@pytest.mark.parametrize(
    ("plan", "method", "expected"),
    [
        (Parameters(positives_min=51), "prior_correction", 1 / 11),
        (Parameters(positives_min=51, isotonic_positives_min=100), "prior_correction", 1 / 11),
        (Parameters(positives_min=50, isotonic_positives_min=51), "logistic", 0.05),
        (Parameters(positives_min=50, isotonic_positives_min=50), "isotonic", 0.05),
        (Parameters(positives_min=50), "isotonic", 0.05),
    ],
)
def test_the_method_hangs_on_the_positives(plan: Parameters, method: str, expected: float) -> None:
    """By hand: q = 0.5 at rate 0.1 is 1/11 once the sampling is undone; 50 in 1,000 are positive."""
    raw = np.full(1_000, 0.5, np.float32)
    labels = (np.arange(1_000) % 20 == 0).astype(np.uint8)

    found, knots = fit_head(ScoreCounts.of(raw, labels), 0.1, plan)

    assert found == method
    assert float(apply_knots(knots, raw[:1])[0]) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("isotonic_positives_min", [0, 1_000])
def test_a_head_with_hardly_a_negative_has_its_sampling_undone(isotonic_positives_min: int) -> None:
    """One class alone fits nothing."""
    raw, labels = np.full(300, 0.5, np.float32), np.ones(300, np.uint8)

    plan = Parameters(isotonic_positives_min=isotonic_positives_min)

    assert fit_head(ScoreCounts.of(raw, labels), 1.0, plan)[0] == "prior_correction"
