"""Equal-frequency discretization of continuous and binary features.

A feature's boundaries are values that were seen; bin = number of boundaries <= value, so that a boundary opens its
bin. NaN is absent: it has no bin and no part in the fit. Zero is a value like any other. All is float32 from the fit
on, so that no rounding moves a value over a boundary between training and serving.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# With this probability no quantile of a feature is further off than its `rank_error`.
CONFIDENCE = 0.999


@dataclass(frozen=True)
class FeatureBins:
    """What the fit saw of one feature, and the bins that it made.

    Attributes:
        boundaries: Strictly increasing; none for a feature of one value (its one bin says that it is present);
            None for a feature that was never present, which has no bins and contributes nothing.
        histogram: Weight of the sample per bin, `len(boundaries) + 1` numbers.
        missing_rate: Share of the sample's weight where the feature is absent.
        rank_error: How far, as a share of the present values, any boundary's rank in all the data may be from its rank
            in the sample (Dvoretzky-Kiefer-Wolfowitz, at CONFIDENCE). 1 where nothing was seen.
        smallest: Present value; None where there is none.
        largest: Likewise.
    """

    boundaries: tuple[float, ...] | None
    histogram: tuple[float, ...]
    missing_rate: float
    rank_error: float
    smallest: float | None
    largest: float | None


@dataclass(frozen=True)
class Discretizer:
    """Bins by feature, under the name `<group>.<feature>`."""

    features: dict[str, FeatureBins]

    def save(self, path: Path) -> None:
        """Writes JSON; the same discretizer gives the same bytes."""
        path.write_text(json.dumps({name: asdict(bins) for name, bins in self.features.items()}, indent=1))

    @staticmethod
    def load(path: Path) -> Discretizer:
        """Reads what `save` wrote; the boundaries come back bit for bit."""
        document: dict[str, Any] = json.loads(path.read_text())
        return Discretizer({name: _from_json(bins) for name, bins in document.items()})


def _from_json(bins: dict[str, Any]) -> FeatureBins:
    boundaries = bins["boundaries"]
    return FeatureBins(
        **bins
        | {"boundaries": None if boundaries is None else tuple(boundaries), "histogram": tuple(bins["histogram"])}
    )


def bin_of(values: Floats, boundaries: Floats) -> NDArray[np.int64]:
    """Number of boundaries <= value for each value [n]; -1 where it is NaN."""
    bins = np.searchsorted(boundaries, values, side="right")
    return np.where(np.isnan(values), -1, bins)


def fit_feature(values: Floats, weights: NDArray[np.float64], bins_max: int) -> FeatureBins:
    """Fits the bins of one feature.

    Args:
        values: [n], NaN = absent.
        weights: [n], not negative; a row of weight 0 is not there.
        bins_max: Most bins to make; there are fewer where there are fewer distinct values.

    Raises:
        ValueError: A value is infinite or a weight negative or not finite.
    """
    if np.isinf(values).any():
        raise ValueError("infinite values")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("weights must be finite and not negative")
    present = ~np.isnan(values) & (weights > 0)
    total = float(weights.sum())
    missing_rate = 1.0 if total == 0 else float(weights[~present].sum()) / total
    if not present.any():
        return FeatureBins(None, (), missing_rate, 1.0, None, None)
    values, weights = values[present].astype(np.float32), weights[present]
    boundaries = equal_frequency_boundaries(values, weights, bins_max)
    histogram = np.bincount(bin_of(values, boundaries), weights, len(boundaries) + 1)
    return FeatureBins(
        boundaries=tuple(boundaries.tolist()),
        histogram=tuple(histogram.tolist()),
        missing_rate=missing_rate,
        rank_error=_rank_error(weights),
        smallest=float(values.min()),
        largest=float(values.max()),
    )


def _rank_error(weights: NDArray[np.float64]) -> float:
    """Bound of Dvoretzky, Kiefer, Wolfowitz and Massart; weighted rows count as Kish's effective sample size.

    With equal weights it is proven, and a sample without replacement is only better. With others it is approximate.
    """
    effective_rows = float(weights.sum() ** 2 / (weights**2).sum())
    return min(1.0, math.sqrt(math.log(2 / (1 - CONFIDENCE)) / (2 * effective_rows)))


def equal_frequency_boundaries(values: Floats, weights: NDArray[np.float64], bins_max: int) -> Floats:
    """At most `bins_max - 1` boundaries that cut the values into bins of as equal weight as their ties allow.

    A value that alone outweighs its share of the bins (zero, in most counts) gets a bin of its own, and the others
    share the bins that are left: the tail behind a large mass at zero is still cut finely. Each bin closes at the
    value that brings its weight nearest to an equal share of what is left.

    Args:
        values: [n], n >= 1, finite.
        weights: [n], positive.
        bins_max: At least 1.

    Returns:
        Strictly increasing float32 values out of `values`, none of them the smallest.
    """
    distinct, inverse = np.unique(values, return_inverse=True)
    mass = np.bincount(inverse, weights).astype(np.float64)
    # What a value counts when shares are handed out: its weight, but no more than one bin's worth.
    capped = np.minimum(mass, _fair_share(mass, bins_max))
    mass_to, capped_to = np.cumsum(mass), np.cumsum(capped)
    starts: list[int] = []
    start = 0
    for bins_left in range(bins_max, 1, -1):
        behind = mass_to[start - 1] if start else 0.0
        capped_behind = capped_to[start - 1] if start else 0.0
        share = (capped_to[-1] - capped_behind) / bins_left
        last = int(np.searchsorted(mass_to, behind + share))
        # The bin ends with the value that reaches its share, or before it if that is nearer.
        if last > start and mass_to[last] - behind - share > share - (mass_to[last - 1] - behind):
            last -= 1
        start = last + 1
        if start >= len(distinct):
            break
        starts.append(start)
    return distinct[starts].astype(np.float32)


def _fair_share(mass: NDArray[np.float64], bins: int) -> float:
    """The weight c of a bin such that values capped at c fill `bins` of them: sum(min(mass, c)) = c * bins."""
    if len(mass) <= bins:
        return float(mass.min())
    ascending = np.sort(mass)
    below = np.concatenate([[0.0], np.cumsum(ascending)])
    for heavy in range(bins):
        share = float(below[len(mass) - heavy] / (bins - heavy))
        if ascending[len(mass) - heavy - 1] <= share:
            return share
    raise AssertionError("unreachable: with one bin left the rest weighs no more than its share")
