"""The first layer of the net as graph nodes: fast (thermometer) and plain (gather and sum) forms.

A discretised feature through a linear layer is a step function of its value. With one bit for each `x >= boundary`,
and `x >= -inf` for presence, the sum of the steps taken, each weighted by how much the weight changes there, is the
weight of the bin; NaN compares false everywhere and so contributes nothing. Bits times a constant matrix is what CPUs
do best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from model_export.graph_writer import GraphWriter
from model_export.weights import Binned, Categorical, Floats, GroupWeights, Raw

# A categorical with more categories costs less as a row gathered than as this many bits.
CATEGORIES_AS_BITS_MAX = 64
# What one more block costs, in bits per row that the block would have to save.
BLOCK_COST_BITS = 128


@dataclass(frozen=True)
class Block:
    """Features whose bits are made by one comparison.

    Attributes:
        columns: [F], ascending columns of the group's table.
        thresholds: [J, F]: -inf, then the boundaries, then +inf where a feature has fewer.
        weights: [J, F, K] float64, cumulative: what a row contributes that reached j thresholds and no more.
    """

    columns: NDArray[np.int64]
    thresholds: Floats
    weights: NDArray[np.float64]


def as_steps(weights: GroupWeights) -> list[Binned]:
    """The features that become bits: discretised ones, and small categoricals with boundaries 1, 2, ... V-1."""
    small = [c for c in weights.categoricals if len(c.weights) <= CATEGORIES_AS_BITS_MAX]
    return [*weights.binned, *(_as_binned(c) for c in small)]


def plan_blocks(features: Sequence[Binned]) -> list[Block]:
    """Parts features into blocks of about equal bin counts.

    Dynamic programming over the features by bin count: the least sum of bits, padding included, and block costs.
    """
    by_count = sorted(features, key=lambda f: (len(f.weights), f.column))
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the first n features, start of their last block
    for end in range(1, len(by_count) + 1):
        count = len(by_count[end - 1].weights)
        best.append(min((best[start][0] + (end - start) * count + BLOCK_COST_BITS, start) for start in range(end)))
    blocks: list[Block] = []
    end = len(by_count)
    while end:
        start = best[end][1]
        blocks.append(_block(by_count[start:end]))
        end = start
    return blocks[::-1]


def quantize(blocks: Sequence[Block]) -> tuple[NDArray[np.int8], Floats]:
    """The blocks' differences as integers: ([sum of J*F, K], scales [K]), differences = integers * scales.

    What is rounded is the cumulative weight, so that a feature's error does not grow with the thresholds below its
    value. A rounded difference may then be one more than the difference rounded: scales leave room for it in 8 bits.
    """
    largest = np.max([np.abs(_differences(block.weights)).max(axis=0) for block in blocks], axis=0)
    scales = (np.where(largest > 0, largest, 1.0) / 126).astype(np.float32)
    matrix = np.concatenate([_differences(np.rint(block.weights / scales)) for block in blocks])
    return matrix.astype(np.int8), scales


def add_bits(graph: GraphWriter, prefix: str, table: str, width: int, blocks: Sequence[Block]) -> str:
    """Adds the bits of all blocks, bool [rows, sum of J*F], for `table` [rows, width]: per block, thresholds outside.

    Thresholds as the outer axis make the comparison run along rows of F contiguous values.
    """
    parts = []
    for i, block in enumerate(blocks):
        name = f"{prefix}/block{i}"
        values = add_columns(graph, name, table, width, block.columns)
        axis = graph.constant(f"{name}/axis", np.array([1], np.int64))
        spread = graph.node("Unsqueeze", [values, axis], f"{name}/values")
        thresholds = graph.constant(f"{name}/thresholds", block.thresholds)
        reached = graph.node("GreaterOrEqual", [spread, thresholds], f"{name}/reached")
        shape = graph.constant(f"{name}/shape", np.array([-1, block.thresholds.size], np.int64))
        parts.append(graph.node("Reshape", [reached, shape], f"{name}/bits"))
    return parts[0] if len(parts) == 1 else graph.node("Concat", parts, f"{prefix}/bits", axis=1)


def add_steps_float(
    graph: GraphWriter, prefix: str, table: str, width: int, blocks: Sequence[Block], start: str
) -> str:
    """Adds `start` + bits @ differences in float32; returns [rows, K]. `start` broadcasts to that."""
    bits = add_bits(graph, prefix, table, width, blocks)
    floats = graph.cast(bits, TensorProto.FLOAT, f"{prefix}/bits_float32")
    matrix = np.concatenate([_differences(block.weights) for block in blocks]).astype(np.float32)
    return graph.node("Gemm", [floats, graph.constant(f"{prefix}/differences", matrix), start], f"{prefix}/sum")


def add_steps_int8(graph: GraphWriter, prefix: str, table: str, width: int, blocks: Sequence[Block], start: str) -> str:
    """As `add_steps_float`, with 8-bit integers in the product: off by at most half a scale per feature present."""
    matrix, scales = quantize(blocks)
    bits = graph.cast(add_bits(graph, prefix, table, width, blocks), TensorProto.UINT8, f"{prefix}/bits_uint8")
    total = graph.node("MatMulInteger", [bits, graph.constant(f"{prefix}/differences", matrix)], f"{prefix}/sum_int32")
    floats = graph.cast(total, TensorProto.FLOAT, f"{prefix}/sum_float32")
    scaled = graph.node("Mul", [floats, graph.constant(f"{prefix}/scales", scales)], f"{prefix}/scaled")
    return graph.node("Add", [scaled, start], f"{prefix}/sum")


def add_raws(graph: GraphWriter, prefix: str, table: str, width: int, raws: Sequence[Raw], start: str) -> str:
    """Adds `start` + the columns that enter by value; returns [rows, K]. `start` broadcasts to that."""
    values = []
    for log in (True, False):
        columns = np.concatenate([np.zeros(0, np.int64), *(raw.columns for raw in raws if raw.log == log)])
        if len(columns):
            name = f"{prefix}/{'log' if log else 'linear'}"
            part = add_columns(graph, name, table, width, columns)
            values.append(_add_signed_log(graph, name, part) if log else part)
    ordered = sorted(raws, key=lambda raw: not raw.log)
    scale, bias = (np.concatenate(arrays) for arrays in zip(*((r.scale, r.bias) for r in ordered), strict=True))
    weights = np.concatenate([raw.weights for raw in ordered])

    value = values[0] if len(values) == 1 else graph.node("Concat", values, f"{prefix}/values", axis=1)
    scaled = graph.node("Div", [value, graph.constant(f"{prefix}/scales", scale)], f"{prefix}/scaled")
    limits = [graph.constant(f"{prefix}/{name}", np.array(x, np.float32)) for name, x in (("min", -1), ("max", 1))]
    clipped = graph.node("Clip", [scaled, *limits], f"{prefix}/clipped")
    biased = graph.node("Add", [clipped, graph.constant(f"{prefix}/feature_bias", bias)], f"{prefix}/biased")
    absent = graph.node("IsNaN", [value], f"{prefix}/absent")
    zero = graph.constant(f"{prefix}/zero", np.zeros((), np.float32))
    present = graph.node("Where", [absent, zero, biased], f"{prefix}/present")
    return graph.node("Gemm", [present, graph.constant(f"{prefix}/weights", weights), start], f"{prefix}/sum")


def add_large_categoricals(
    graph: GraphWriter, prefix: str, table: str, width: int, categoricals: Sequence[Categorical], start: str
) -> str:
    """Adds `start` + one gathered row for each categorical that is too large for bits; returns [rows, K] (or start)."""
    for categorical in categoricals:
        if len(categorical.weights) > CATEGORIES_AS_BITS_MAX:
            name = f"{prefix}/category{categorical.column}"
            value = add_columns(graph, name, table, width, np.array([categorical.column]))
            flat = graph.node(
                "Reshape", [value, graph.constant(f"{name}/flat", np.array([-1], np.int64))], f"{name}/value"
            )
            # The table's last row is the absent one.
            last = graph.constant(f"{name}/absent_row", np.array(len(categorical.weights), np.float32))
            absent = graph.node("IsNaN", [flat], f"{name}/absent")
            index = graph.cast(
                graph.node("Where", [absent, last, flat], f"{name}/index_float32"), TensorProto.INT64, f"{name}/index"
            )
            rows = np.pad(categorical.weights, ((0, 1), (0, 0)))
            row = graph.node("Gather", [graph.constant(f"{name}/rows", rows), index], f"{name}/row", axis=0)
            start = graph.node("Add", [start, row], f"{name}/sum")
    return start


def add_plain_lookup(graph: GraphWriter, prefix: str, table: str, width: int, weights: GroupWeights, start: str) -> str:
    """Adds `start` + the group's discretised and categorical features as an embedding bag; returns [rows, K].

    Bins are found by counting boundaries, rows gathered from one matrix for all features, and summed.
    """
    features = [*weights.binned, *(_as_binned(c) for c in weights.categoricals)]
    values = add_columns(graph, prefix, table, width, np.array([f.column for f in features]))
    boundaries_max = max(len(f.boundaries) for f in features)
    # Nothing is at or above NaN; +inf, a legal value, is at or above +inf.
    boundaries = np.full((len(features), max(1, boundaries_max)), np.nan, np.float32)
    for row, feature in zip(boundaries, features, strict=True):
        row[: len(feature.boundaries)] = feature.boundaries
    last_axis = graph.constant(f"{prefix}/last_axis", np.array([-1], np.int64))
    spread = graph.node("Unsqueeze", [values, last_axis], f"{prefix}/values")
    reached = graph.node(
        "GreaterOrEqual", [spread, graph.constant(f"{prefix}/boundaries", boundaries)], f"{prefix}/reached"
    )
    ones = graph.cast(reached, TensorProto.INT32, f"{prefix}/reached_int32")
    bins = graph.node("ReduceSum", [ones, last_axis], f"{prefix}/bins", keepdims=0)
    counts = [len(f.weights) for f in features]
    offsets = graph.constant(f"{prefix}/offsets", np.cumsum([0, *counts[:-1]]).astype(np.int32))
    found = graph.node("Add", [bins, offsets], f"{prefix}/found_rows")
    absent = graph.node("IsNaN", [values], f"{prefix}/absent")
    absent_row = graph.constant(f"{prefix}/absent_row", np.array(sum(counts), np.int32))
    index = graph.node("Where", [absent, absent_row, found], f"{prefix}/row_index")
    matrix = np.pad(np.concatenate([f.weights for f in features]), ((0, 1), (0, 0)))
    rows = graph.node("Gather", [graph.constant(f"{prefix}/matrix", matrix), index], f"{prefix}/rows", axis=0)
    axis = graph.constant(f"{prefix}/feature_axis", np.array([1], np.int64))
    total = graph.node("ReduceSum", [rows, axis], f"{prefix}/row_sum", keepdims=0)
    return graph.node("Add", [total, start], f"{prefix}/sum")


def add_columns(graph: GraphWriter, prefix: str, table: str, width: int, columns: NDArray[np.int64]) -> str:
    """Adds `table[:, columns]`; a slice where the columns are contiguous, `table` itself where they are all of it."""
    first, last = int(columns[0]), int(columns[-1])
    if not np.array_equal(columns, np.arange(first, last + 1)):
        return graph.node(
            "Gather", [table, graph.constant(f"{prefix}/columns", columns)], f"{prefix}/table_columns", axis=1
        )
    if len(columns) == width:
        return table
    bounds = [("first", first), ("end", last + 1), ("column_axis", 1)]
    constants = [graph.constant(f"{prefix}/{name}", np.array([x], np.int64)) for name, x in bounds]
    return graph.node("Slice", [table, *constants], f"{prefix}/table_columns")


def _add_signed_log(graph: GraphWriter, prefix: str, values: str) -> str:
    magnitude = graph.node("Abs", [values], f"{prefix}/magnitude")
    one = graph.constant(f"{prefix}/one", np.ones((), np.float32))
    log = graph.node("Log", [graph.node("Add", [magnitude, one], f"{prefix}/plus_one")], f"{prefix}/log")
    return graph.node("Mul", [log, graph.node("Sign", [values], f"{prefix}/sign")], f"{prefix}/signed_log")


def _as_binned(categorical: Categorical) -> Binned:
    boundaries = np.arange(1, len(categorical.weights), dtype=np.float32)
    return Binned(categorical.column, boundaries, categorical.weights)


def _block(features: Sequence[Binned]) -> Block:
    ordered = sorted(features, key=lambda f: f.column)
    thresholds_max = max(len(f.weights) for f in ordered)
    thresholds = np.full((thresholds_max, len(ordered)), np.inf, np.float32)
    weights = np.empty((thresholds_max, len(ordered), ordered[0].weights.shape[1]))
    for i, feature in enumerate(ordered):
        count = len(feature.weights)
        thresholds[0, i] = -np.inf
        thresholds[1:count, i] = feature.boundaries
        weights[:count, i] = feature.weights
        weights[count:, i] = feature.weights[-1]  # past the last boundary nothing changes
    return Block(np.array([f.column for f in ordered], np.int64), thresholds, weights)


def _differences(cumulative: NDArray[np.float64]) -> NDArray[np.float64]:
    """[J, F, K] -> [J*F, K]: what each threshold adds to the one before it."""
    return np.diff(cumulative, axis=0, prepend=0.0).reshape(-1, cumulative.shape[-1])
