"""Builds the ONNX graph that is served from a trained net's arrays.

Inputs `viewer` float32 [1, Fv], `authors` float32 [A, Fa], `author_index` int64 [N] and `tweets` float32 [N, Ft], in
the columns of the schema's layouts, NaN = absent; a group without features has no input. `author_index` holds the
author's row of each Tweet and is always there: it says how many Tweets there are. Outputs `probabilities` (calibrated)
and `raw_probabilities`, float32 [N, H]. Where Tweets are sparse, `tweets` has the columns after the scalars alone, and
`tweets_values`, `tweets_columns`, `tweets_rows` and `tweets_ends` hold the scalars that are present
(`service.sparse_table.Chunks`). The int8 graph needs onnxruntime (one operator of its domain `com.microsoft`), the
others any ONNX runtime; no custom operators, no external data.

A Tweet's probabilities do not depend on its neighbours: in onnxruntime they are bit-equal in any batch, but for the
last digit of a logarithm, which depends on how the batch fills vector registers (2e-6 of a probability).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model_export import graph_first_layer as first_layer
from model_export.graph_calibration import add_calibration, add_sigmoid
from model_export.graph_codes import add_codes, plan_codes
from model_export.graph_sparse import SparseTable, add_lookup, plan_lookup, sparse_inputs
from model_export.graph_table import Table, Term
from model_export.graph_thermometer import Precision, plan_thermometer
from model_export.graph_writer import GraphWriter, signature, tensor_info
from model_export.weights import Cross, Dense, Dots, Floats, GroupWeights, Knots, NetWeights, Raw, Towers
from service.schema import GROUPS, Group, Schema

__all__ = ["Precision", "build", "build_plain", "signature"]

Form = Precision | Literal["plain"]

_INPUTS: dict[Group, tuple[str, str | int]] = {
    "viewer": ("viewer", 1),
    "author": ("authors", "authors"),
    "tweet": ("tweets", "tweets"),
}


def build(
    schema: Schema,
    weights: NetWeights,
    calibration: Sequence[Knots],
    precision: Precision = "float32",
    trunk_input_max: float | None = None,
    sparse_tweets: bool = False,
) -> bytes:
    """The graph to ship: the first layer as codes or as a thermometer, calibration included.

    Args:
        schema: Whose layouts the columns of `weights` refer to.
        weights: The trained net.
        calibration: One per head, in the schema's order.
        precision: Of what discretised features add. int8 also rounds the trunk's first layer, if its range is known.
        trunk_input_max: The largest value that held-out rows bring to the trunk; in an int8 graph larger ones count
            as this. None where it is not known.
        sparse_tweets: Whether the scalars of Tweets are taken as entries: see `model_export.graph_sparse`.

    Returns:
        A serialized ModelProto; the same arguments give the same bytes.

    Raises:
        ValueError: The arguments do not fit each other.
    """
    input_max = trunk_input_max if precision == "int8" else None
    return _build(schema, weights, calibration, precision, input_max, sparse_tweets)


def build_plain(schema: Schema, weights: NetWeights, calibration: Sequence[Knots]) -> bytes:
    """The same function of the same inputs as an export of the net as it stands: the baseline of the speed measures.

    Bins are looked up, a row of weights is gathered for every feature present, and the rows are summed. Everything
    else is as in `build`, which documents arguments and errors.
    """
    return _build(schema, weights, calibration, "plain", None, sparse_tweets=False)


def _build(
    schema: Schema,
    weights: NetWeights,
    calibration: Sequence[Knots],
    form: Form,
    trunk_input_max: float | None,
    sparse_tweets: bool,
) -> bytes:
    _check(schema, weights, calibration)
    heads = len(schema.heads)
    graph = GraphWriter()
    tables = {group: Table(graph, name, schema.layouts[group].width) for group, (name, _) in _INPUTS.items()}
    widths = {group: table.width for group, table in tables.items()}
    if sparse_tweets:
        scalars = len(schema.layouts["tweet"].scalars)
        tables["tweet"] = SparseTable(graph, "tweets", widths["tweet"], scalars)
        widths["tweet"] -= scalars
    hidden = _add_first_layer(graph, tables, weights, form)
    logits = _add_net(graph, weights, hidden, trunk_input_max)
    add_sigmoid(graph, logits, "raw_probabilities")
    add_sigmoid(graph, add_calibration(graph, logits, calibration), "probabilities")
    inputs = [
        tensor_info(name, "float32", (rows, widths[group])) for group, (name, rows) in _INPUTS.items() if widths[group]
    ]
    inputs += sparse_inputs("tweets") if sparse_tweets else []
    inputs.append(tensor_info("author_index", "int64", ("tweets",)))
    outputs = [tensor_info(name, "float32", ("tweets", heads)) for name in ("probabilities", "raw_probabilities")]
    return graph.to_bytes("timeline_ranker", f"Timeline ranking model, {form} first layer", inputs, outputs)


def _add_first_layer(graph: GraphWriter, tables: dict[Group, Table], weights: NetWeights, form: Form) -> str:
    """Each group goes through its part once; [N, K].

    h = bias + V(viewer) + A(authors)[author_index] + T(tweets)
    """
    index = "author_index"
    h = graph.constant("first_layer/bias", weights.bias[np.newaxis])  # [1, K]
    for group in ("viewer", "author"):
        h = _add_group(graph, tables[group], weights.groups.get(group), [], h, form)
    if _contributes(weights.groups.get("author")):
        h = graph.node("Gather", [h, index], "first_layer/author_rows", axis=0)
    elif not _contributes(weights.groups.get("tweet")) and weights.dots is None:
        width = graph.constant("first_layer/width", np.array([len(weights.bias)], np.int64))
        rows = graph.node("Shape", [index], "first_layer/tweet_count")
        shape = graph.node("Concat", [rows, width], "first_layer/shape", axis=0)
        h = graph.node("Expand", [h, shape], "first_layer/same_rows")
    products = [] if weights.dots is None else [first_layer.add_products(tables, weights.dots)]
    tweet, table = weights.groups.get("tweet"), tables["tweet"]
    if tweet is not None and tweet.binned and isinstance(table, SparseTable) and form != "plain":
        h = add_lookup(graph, table.name, plan_lookup(tweet.binned, table.scalars, form), h)
        tweet = replace(tweet, binned=())
    return _add_group(graph, table, tweet, products, h, form)


def _contributes(group: GroupWeights | None) -> bool:
    return group is not None and bool(group.binned or group.categoricals or group.raws)


def _add_group(
    graph: GraphWriter,
    table: Table,
    weights: GroupWeights | None,
    products: Sequence[tuple[str, Raw]],
    start: str,
    form: Form,
) -> str:
    """Adds `start` + what the group's features contribute: [rows of its table, K], or `start` where there are none.

    `products` enter by value like columns of the table.
    """
    weights = weights or GroupWeights((), (), ())
    terms: list[Term] = []
    if form != "plain":
        start = first_layer.add_large_categoricals(graph, table, weights.categoricals, start)
        if codes := plan_codes(weights, form):
            terms += [add_codes(table, part, f"{table.name}/codes{i}") for i, part in enumerate(codes)]
        elif (thermometer := plan_thermometer(weights, form)) is not None:
            start = first_layer.add_thermometer(graph, table, thermometer, start)
    elif weights.binned or weights.categoricals:
        start = first_layer.add_plain_lookup(graph, table, weights, start)
    if raws := [*first_layer.add_table_values(table, weights.raws), *products]:
        terms.append(first_layer.add_raws(graph, f"{table.name}/raw", raws))
    return first_layer.add_terms(graph, table.name, terms, start) if terms else start


def _add_net(graph: GraphWriter, weights: NetWeights, h: str, trunk_input_max: float | None) -> str:
    """Crosses, relu, trunk and towers, and the linear part: [N, K] -> logits [N, H]."""
    linear = None
    if weights.wide and weights.towers is not None:
        units = len(weights.bias) - len(weights.towers.bias)
        h, linear = _add_columns(graph, h, 0, units), _add_columns(graph, h, units, len(weights.bias))
    x = h
    for i, cross in enumerate(weights.crosses):
        x = _add_cross(graph, f"cross{i}", cross, h, x)
    trunk = list(enumerate(weights.trunk))
    if weights.relu and trunk and trunk_input_max is not None:
        x = _add_int8_dense(graph, "trunk0", weights.trunk[0], x, trunk_input_max)
        trunk = trunk[1:]
    elif weights.relu:
        x = graph.node("Relu", [x], "first_layer/relu")
    for i, dense in trunk:
        x = _add_dense(graph, f"trunk{i}", dense, x)
    if weights.towers is None:
        return x
    logits = _add_towers(graph, weights.towers, x)
    return logits if linear is None else graph.node("Add", [logits, linear], "wide/sum")


def _add_columns(graph: GraphWriter, x: str, start: int, end: int) -> str:
    limits = [
        graph.constant(f"wide/{name}{start}", np.array([value], np.int64))
        for name, value in (("start", start), ("end", end), ("axis", 1))
    ]
    return graph.node("Slice", [x, *limits], f"wide/columns{start}")


def _add_int8_dense(graph: GraphWriter, name: str, dense: Dense, x: str, input_max: float) -> str:
    """A layer of max(x, 0), in 255 steps up to `input_max`, by weights in 8 bits, scaled by column.

    CPUs without VNNI add the products of inputs 2i and 2i + 1 in 16 bits and stop at their end: scales are such that
    no two weights next to each other get there.
    """
    step = graph.constant(f"{name}/input_step", np.array(input_max / 255, np.float32))
    zero = graph.constant(f"{name}/input_zero", np.array(0, np.uint8))
    # Rounds what is below zero to zero: the relu.
    rounded = graph.node("QuantizeLinear", [x, step, zero], f"{name}/rounded")
    scales = _pair_scales(dense.weights)
    weights = graph.constant(f"{name}/weights", np.rint(dense.weights / scales).astype(np.int8))
    constants = [weights, step, graph.constant(f"{name}/scales", scales), "", ""]
    bias = graph.constant(f"{name}/bias", dense.bias)
    y = graph.node("MatMulIntegerToFloat", [rounded, *constants, bias], f"{name}/linear", "com.microsoft")
    return graph.node("Relu", [y], f"{name}/relu") if dense.relu else y


def _pair_scales(weights: Floats) -> Floats:
    """[in, out] -> [out]: no pair of rows 2i and 2i + 1, divided by these and rounded, adds up to more than +-128."""
    pairs = np.pad(weights, ((0, len(weights) % 2), (0, 0))).reshape(-1, 2, weights.shape[1])
    largest = np.maximum(np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1)).max(axis=0)
    return (np.where(largest > 0, largest, 1.0) / 127).astype(np.float32)


def _add_cross(graph: GraphWriter, name: str, cross: Cross, first: str, x: str) -> str:
    # Where x is x0: x0 * (x @ down @ up + bias) + x0 = x0 * (x @ down @ up + bias + 1), a pass over [N, K] less.
    bias = cross.bias + 1 if x == first else cross.bias
    low = graph.node("MatMul", [x, graph.constant(f"{name}/down_weights", cross.down)], f"{name}/down")
    constants = [graph.constant(f"{name}/up_weights", cross.up), graph.constant(f"{name}/bias", bias)]
    product = graph.node("Mul", [first, graph.node("Gemm", [low, *constants], f"{name}/up")], f"{name}/product")
    return product if x == first else graph.node("Add", [product, x], f"{name}/sum")


def _add_dense(graph: GraphWriter, name: str, dense: Dense, x: str) -> str:
    constants = [
        graph.constant(f"{name}/{key}", array) for key, array in (("weights", dense.weights), ("bias", dense.bias))
    ]
    y = graph.node("Gemm", [x, *constants], f"{name}/linear")
    return graph.node("Relu", [y], f"{name}/relu") if dense.relu else y


def _add_towers(graph: GraphWriter, towers: Towers, x: str) -> str:
    """All towers side by side; the last layers as one block-diagonal matrix."""
    hidden = _add_dense(graph, "towers/hidden", towers.hidden, x)
    heads, width = towers.out.shape
    diagonal = np.zeros((heads * width, heads), np.float32)
    for head in range(heads):
        diagonal[head * width : (head + 1) * width, head] = towers.out[head]
    return _add_dense(graph, "towers/out", Dense(diagonal, towers.bias, relu=False), hidden)


def _check(schema: Schema, weights: NetWeights, calibration: Sequence[Knots]) -> None:
    """Raises ValueError where schema, weights and calibration do not fit each other."""
    heads, k = len(schema.heads), len(weights.bias)
    logits = k if weights.towers is None else len(weights.towers.bias)
    if not heads == len(calibration) == logits:
        raise ValueError(f"{heads} heads in the schema, {logits} in the net, {len(calibration)} in the calibration")
    if weights.towers is None and (weights.crosses or weights.relu or weights.trunk or weights.wide):
        raise ValueError("a net without towers is linear: it has no crosses, relu, trunk or linear part beside")
    for group in GROUPS:
        part = weights.groups.get(group, GroupWeights((), (), ()))
        width = schema.layouts[group].width
        columns = [b.column for b in part.binned] + [c.column for c in part.categoricals]
        columns += [int(column) for raw in part.raws for column in raw.columns]
        if columns and not 0 <= min(columns) <= max(columns) < width:
            raise ValueError(f"{group}: columns {min(columns)} to {max(columns)} of a table with {width} columns")
        matrices = [b.weights for b in part.binned] + [c.weights for c in part.categoricals]
        matrices += [raw.weights for raw in part.raws]
        if any(matrix.shape[1] != k for matrix in matrices):
            raise ValueError(f"{group}: weights for another number of units than the layer's {k}")
    if weights.dots is not None:
        _check_dots(schema, weights.dots, k)


def _check_dots(schema: Schema, dots: Dots, k: int) -> None:
    if dots.raw.weights.shape != (len(dots.pairs), k) or dots.raw.log:
        raise ValueError(f"dots: raw weights for {dots.raw.weights.shape}, not for {len(dots.pairs)} x {k} by value")
    for pair in dots.pairs:
        if pair.group == "tweet" or len(pair.columns) != len(pair.tweet_columns):
            raise ValueError("dots: a pair is a Tweet's vector with one of another group, of one width")
        places: dict[Group, NDArray[np.int64]] = {"tweet": pair.tweet_columns, pair.group: pair.columns}
        for group, columns in places.items():
            if columns.max() >= schema.layouts[group].width:
                raise ValueError(f"dots: column {columns.max()} of a table with {schema.layouts[group].width} columns")
