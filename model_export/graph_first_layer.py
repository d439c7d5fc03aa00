"""The first layer of the net as graph nodes: the forms that are served, and the plain one they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto

from model_export.graph_table import Table, Term
from model_export.graph_thermometer import Thermometer, as_binned, is_large
from model_export.graph_writer import GraphWriter
from model_export.weights import Categorical, Dots, GroupWeights, Raw
from service.schema import Group


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


def add_terms(graph: GraphWriter, name: str, terms: Sequence[Term], start: str) -> str:
    """Adds `start` + what the terms add, in one product; returns [rows, K]. `start` broadcasts to that."""
    values = [term.values for term in terms]
    joined = values[0] if len(values) == 1 else graph.node("Concat", values, f"{name}/terms", axis=0)
    weights = graph.constant(f"{name}/term_weights", np.concatenate([term.weights for term in terms]))
    return graph.node("Gemm", [joined, weights, start], f"{name}/term_sum", transA=1)


def add_raws(graph: GraphWriter, name: str, raws: Sequence[tuple[str, Raw]]) -> Term:
    """Adds what enters by value: for each `Raw` its values [R, rows], as they come."""
    parts = [_add_signed_log(graph, value) if raw.log else value for value, raw in raws]
    value = parts[0] if len(parts) == 1 else graph.node("Concat", parts, f"{name}/values", axis=0)
    factors = np.concatenate([1 / raw.scale for _, raw in raws])[:, np.newaxis]
    bias = np.concatenate([raw.bias for _, raw in raws])[:, np.newaxis]
    scaled = graph.node("Mul", [value, graph.constant(f"{name}/factors", factors)], f"{name}/scaled")
    clipped = _add_clip(graph, name, scaled)
    biased = graph.node("Add", [clipped, graph.constant(f"{name}/feature_bias", bias)], f"{name}/biased")
    return Term(_add_nan_to_zero(graph, name, biased), np.concatenate([raw.weights for _, raw in raws]))


def add_table_values(table: Table, raws: Sequence[Raw]) -> list[tuple[str, Raw]]:
    """Picks the columns of a table that enter by value."""
    return [
        (table.pick(raw.columns, f"{table.name}/raw/{'log' if raw.log else 'linear'}{i}"), raw)
        for i, raw in enumerate(raws)
    ]


def add_products(tables: Mapping[Group, Table], dots: Dots) -> tuple[str, Raw]:
    """Adds the inner products of vectors: [D, Tweets]. A NaN in either makes the product NaN: absent."""
    graph = tables["tweet"].graph
    axis = graph.constant("dots/axis", np.array([0], np.int64))
    products = []
    for i, pair in enumerate(dots.pairs):
        name = f"dots/{i}"
        ours = tables["tweet"].pick(pair.tweet_columns, f"{name}/tweets")
        others = tables[pair.group].pick(pair.columns, f"{name}/{tables[pair.group].name}")
        if pair.group == "author":
            others = graph.node("Gather", [others, "author_index"], f"{name}/author_columns", axis=1)
        multiplied = graph.node("Mul", [ours, others], f"{name}/multiplied")
        products.append(graph.node("ReduceSum", [multiplied, axis], f"{name}/product", keepdims=1))
    joined = products[0] if len(products) == 1 else graph.node("Concat", products, "dots/products", axis=0)
    return joined, dots.raw


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


def _add_signed_log(graph: GraphWriter, values: str) -> str:
    magnitude = graph.node("Abs", [values], f"{values}/magnitude")
    one = graph.constant(f"{values}/one", np.ones((), np.float32))
    log = graph.node("Log", [graph.node("Add", [magnitude, one], f"{values}/plus_one")], f"{values}/log")
    # The sign, five times as fast as Sign; where it is off, below 1e-38, the logarithm is zero.
    huge = graph.constant(f"{values}/huge", np.array(1e38, np.float32))
    sign = _add_clip(graph, f"{values}/sign", graph.node("Mul", [values, huge], f"{values}/enlarged"))
    return graph.node("Mul", [log, sign], f"{values}/signed_log")


def _add_clip(graph: GraphWriter, prefix: str, values: str) -> str:
    limits = [graph.constant(f"{prefix}/{name}", np.array(x, np.float32)) for name, x in (("min", -1), ("max", 1))]
    return graph.node("Clip", [values, *limits], f"{prefix}/clipped")


def _add_nan_to_zero(graph: GraphWriter, prefix: str, values: str) -> str:
    """Values above zero minus negated values below zero: NaN is neither. Half the time of IsNaN and Where."""
    above = graph.node("ThresholdedRelu", [values], f"{prefix}/above_zero", alpha=0.0)
    negated = graph.node("Neg", [values], f"{prefix}/negated")
    below = graph.node("ThresholdedRelu", [negated], f"{prefix}/below_zero", alpha=0.0)
    return graph.node("Sub", [above, below], f"{prefix}/present")
