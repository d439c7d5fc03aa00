"""How sure a figure is: viewers drawn with replacement, again and again (Efron's bootstrap, by cluster).

A viewer's impressions are alike, so viewers are drawn, not impressions. All models are judged on the same draws: the
spread of a difference between two is that of the pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_export.evaluate import EPSILON

Doubles = NDArray[np.float64]

Verdict = Literal["ahead", "tie", "behind"]


@dataclass(frozen=True)
class Difference:
    """How far a figure of one model is above that of another, with a 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """A tie unless the interval is on one side of zero."""
        if self.low > 0:
            return "ahead"
        return "behind" if self.high < 0 else "tie"


def interval(drawn: Doubles) -> tuple[float, float]:
    """The middle 95 % of a figure over the draws; draws without a figure (NaN) are left out."""
    if np.isnan(drawn).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def drawn_rce(viewers: NDArray[np.int64], p: NDArray[Any], predicted: Doubles, draws: int, seed: int) -> Doubles:
    """RCE in percent of M models in each draw.

    Args:
        viewers: [n] ids.
        p: [n] of any dtype, a label or the probability of one; see `model_export.evaluate`.
        predicted: [n, M].
        draws: How many.
        seed: Of the draws.

    Returns:
        [draws, M]; NaN where a draw's mean p is 0 or 1.
    """
    p = p.astype(np.float64)
    q = np.clip(predicted, EPSILON, 1 - EPSILON)
    losses = -p[:, None] * np.log(q) - (1 - p[:, None]) * np.log1p(-q)
    distinct, viewer = np.unique(viewers, return_inverse=True)
    rows = np.column_stack([np.ones(len(p)), p, losses])
    sums = np.stack([np.bincount(viewer, column, len(distinct)) for column in rows.T], axis=1)
    drawn = np.stack([times @ sums for times in _times_drawn(len(distinct), draws, seed)])
    base = drawn[:, 1] / drawn[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -base * np.log(base) - (1 - base) * np.log1p(-base)
        return 100 * (1 - drawn[:, 2:] / drawn[:, :1] / entropy[:, None])


def drawn_pr_auc(viewers: NDArray[np.int64], p: NDArray[Any], predicted: Doubles, draws: int, seed: int) -> Doubles:
    """Average precision of M models in each draw: arguments and result as of `drawn_rce`."""
    distinct, viewer = np.unique(viewers, return_inverse=True)
    ranked = [_Ranked(p, column) for column in predicted.T]
    return np.array(
        [
            [model.average_precision(times[viewer]) for model in ranked]
            for times in _times_drawn(len(distinct), draws, seed)
        ]
    )


def _times_drawn(viewers: int, draws: int, seed: int) -> Iterator[Doubles]:
    """How often each viewer is drawn, for each draw."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(rng.integers(0, viewers, viewers), minlength=viewers).astype(np.float64)


class _Ranked:
    """One model's rows in falling order of its predictions: sorted once, weighed in each draw."""

    def __init__(self, p: NDArray[Any], predicted: Doubles) -> None:
        self._order = np.argsort(-predicted, kind="stable")
        self._p = p[self._order]
        # Rows with equal predictions come at once: each has the precision of the last of them.
        falling = -predicted[self._order]
        self._last_of_equals = np.searchsorted(falling, falling, side="right") - 1

    def average_precision(self, weights: Doubles) -> float:
        """Weights [n] by row; NaN where nothing is positive."""
        weights = weights[self._order]
        positives = weights * self._p
        total = positives.sum()
        if total == 0:
            return float("nan")
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = (np.cumsum(positives) / np.cumsum(weights))[self._last_of_equals]
        return float(positives @ np.nan_to_num(precision) / total)
