"""Discretised features as a few numbers each, where a net's bins lie in a space of few directions.

Where the rows of a feature's bins have rank d, they are `codes [bins, d] @ directions [d, K]`
(`model_export.first_layer.SpannedRows` trains them so), and the layer costs d columns of a product for a feature, not
one for every bin. A code is a step function of the value: the sum of the steps at the thresholds that it reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from model_export.graph_table import Table, Term
from model_export.graph_thermometer import Precision, as_binned, is_large
from model_export.weights import Binned, Floats, GroupWeights

# Directions that hold less than this share of the first one's length are rounding of float32.
_RANK_TOLERANCE = 1e-6
# Measured in int8 multiply-adds: a float32 one, and all that is done for a threshold and a Tweet to make codes.
FLOAT32_COST = 2.2
THRESHOLD_COST = 30
# Features of few bins get a rectangle of their own where that saves this share of the thresholds.
SPLIT_SHARE = 0.1
_ZERO_POINT = 128

# Codes [bins, d] and directions [d, K] of a feature.
Factors = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Codes:
    """The codes of C features as one rectangle.

    Attributes:
        columns: [C], the column of the table that each feature is in.
        thresholds: [C, J]; +inf where there is nothing to compare with.
        steps: [C, d, J] float32 or int8: what reaching a threshold adds to each code; zero where there is nothing.
        directions: [C * d, K], what a unit of each code adds; the scales of int8 codes are in them.
    """

    columns: NDArray[np.int64]
    thresholds: Floats
    steps: NDArray[Any]
    directions: Floats


def plan_codes(weights: GroupWeights, precision: Precision) -> list[Codes]:
    """The codes of a group's discretised features and small categoricals; empty where a thermometer costs less.

    In int8, what is rounded is the cumulative code, so a code is off by at most half a scale.
    """
    features = [*weights.binned, *(as_binned(c) for c in weights.categoricals if not is_large(c))]
    if not features:
        return []
    factors = [_factors(feature.weights.astype(np.float64)) for feature in features]
    rank = max(codes.shape[1] for codes, _ in factors)
    if not _codes_pay(features, rank):
        return []
    return [
        _rectangle([features[i] for i in chosen], [factors[i] for i in chosen], rank, precision)
        for chosen in split_by_height(np.array([len(feature.weights) for feature in features]))
    ]


def split_by_height(heights: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Features with so many thresholds each, by number: all in one rectangle, or the low ones in one apart."""

    def area(low: np.int64) -> int:
        below = int((heights <= low).sum())
        return int(below * low + (len(heights) - below) * heights.max())

    low = min(np.unique(heights), key=area)
    if area(low) > (1 - SPLIT_SHARE) * area(heights.max()):
        return [np.arange(len(heights))]
    return [np.flatnonzero(heights <= low), np.flatnonzero(heights > low)]


def _rectangle(features: Sequence[Binned], factors: Sequence[Factors], rank: int, precision: Precision) -> Codes:
    height, units = max(len(f.weights) for f in features), features[0].weights.shape[1]
    thresholds = np.full((len(features), height), np.inf, np.float32)
    steps = np.zeros((len(features), rank, height), np.float32 if precision == "float32" else np.int8)
    directions = np.zeros((len(features), rank, units))
    for i, (feature, (codes, own_directions)) in enumerate(zip(features, factors, strict=True)):
        bins, own_rank = codes.shape
        if precision == "int8":
            largest = np.abs(_steps(codes)).max(axis=0)
            # A rounded step may be one more than the step rounded.
            scales = np.where(largest > 0, largest, 1.0) / 126
            codes, own_directions = np.rint(codes / scales), own_directions * scales[:, np.newaxis]
        thresholds[i, :bins] = np.concatenate([[-np.inf], feature.boundaries])
        steps[i, :own_rank, :bins] = _steps(codes).T
        directions[i, :own_rank] = own_directions
    columns = np.array([feature.column for feature in features], np.int64)
    return Codes(columns, thresholds, steps, directions.reshape(-1, units).astype(np.float32))


def add_codes(table: Table, codes: Codes, name: str) -> Term:
    """Adds the codes of some of a table's features to the graph, under this name."""
    graph = table.graph
    values = table.pick(codes.columns[:, np.newaxis], name)  # [C, 1, rows]
    thresholds = graph.constant(f"{name}/thresholds", codes.thresholds[:, :, np.newaxis])
    reached = graph.node("GreaterOrEqual", [values, thresholds], f"{name}/reached")  # [C, J, rows]
    if codes.steps.dtype == np.int8:
        # Unsigned on the left: the other way round onnxruntime takes ten times as long on CPUs without VNNI.
        bits = graph.cast(reached, TensorProto.INT8, f"{name}/bits")
        steps = graph.constant(f"{name}/steps", (codes.steps.astype(np.int16) + _ZERO_POINT).astype(np.uint8))
        zero_point = graph.constant(f"{name}/zero_point", np.array(_ZERO_POINT, np.uint8))
        integers = graph.node("MatMulInteger", [steps, bits, zero_point], f"{name}/integers")
        found = graph.cast(integers, TensorProto.FLOAT, f"{name}/found")  # [C, d, rows]
    else:
        bits = graph.cast(reached, TensorProto.FLOAT, f"{name}/bits")
        found = graph.node("MatMul", [graph.constant(f"{name}/steps", codes.steps), bits], f"{name}/found")
    shape = graph.constant(f"{name}/shape", np.array([len(codes.directions), -1], np.int64))
    return Term(graph.node("Reshape", [found, shape], f"{name}/rows"), codes.directions)


def _factors(rows: NDArray[np.float64]) -> Factors:
    """[bins, K] -> codes [bins, d], directions [d, K], whose product it is; d is its rank, at least 1."""
    left, lengths, right = np.linalg.svd(rows, full_matrices=False)
    rank = max(1, int((lengths > _RANK_TOLERANCE * lengths[0]).sum()))
    return left[:, :rank], lengths[:rank, np.newaxis] * right[:rank]


def _codes_pay(features: Sequence[Binned], rank: int) -> bool:
    height, units = max(len(f.weights) for f in features), features[0].weights.shape[1]
    as_codes = len(features) * (rank * units * FLOAT32_COST + height * THRESHOLD_COST)
    as_bits = sum(len(f.weights) for f in features) * units
    return bool(as_codes < as_bits)


def _steps(cumulative: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.diff(cumulative, axis=0, prepend=0.0)
