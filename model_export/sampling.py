"""Which impressions are looked at: random numbers that belong to rows, and the sampling of negatives.

Every head is trained on all its positives and a share of its negatives of its own. One uniform number per impression
decides for all heads, so the negatives of a head with a smaller rate are among those of a head with a larger one.
Sampling negatives at rate r multiplies the odds that a net learns by exactly 1 / r, which `prior_corrected` undoes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def row_uniform(ids: Mapping[str, NDArray[np.int64]], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each impression, the same in every pass over the data and in any order of rows.

    Args:
        ids: `viewer_id`, `tweet_id` and `session`, int64 [n]: together they name an impression.
        seed: Numbers under two seeds are independent.

    Returns:
        [n].
    """
    state = np.full(len(ids["viewer_id"]), seed, np.uint64)
    for name in ("viewer_id", "tweet_id", "session"):
        state = _mix(state ^ ids[name].astype(np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of SplitMix64 (Steele, Lea and Flood 2014): a bijection that spreads every bit over all."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def negative_rates(positives: NDArray[np.int64], rows: int, negatives_per_positive: float) -> NDArray[np.float64]:
    """The share of its negatives that each head keeps: at most 1, and 1 for a head without positives.

    Args:
        positives: [H], out of `rows` impressions.
        rows: Impressions before sampling.
        negatives_per_positive: What is aimed at; positive.
    """
    negatives = np.maximum(rows - positives, 1)
    rates = np.minimum(1.0, negatives_per_positive * positives / negatives)
    return np.where(positives == 0, 1.0, rates)


def used_by_head(
    labels: NDArray[np.uint8], uniform: NDArray[np.float64], rates: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which head trains on which row: labels [n, H], uniform [n], rates [H] -> [n, H]."""
    return np.asarray((labels == 1) | (uniform[:, np.newaxis] < rates))


def prior_corrected(sampled: NDArray[np.float64], rate: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities at the natural rate from those of a world with all positives and `rate` of the negatives.

    p = r q / (1 - q + r q): the odds times r.

    Args:
        sampled: q in [0, 1]; any shape.
        rate: r in (0, 1]; broadcasts against `sampled`.
    """
    odds_scaled = rate * sampled
    return np.asarray(odds_scaled / (1.0 - sampled + odds_scaled))
