"""Metrics against slow sums, drawn labels and scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, log_loss

from model_export.evaluate import (
    calibration_error,
    cross_entropy,
    pr_auc,
    reachable_figures,
    relative_cross_entropy,
    reliability,
)

Array = np.ndarray[Any, np.dtype[Any]]


def draw(rows: int, seed: int = 0) -> tuple[Array, Array]:
    """(true probabilities, predictions that follow them roughly)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2, 1.5, rows)
    predicted = 1 / (1 + np.exp(-logits - rng.normal(0, 0.5, rows)))
    return (1 / (1 + np.exp(-logits))).astype(np.float32), predicted.astype(np.float32)


def test_rce_by_hand() -> None:
    """Labels 1 0 0 0 predicted as .4 .2 .2 .2, against always .25."""
    labels, predicted = np.array([1, 0, 0, 0]), np.array([0.4, 0.2, 0.2, 0.2])
    entropy = -(math.log(0.4) + 3 * math.log(0.8)) / 4
    straw = -(math.log(0.25) + 3 * math.log(0.75)) / 4

    assert cross_entropy(labels, predicted) == pytest.approx(entropy)
    assert relative_cross_entropy(labels, predicted) == pytest.approx(100 * (1 - entropy / straw))


def test_cross_entropy_of_labels_is_scikit_learns_log_loss() -> None:
    """The same figure from another hand."""
    p, predicted = draw(1_000)
    labels = (np.random.default_rng(1).random(1_000) < p).astype(np.uint8)

    assert cross_entropy(labels, predicted) == pytest.approx(log_loss(labels, predicted.astype(np.float64)))


def test_expected_figures_are_those_of_many_drawn_labels() -> None:
    """RCE and PR-AUC under probabilities are the mean of what drawn labels give."""
    p, predicted = draw(500)
    rng = np.random.default_rng(2)
    labels = (rng.random((400, 500)) < p).astype(np.uint8)
    drawn_entropies = [cross_entropy(drawn, predicted) for drawn in labels]
    drawn_precisions = [average_precision_score(drawn, predicted) for drawn in labels]

    assert cross_entropy(p, predicted) == pytest.approx(
        np.mean(drawn_entropies), abs=4 * float(np.std(drawn_entropies)) / math.sqrt(400)
    )
    # The mean of ratios is near the ratio of means, not equal to it.
    assert pr_auc(p, predicted) == pytest.approx(np.mean(drawn_precisions), rel=0.03)


def test_pr_auc_of_labels_is_scikit_learns() -> None:
    """A label is a probability of 0 or 1."""
    p, predicted = draw(1_000)
    labels = (np.random.default_rng(1).random(1_000) < p).astype(np.uint8)

    assert pr_auc(labels, predicted) == pytest.approx(average_precision_score(labels, predicted))


def test_nothing_beats_the_probability_itself() -> None:
    """The reachable figure is the best one, and share is counted from it."""
    p, predicted = draw(5_000)
    rce = relative_cross_entropy(p, predicted)

    figures = reachable_figures(p, rce)

    assert rce < figures["reachable_rce"]
    assert figures["share"] == pytest.approx(rce / figures["reachable_rce"])
    assert reachable_figures(p, relative_cross_entropy(p, p))["share"] == pytest.approx(1)
    assert pr_auc(p, predicted) < figures["reachable_pr_auc"]


@given(st.floats(0.01, 0.99))
def test_the_constant_has_rce_zero(share: float) -> None:
    """Always predicting the mean is the straw man."""
    p = np.array([share, share / 2])

    assert relative_cross_entropy(p, np.full(2, p.mean())) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only_has_no_rce(label: int) -> None:
    """There is no straw man to compare with."""
    labels = np.full(5, label)

    assert math.isnan(relative_cross_entropy(labels, np.full(5, 0.5)))


def test_no_positives_have_no_precision_and_no_calibration_error() -> None:
    """Both divide by them."""
    assert math.isnan(pr_auc(np.zeros(5), np.full(5, 0.5)))
    assert math.isnan(calibration_error(np.zeros(5), np.full(5, 0.5)))


def test_certainty_that_was_wrong_costs_a_bounded_amount() -> None:
    """Predictions are held 1e-7 from 0 and 1."""
    assert cross_entropy(np.array([1]), np.array([0.0])) == pytest.approx(-math.log(1e-7))


def test_calibration_error_by_hand() -> None:
    """Two bins of two rows: gaps .1 and .2, base rate .5."""
    predicted = np.array([0.2, 0.8, 0.3, 0.6])
    p = np.array([0.2, 0.9, 0.1, 0.8])

    assert calibration_error(p, predicted, bins=2) == pytest.approx((0.1 + 0.15) / 2 / 0.5)


def test_true_probabilities_have_no_calibration_error() -> None:
    """And a prediction 10 % too high everywhere has one of 10 %."""
    p, _ = draw(2_000)

    assert calibration_error(p, p) == pytest.approx(0, abs=1e-7)
    assert calibration_error(p, p * 1.1) == pytest.approx(0.1, rel=1e-4)


def test_reliability_by_hand() -> None:
    """Two bins of two rows, in order of the prediction."""
    predicted, p = np.array([0.2, 0.8, 0.3, 0.6]), np.array([0.2, 0.9, 0.1, 0.8])

    mean_predicted, mean_p = reliability(p, predicted, bins=2)

    assert mean_predicted == pytest.approx([0.25, 0.7])
    assert mean_p == pytest.approx([0.15, 0.85])


def test_reliability_of_labels_is_scikit_learns() -> None:
    """The same points from another hand, where no prediction comes twice."""
    p, _ = draw(1_000)
    predicted = np.linspace(0.01, 0.9, 1_000)
    labels = (np.random.default_rng(1).random(1_000) < p).astype(np.uint8)
    rates, means = calibration_curve(labels, predicted, n_bins=10, strategy="quantile")

    mean_predicted, mean_p = reliability(labels, predicted, bins=10)

    assert mean_predicted == pytest.approx(means)
    assert mean_p == pytest.approx(rates)


def test_fewer_rows_than_bins_are_a_bin_each() -> None:
    """No bin is empty."""
    assert reliability(np.array([0, 1]), np.array([0.2, 0.1]))[0] == pytest.approx([0.1, 0.2])
