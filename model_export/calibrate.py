"""From a net's probabilities to true ones: isotonic regression of each head as a few knots.

The sampling is undone by its formula. What that leaves is mended by the blocks of the pool-adjacent-violators solution
(scikit-learn's), at their mean prediction and mean label, with lines in between in the log odds: few blocks, of many
events each, say more than many, and the curve between them is known. Blocks are joined, which keeps them rising, until
each holds enough of both classes and stands apart from its neighbour: a block of few events says little, and a steep
line would make noise of rounding.

A head with too few positives for that can have two numbers fitted instead (`fit_logistic`).

A graph takes the knots as they are (`model_export.graph_calibration`): lines in the log odds are what it draws.

The regression sees rows counted by score (`ScoreCounts`): memory does not grow with rows, and counts of parts of the
data add up to the counts of all of it.

Decided: scores of one bucket are one point before the regression, so their order has no part. NaN is an error. Constant
predictions give one knot. A head with too few events can not be fitted: `prior_correction` undoes the sampling alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import isotonic_regression
from sklearn.linear_model import LogisticRegression

from model_export.sampling import prior_corrected
from model_export.weights import Floats, Knots

# Bits of a float32 score that do not tell buckets apart: of its 23 after the point 12 are left, so the scores of a
# bucket are at most 2^-12 of themselves apart. Knots stand four times as far apart.
_BITS_JOINED = 11
# Neighbouring blocks are at least this share of their x apart.
DISTANCE_MIN = 1e-3
# A fitted line in the log odds rises at least so much: probabilities must rise.
SLOPE_MIN = 0.05

# Leaves probabilities as they are.
IDENTITY = Knots(np.zeros(1, np.float32), np.zeros(1, np.float32))


class Blocks(NamedTuple):
    """An isotonic regression: B blocks at their mean prediction and their mean label, float32 [B], strictly rising."""

    x: Floats
    y: Floats


@dataclass(frozen=True)
class ScoreCounts:
    """One head's rows counted by score: B buckets of neighbouring scores, rising, none of them empty.

    `ScoreCounts.of(a) + ScoreCounts.of(b)` is `ScoreCounts.of(a and b)` to the last bit: a bucket's scores lie between
    two powers of two, so their float64 sum is exact up to 2^29 rows. There are at most 2^19 buckets.

    Attributes:
        buckets: uint32 [B], the score's bits without the last ones.
        rows: int64 [B].
        score_sums: float64 [B].
        positives: int64 [B].
    """

    buckets: NDArray[np.uint32]
    rows: NDArray[np.int64]
    score_sums: NDArray[np.float64]
    positives: NDArray[np.int64]

    @staticmethod
    def of(scores: NDArray[np.float32], labels: NDArray[np.uint8]) -> ScoreCounts:
        """Counts raw probabilities [n] with labels [n], 0 or 1; raises ValueError for a score outside [0, 1] or NaN."""
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError("a prediction is NaN or outside 0 to 1")
        scores = scores + np.float32(0)  # -0 becomes 0, whose bits are the smallest
        buckets = scores.view(np.uint32) >> np.uint32(_BITS_JOINED)
        ones = np.ones(len(scores), np.int64)
        return _summed(buckets, ones, scores.astype(np.float64), labels.astype(np.int64))

    def __add__(self, other: ScoreCounts) -> ScoreCounts:
        """The counts of both."""
        return _summed(
            np.concatenate([self.buckets, other.buckets]),
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.score_sums, other.score_sums]),
            np.concatenate([self.positives, other.positives]),
        )

    @property
    def events(self) -> tuple[int, int]:
        """(positives, negatives) of all rows."""
        positives = int(self.positives.sum())
        return positives, int(self.rows.sum()) - positives

    @property
    def cumulative_error(self) -> float:
        """How many positives the regression over buckets may be off by, summed over the rows up to any score.

        The regression is the greatest convex function below the cumulative positives. It sees these at the ends of
        buckets alone; between two ends they dip below their chord by at most positives x negatives / rows of the
        bucket, and lowering the function by the largest dip puts it below all points again.
        """
        return float(np.max(self.positives * (self.rows - self.positives) / self.rows, initial=0.0))


def _summed(
    buckets: NDArray[np.uint32],
    rows: NDArray[np.int64],
    score_sums: NDArray[np.float64],
    positives: NDArray[np.int64],
) -> ScoreCounts:
    order = np.argsort(buckets, kind="stable")
    buckets = buckets[order]
    starts = np.flatnonzero(np.diff(buckets, prepend=buckets[:1] - np.uint32(1)))
    rows, score_sums, positives = (np.add.reduceat(a[order], starts) for a in (rows, score_sums, positives))
    return ScoreCounts(buckets[starts], rows, score_sums, positives)


def fit_calibration(counts: ScoreCounts, rate: float, events_min: int, blocks_max: int) -> Knots:
    """Calibrates one head: isotonic regression on what undoing the sampling leaves, joined in the log odds.

    A knot for each block of `fit_isotonic`; beyond the first and the last in parallel to the undone sampling.

    Args:
        counts: Of raw probabilities, on rows at the natural rate.
        rate: Share of its negatives that the head was trained on, in (0, 1].
        events_min: As of `fit_isotonic`, which says what is refused.
        blocks_max: Likewise.
    """
    scores = counts.score_sums / counts.rows
    blocks = fit_isotonic(
        replace(counts, score_sums=counts.rows * prior_corrected(scores, rate)), events_min, blocks_max
    )
    # The formula of sampling multiplies odds by the rate.
    x, y = (_logit(p.astype(np.float64)).astype(np.float32) for p in blocks)
    x -= np.float32(np.log(rate))
    # Where rounding leaves no rise.
    rising = np.flatnonzero((np.diff(x, prepend=-np.inf) > 0) & (np.diff(y, prepend=-np.inf) > 0))
    return Knots(x[rising], y[rising])


def fit_logistic(counts: ScoreCounts, rate: float) -> Knots:
    """Calibrates one head by two numbers: log odds a * z + b, z those that undoing the sampling leaves (Platt 1999).

    a (at least SLOPE_MIN) and b have the greatest likelihood. The line goes from the lowest to the highest score seen;
    beyond, it is in parallel to the undone sampling.

    Args:
        counts: Of raw probabilities, on rows at the natural rate; of both classes.
        rate: Share of its negatives that the head was trained on, in (0, 1].
    """
    scores = counts.score_sums / counts.rows
    z = _logit(scores) + np.log(rate)
    middle = np.average(z, weights=counts.rows)
    line = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1_000)
    labels = np.repeat([1, 0], len(z))
    weights = np.concatenate([counts.positives, counts.rows - counts.positives])
    line.fit(np.tile(z - middle, 2)[:, np.newaxis], labels, weights)
    slope = max(float(line.coef_[0, 0]), SLOPE_MIN)
    ends = _logit(np.unique(scores[[0, -1]]))
    return Knots(
        ends.astype(np.float32),
        (slope * (ends + np.log(rate) - middle) + float(line.intercept_[0])).astype(np.float32),
    )


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log odds of probabilities, 0 and 1 taken as a millionth away."""
    inside = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(inside / (1 - inside)))


def fit_isotonic(counts: ScoreCounts, events_min: int, blocks_max: int) -> Blocks:
    """Isotonic regression of one head on rows at the natural rate.

    Args:
        counts: Of raw probabilities.
        events_min: Positives, and negatives, that each block must have; at least 1.
        blocks_max: Most blocks: with many events a block needs more of them.

    Raises:
        ValueError: There are fewer than `events_min` of either class.
    """
    positives, negatives = counts.events
    events = min(positives, negatives)
    if events < max(events_min, 1):
        raise ValueError(f"{positives} positives and {negatives} negatives: too few of one")
    rows, x_sums, y_sums = _pooled(counts)
    needed = max(events_min, -(-events // blocks_max))
    return _joined(rows, x_sums, y_sums, needed)


def apply_knots(knots: Knots, raw: NDArray[np.float32]) -> NDArray[np.float64]:
    """Calibrated probabilities of raw ones, any shape: the map that `Knots` defines, in float64."""
    x, y, q = knots.x.astype(np.float64), knots.y.astype(np.float64), raw.astype(np.float64)
    with np.errstate(divide="ignore"):  # 0 and 1 stay what they are
        odds = np.log(q) - np.log1p(-q)
    beyond = np.minimum(odds - x[0], 0) + np.maximum(odds - x[-1], 0)
    return np.asarray(1 / (1 + np.exp(-(np.interp(odds, x, y) + beyond))))


def prior_correction(rate: float) -> Knots:
    """The map of `sampling.prior_corrected` for one head, as a knot; `rate` in (0, 1]."""
    return Knots(np.zeros(1, np.float32), np.array([np.log(rate)], np.float32))


def _pooled(counts: ScoreCounts) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Rows, sum of predictions and sum of labels of each block of the isotonic regression, rising."""
    fitted = isotonic_regression(counts.positives / counts.rows, sample_weight=counts.rows.astype(np.float64))
    starts = np.flatnonzero(np.diff(fitted, prepend=-1.0))
    rows, x_sums, y_sums = (
        np.add.reduceat(a.astype(np.float64), starts) for a in (counts.rows, counts.score_sums, counts.positives)
    )
    return rows, x_sums, y_sums


def _joined(
    rows: NDArray[np.float64], x_sums: NDArray[np.float64], y_sums: NDArray[np.float64], events_min: int
) -> Blocks:
    """The blocks joined from the left until each has its events and its distance from the one before."""
    x: list[np.float32] = []
    y: list[np.float32] = []
    block = np.zeros(3)  # rows, sum of predictions, sum of labels
    last = np.zeros(3)
    for part in zip(rows, x_sums, y_sums, strict=True):
        block += part
        block_x, block_y = np.float32(block[1] / block[0]), np.float32(block[2] / block[0])
        if min(block[2], block[0] - block[2]) < events_min:
            continue
        if x and (block_x < x[-1] * (1 + DISTANCE_MIN) or block_y <= y[-1]):
            continue
        x.append(block_x)
        y.append(block_y)
        last, block = block, np.zeros(3)
    # What is left over at the top belongs to the last block.
    last += block
    x[-1], y[-1] = np.float32(last[1] / last[0]), np.float32(last[2] / last[0])
    return Blocks(np.array(x, np.float32), np.array(y, np.float32))
