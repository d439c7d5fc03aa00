"""The bootstrap by viewer, against the plain definitions and against what clusters must do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_export.baselines.bootstrap import Difference, drawn_pr_auc, drawn_rce, interval
from model_export.evaluate import pr_auc, relative_cross_entropy

DRAWS = 400


def _data(rows: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """(viewers, labels, predictions of a good and a worse model, some of them tied)."""
    rng = np.random.default_rng(seed)
    viewers = rng.integers(0, max(rows // 5, 1), rows)
    true = np.clip(rng.beta(1, 4, rows), 0.01, 0.99)
    noisy = np.clip(true + rng.normal(0, 0.1, rows), 0.01, 0.99)
    return viewers, (rng.random(rows) < true).astype(np.float64), np.stack([true, noisy], axis=1).round(2)


@given(seed=st.integers(0, 50), rows=st.integers(20, 80))
def test_each_draw_has_the_figure_of_its_rows(seed: int, rows: int) -> None:
    """Rebuilt row by row: the drawn viewers' rows, repeated as often as drawn, through the plain definitions."""
    viewers, p, predicted = _data(rows, seed)
    rce, auc = (f(viewers, p, predicted, draws=3, seed=seed) for f in (drawn_rce, drawn_pr_auc))
    rng = np.random.default_rng(seed)
    distinct = np.unique(viewers)
    for draw in range(3):
        chosen = distinct[rng.integers(0, len(distinct), len(distinct))]
        taken = np.concatenate([np.flatnonzero(viewers == viewer) for viewer in chosen])
        for model in range(2):
            with np.errstate(invalid="ignore", divide="ignore"):
                expected = relative_cross_entropy(p[taken], predicted[taken, model])
            np.testing.assert_allclose(rce[draw, model], expected, rtol=1e-9)
            np.testing.assert_allclose(auc[draw, model], pr_auc(p[taken], predicted[taken, model]), rtol=1e-9)


def test_labels_are_probabilities_of_zero_and_one() -> None:
    """As bytes, which is how labels come, they give the figures that they give as numbers with a point."""
    viewers, p, predicted = _data(300, 6)
    for drawn in (drawn_rce, drawn_pr_auc):
        np.testing.assert_array_equal(
            drawn(viewers, p.astype(np.uint8), predicted, 5, 1), drawn(viewers, p, predicted, 5, 1)
        )


def test_more_rows_of_the_same_viewers_are_no_more_evidence() -> None:
    """Every row five times: the interval is as wide as before. As rows of new viewers they would narrow it."""
    viewers, p, predicted = _data(1_000, 1)
    low, high = interval(drawn_rce(viewers, p, predicted, DRAWS, 2)[:, 0])
    five = [np.concatenate([a] * 5) for a in (viewers, p, predicted)]
    assert interval(drawn_rce(five[0], five[1], five[2], DRAWS, 2)[:, 0]) == pytest.approx((low, high))
    others = np.concatenate([viewers + 10_000 * i for i in range(5)])
    low_others, high_others = interval(drawn_rce(others, five[1], five[2], DRAWS, 2)[:, 0])
    assert high_others - low_others == pytest.approx((high - low) / 5**0.5, rel=0.2)


def test_a_difference_is_judged_in_pairs() -> None:
    """The better model is ahead though the two intervals overlap; a model against itself is a tie of width 0."""
    viewers, p, predicted = _data(2_000, 3)
    drawn = drawn_rce(viewers, p, predicted, DRAWS, 4)
    better, worse = interval(drawn[:, 0]), interval(drawn[:, 1])
    assert better[0] < worse[1]
    low, high = interval(drawn[:, 0] - drawn[:, 1])
    assert low > 0
    assert high - low < worse[1] - worse[0]
    assert interval(drawn[:, 0] - drawn[:, 0]) == (0, 0)


def test_verdicts() -> None:
    """An interval that touches zero is a tie."""
    assert Difference(1.0, 0.5, 1.5).verdict == "ahead"
    assert Difference(-1.0, -1.5, -0.5).verdict == "behind"
    assert Difference(1.0, 0.0, 2.0).verdict == "tie"


def test_draws_without_a_positive_have_no_figure() -> None:
    """One positive in all: about a third of the draws miss it, and the interval is that of the others."""
    viewers, p = np.arange(50), np.zeros(50)
    p[7] = 1
    predicted = np.linspace(0.01, 0.5, 50)[:, np.newaxis]
    for drawn in (drawn_rce(viewers, p, predicted, DRAWS, 5), drawn_pr_auc(viewers, p, predicted, DRAWS, 5)):
        assert 0.25 < np.isnan(drawn).mean() < 0.5
        assert np.isfinite(interval(drawn[:, 0])).all()
    assert np.isnan(interval(np.full(3, np.nan))).all()
