"""Discretised features as a thermometer code: which bits there are, and what each adds.

A discretised feature through a linear layer is a step function of its value. With one bit for `x >= -inf`, which says
that it is present, and one for each `x >= boundary`, the weight of the bin is the sum of the steps taken; NaN compares
false everywhere and so contributes nothing. A comparison and a product with a constant matrix is what CPUs do best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_export.weights import Binned, Categorical, Floats, GroupWeights

Precision = Literal["float32", "int8"]

# A categorical with more categories costs less as a row gathered than as this many bits.
CATEGORIES_AS_BITS_MAX = 64


@dataclass(frozen=True)
class Thermometer:
    """All bits of one group's table as one rectangle.

    Features have unequal numbers of thresholds: each takes as many columns of the rectangle as it fills, so that
    little of it is padding and one comparison makes all bits.

    Attributes:
        columns: [C], the column of the table that each column of the rectangle compares.
        thresholds: [J, C]; +inf where there is nothing to compare with.
        differences: [J * C, K] float32 or int8, what each bit adds; zero where there is nothing to compare with.
        scales: [K], what int8 sums are to be multiplied by; None for float32.
    """

    columns: NDArray[np.int64]
    thresholds: Floats
    differences: NDArray[Any]
    scales: Floats | None


def plan_thermometer(weights: GroupWeights, precision: Precision) -> Thermometer | None:
    """The thermometer of a group's discretised features and small categoricals; None where it has none of these.

    In int8, what is rounded is the cumulative weight, so that a feature's error does not grow with the thresholds
    below its value. A rounded difference may then be one more than the difference rounded: scales leave room for it.
    """
    features = [*weights.binned, *(as_binned(c) for c in weights.categoricals if not is_large(c))]
    if not features:
        return None
    cumulative = [feature.weights.astype(np.float64) for feature in features]
    if precision == "float32":
        return _arrange(features, [_steps(c).astype(np.float32) for c in cumulative], None)
    largest = np.max([np.abs(_steps(c)).max(axis=0) for c in cumulative], axis=0)
    scales = (np.where(largest > 0, largest, 1.0) / 126).astype(np.float32)
    return _arrange(features, [_steps(np.rint(c / scales)).astype(np.int8) for c in cumulative], scales)


def is_large(categorical: Categorical) -> bool:
    """Whether the categorical is better gathered than turned into bits."""
    return len(categorical.weights) > CATEGORIES_AS_BITS_MAX


def as_binned(categorical: Categorical) -> Binned:
    """The same function of the same column, with boundaries 1, 2, ... V-1."""
    boundaries = np.arange(1, len(categorical.weights), dtype=np.float32)
    return Binned(categorical.column, boundaries, categorical.weights)


def _steps(cumulative: NDArray[np.float64]) -> NDArray[np.float64]:
    """[B, K] -> [B, K]: what each threshold adds to the one before it."""
    return np.diff(cumulative, axis=0, prepend=0.0)


def _arrange(features: Sequence[Binned], steps: Sequence[NDArray[Any]], scales: Floats | None) -> Thermometer:
    lengths = np.array([len(s) for s in steps])
    # The height that makes the fewest bits; picking a column costs about as much as one bit more.
    height = min(range(lengths.max(), 0, -1), key=lambda j: int(np.ceil(lengths / j).sum()) * (j + 1))
    parts = [(i, start) for i, length in enumerate(lengths) for start in range(0, length, height)]
    thresholds = np.full((height, len(parts)), np.inf, np.float32)
    differences = np.zeros((height, len(parts), steps[0].shape[1]), steps[0].dtype)
    for column, (i, start) in enumerate(parts):
        part = np.concatenate([[-np.inf], features[i].boundaries])[start : start + height]
        thresholds[: len(part), column] = part
        differences[: len(part), column] = steps[i][start : start + height]
    columns = np.array([features[i].column for i, _ in parts], np.int64)
    return Thermometer(columns, thresholds, differences.reshape(thresholds.size, -1), scales)
