"""The first layer of the net as graph nodes: the forms that are served, and the plain one they are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from model_export.graph_thermometer import Thermometer, as_binned, is_large
from model_export.graph_writer import GraphWriter
from model_export.weights import Categorical, GroupWeights, Raw


class Table:
    """One group's input [rows, width] in the graph."""

    def __init__(self, graph: GraphWriter, name: str, width: int) -> None:
        self.graph = graph
        self.name = name
        self.width = width
        self._transposed = ""

    @property
    def transposed(self) -> str:
        """[width, rows]: there a column is one stretch of memory, twice as fast to pick and to scale."""
        if not self._transposed:
            self._transposed = self.graph.node("Transpose", [self.name], f"{self.name}/transposed", perm=[1, 0])
        return self._transposed

    def pick(self, columns: NDArray[np.int64], name: str) -> str:
        """[len(columns), rows]."""
        index = self.graph.constant(f"{name}/columns", columns)
        return self.graph.node("Gather", [self.transposed, index], f"{name}/picked", axis=0)

    def columns(self, columns: NDArray[np.int64], name: str) -> str:
        """[rows, len(columns)]."""
        first, end = int(columns[0]), int(columns[-1]) + 1
        if not np.array_equal(columns, np.arange(first, end)):
            return self.graph.node("Transpose", [self.pick(columns, name)], f"{name}/table_columns", perm=[1, 0])
        if len(columns) == self.width:
            return self.name
        bounds = [("first", first), ("end", end), ("column_axis", 1)]
        constants = [self.graph.constant(f"{name}/{key}", np.array([x], np.int64)) for key, x in bounds]
        return self.graph.node("Slice", [self.name, *constants], f"{name}/table_columns")


def add_thermometer(graph: GraphWriter, table: Table, thermometer: Thermometer, start: str) -> str:
    """Adds `start` + the differences of all thresholds reached; returns [rows, K]. `start` broadcasts to that."""
    name = f"{table.name}/steps"
    values = table.columns(thermometer.columns, name)
    axis = graph.constant(f"{name}/axis", np.array([1], np.int64))
    spread = graph.node("Unsqueeze", [values, axis], f"{name}/values")
    # Thresholds as the outer axis: the comparison runs along C contiguous values.
    thresholds = graph.constant(f"{name}/thresholds", thermometer.thresholds)
    reached = graph.node("GreaterOrEqual", [spread, thresholds], f"{name}/reached")
    shape = graph.constant(f"{name}/shape", np.array([-1, thermometer.thresholds.size], np.int64))
    bits = graph.node("Reshape", [reached, shape], f"{name}/bits")
    differences = graph.constant(f"{name}/differences", thermometer.differences)
    if thermometer.scales is None:
        floats = graph.cast(bits, TensorProto.FLOAT, f"{name}/bits_float32")
        return graph.node("Gemm", [floats, differences, start], f"{name}/sum")
    integers = graph.cast(bits, TensorProto.UINT8, f"{name}/bits_uint8")
    one = graph.constant(f"{name}/bit_scale", np.ones((), np.float32))
    scales = graph.constant(f"{name}/scales", thermometer.scales)
    inputs = [integers, differences, one, scales]
    product = graph.node("MatMulIntegerToFloat", inputs, f"{name}/product", "com.microsoft")
    return graph.node("Add", [product, start], f"{name}/sum")


def add_raws(graph: GraphWriter, table: Table, raws: Sequence[Raw], start: str) -> str:
    """Adds `start` + the columns that enter by value; returns [rows, K]. `start` broadcasts to that."""
    prefix = f"{table.name}/raw"
    parts = []
    for log in (True, False):
        columns = [raw.columns for raw in raws if raw.log == log]
        if columns:
            name = f"{prefix}/{'log' if log else 'linear'}"
            values = table.pick(np.concatenate(columns), name)
            parts.append(_add_signed_log(graph, name, values) if log else values)
    value = parts[0] if len(parts) == 1 else graph.node("Concat", parts, f"{prefix}/values", axis=0)

    ordered = sorted(raws, key=lambda raw: not raw.log)
    factors = np.concatenate([1 / raw.scale for raw in ordered])[:, np.newaxis]
    bias = np.concatenate([raw.bias for raw in ordered])[:, np.newaxis]
    scaled = graph.node("Mul", [value, graph.constant(f"{prefix}/factors", factors)], f"{prefix}/scaled")
    clipped = _add_clip(graph, prefix, scaled)
    biased = graph.node("Add", [clipped, graph.constant(f"{prefix}/feature_bias", bias)], f"{prefix}/biased")
    present = _add_nan_to_zero(graph, prefix, biased)
    weights = graph.constant(f"{prefix}/weights", np.concatenate([raw.weights for raw in ordered]))
    return graph.node("Gemm", [present, weights, start], f"{prefix}/sum", transA=1)


def add_large_categoricals(graph: GraphWriter, table: Table, categoricals: Sequence[Categorical], start: str) -> str:
    """Adds `start` + a gathered row for each categorical too large for bits; returns [rows, K], or `start` for none."""
    for categorical in filter(is_large, categoricals):
        name = f"{table.name}/category{categorical.column}"
        value = table.pick(np.array(categorical.column), name)
        # The last row is the absent one.
        absent_row = graph.constant(f"{name}/absent_row", np.array(len(categorical.weights), np.float32))
        absent = graph.node("IsNaN", [value], f"{name}/absent")
        known = graph.node("Where", [absent, absent_row, value], f"{name}/index_float32")
        rows = graph.constant(f"{name}/rows", np.pad(categorical.weights, ((0, 1), (0, 0))))
        index = graph.cast(known, TensorProto.INT64, f"{name}/index")
        start = graph.node("Add", [start, graph.node("Gather", [rows, index], f"{name}/row")], f"{name}/sum")
    return start


def add_plain_lookup(graph: GraphWriter, table: Table, weights: GroupWeights, start: str) -> str:
    """Adds `start` + discretised and categorical features as an embedding bag; returns [rows, K].

    Bins are found by counting boundaries, rows gathered from one matrix for all features, and summed.
    """
    prefix = f"{table.name}/lookup"
    features = [*weights.binned, *(as_binned(c) for c in weights.categoricals)]
    values = table.columns(np.array([f.column for f in features]), prefix)
    boundaries_max = max(len(f.boundaries) for f in features)
    # Nothing is at or above NaN; +inf, a legal value, is at or above +inf.
    boundaries = np.full((len(features), max(1, boundaries_max)), np.nan, np.float32)
    for row, feature in zip(boundaries, features, strict=True):
        row[: len(feature.boundaries)] = feature.boundaries
    last_axis = graph.constant(f"{prefix}/last_axis", np.array([-1], np.int64))
    spread = graph.node("Unsqueeze", [values, last_axis], f"{prefix}/values")
    compared = [spread, graph.constant(f"{prefix}/boundaries", boundaries)]
    reached = graph.node("GreaterOrEqual", compared, f"{prefix}/reached")
    ones = graph.cast(reached, TensorProto.INT32, f"{prefix}/reached_int32")
    bins = graph.node("ReduceSum", [ones, last_axis], f"{prefix}/bins", keepdims=0)
    counts = [len(f.weights) for f in features]
    offsets = graph.constant(f"{prefix}/offsets", np.cumsum([0, *counts[:-1]]).astype(np.int32))
    found = graph.node("Add", [bins, offsets], f"{prefix}/found_rows")
    absent = graph.node("IsNaN", [values], f"{prefix}/absent")
    absent_row = graph.constant(f"{prefix}/absent_row", np.array(sum(counts), np.int32))
    index = graph.node("Where", [absent, absent_row, found], f"{prefix}/row_index")
    matrix = np.pad(np.concatenate([f.weights for f in features]), ((0, 1), (0, 0)))
    rows = graph.node("Gather", [graph.constant(f"{prefix}/matrix", matrix), index], f"{prefix}/rows")
    axis = graph.constant(f"{prefix}/feature_axis", np.array([1], np.int64))
    total = graph.node("ReduceSum", [rows, axis], f"{prefix}/row_sum", keepdims=0)
    return graph.node("Add", [total, start], f"{prefix}/sum")


def _add_signed_log(graph: GraphWriter, prefix: str, values: str) -> str:
    magnitude = graph.node("Abs", [values], f"{prefix}/magnitude")
    one = graph.constant(f"{prefix}/one", np.ones((), np.float32))
    log = graph.node("Log", [graph.node("Add", [magnitude, one], f"{prefix}/plus_one")], f"{prefix}/log")
    # The sign, five times as fast as Sign; where it is off, below 1e-38, the logarithm is zero.
    huge = graph.constant(f"{prefix}/huge", np.array(1e38, np.float32))
    sign = _add_clip(graph, f"{prefix}/sign", graph.node("Mul", [values, huge], f"{prefix}/enlarged"))
    return graph.node("Mul", [log, sign], f"{prefix}/signed_log")


def _add_clip(graph: GraphWriter, prefix: str, values: str) -> str:
    limits = [graph.constant(f"{prefix}/{name}", np.array(x, np.float32)) for name, x in (("min", -1), ("max", 1))]
    return graph.node("Clip", [values, *limits], f"{prefix}/clipped")


def _add_nan_to_zero(graph: GraphWriter, prefix: str, values: str) -> str:
    """Values above zero minus negated values below zero: NaN is neither. Half the time of IsNaN and Where."""
    above = graph.node("ThresholdedRelu", [values], f"{prefix}/above_zero", alpha=0.0)
    negated = graph.node("Neg", [values], f"{prefix}/negated")
    below = graph.node("ThresholdedRelu", [negated], f"{prefix}/below_zero", alpha=0.0)
    return graph.node("Sub", [above, below], f"{prefix}/present")
