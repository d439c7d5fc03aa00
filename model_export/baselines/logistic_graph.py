"""A logistic regression with crosses as an ONNX graph: bins are counted, weights gathered and summed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from model_export.baselines.logistic import HASH, Logistic
from model_export.baselines.rows import Floats
from model_export.graph_writer import GraphWriter, tensor_info
from service.schema import Group


def logistic_graph(logistic: Logistic, starts: Mapping[Group, int], features: int) -> bytes:
    """Float32 `x` [N, features] -> probabilities `y` [N, H] in the sampled world.

    Args:
        logistic: The regressions.
        starts: Where each group's table begins in x.
        features: Columns of x.
    """
    graph = GraphWriter()
    bins = _bins(graph, logistic, starts)  # [N, S], 0 = absent
    slots, offsets = logistic.design.slots, logistic.design.offsets
    # Row 0 of the table is for what is absent.
    zero = np.zeros((1, logistic.weights.shape[1]), np.float32)
    table = graph.constant("weights", np.concatenate([zero, logistic.weights]))
    shift = graph.node("Add", [bins, graph.constant("offsets", offsets[: len(slots)])], "shifted")
    none = graph.constant("none", np.zeros((), np.int64))
    rows = graph.node("Where", [graph.node("Equal", [bins, none], "absent"), none, shift], "rows")
    if logistic.design.crosses:
        rows = graph.node("Concat", [rows, _cross_rows(graph, logistic, bins)], "all_rows", axis=1)
    gathered = graph.node("Gather", [table, rows], "gathered")
    axis = graph.constant("axis", np.array([1], np.int64))
    total = graph.node("ReduceSum", [gathered, axis], "total", keepdims=0)
    graph.node("Sigmoid", [graph.node("Add", [total, graph.constant("bias", logistic.bias)], "logits")], "y")
    heads = logistic.weights.shape[1]
    x, y = tensor_info("x", "float32", ("rows", features)), tensor_info("y", "float32", ("rows", heads))
    return graph.to_bytes("logistic", "Logistic regression on bins and their crosses", [x], [y])


def _bins(graph: GraphWriter, logistic: Logistic, starts: Mapping[Group, int]) -> str:
    """[N, S] int64: bin or category from 1, 0 = absent."""
    slots = logistic.design.slots
    columns = np.array([starts[slot.group] + slot.column for slot in slots], np.int64)
    given = {i: slot.boundaries for i, slot in enumerate(slots) if slot.boundaries is not None}
    order = [*given, *(i for i in range(len(slots)) if i not in given)]
    scalars = len(given)
    values = graph.node("Gather", ["x", graph.constant("columns", columns[order])], "values", axis=1)
    parts = []
    if given:
        boundaries = np.full((max(map(len, given.values())), scalars), np.inf, np.float32)
        for j, column in enumerate(given.values()):
            boundaries[: len(column), j] = column
        parts.append(_counted(graph, _columns(graph, values, "scalars", 0, scalars), boundaries))
    if scalars < len(slots):
        parts.append(_columns(graph, values, "categories", scalars, len(slots)))
    numbers = graph.node("Concat", parts, "numbers", axis=1) if len(parts) > 1 else parts[0]
    one = graph.constant("one", np.ones((), np.float32))
    from_one = graph.node("Add", [numbers, one], "from_one")
    nothing = graph.constant("nothing", np.zeros((), np.float32))
    known = graph.node("Where", [graph.node("IsNaN", [values], "unknown"), nothing, from_one], "known")
    back = graph.constant("back", np.argsort(order))
    return graph.node("Gather", [graph.cast(known, TensorProto.INT64, "whole"), back], "bins", axis=1)


def _columns(graph: GraphWriter, values: str, name: str, start: int, stop: int) -> str:
    columns = graph.constant(f"{name}/columns", np.arange(start, stop))
    return graph.node("Gather", [values, columns], name, axis=1)


def _counted(graph: GraphWriter, values: str, boundaries: Floats) -> str:
    """How many boundaries [B, F] are at or below each value [N, F], as floats."""
    axis = graph.constant("count/axis", np.array([1], np.int64))
    spread = graph.node("Unsqueeze", [values, axis], "count/values")
    reached = graph.node("GreaterOrEqual", [spread, graph.constant("count/boundaries", boundaries)], "count/reached")
    return graph.node(
        "ReduceSum", [graph.cast(reached, TensorProto.FLOAT, "count/ones"), axis], "count/bins", keepdims=0
    )


def _cross_rows(graph: GraphWriter, logistic: Logistic, bins: str) -> str:
    """[N, crosses] rows of the table; see `logistic.cross_cells`."""
    design = logistic.design
    slots, crosses = design.slots, design.crosses
    width = np.array([slots[cross.second].size + 1 for cross in crosses])
    combinations = np.array([slots[cross.first].size + 1 for cross in crosses]) * width
    cells = np.array([cross.cells for cross in crosses])

    def constant(name: str, array: NDArray[Any]) -> str:
        return graph.constant(f"cross/{name}", array)

    first = graph.node("Gather", [bins, constant("first", np.array([c.first for c in crosses]))], "cross/a", axis=1)
    second = graph.node("Gather", [bins, constant("second", np.array([c.second for c in crosses]))], "cross/b", axis=1)
    code = graph.node("Add", [graph.node("Mul", [first, constant("width", width)], "cross/aw"), second], "cross/code")
    mixed = graph.node("Mul", [code, constant("hash", np.array(HASH, np.int64))], "cross/mixed")
    range_32 = constant("range", np.array(1 << 32, np.int64))
    kept = graph.node("Mod", [mixed, range_32], "cross/kept")
    scaled = graph.node("Mul", [kept, constant("cells", cells)], "cross/scaled")
    hashed = graph.node("Div", [scaled, range_32], "cross/hashed")
    cell = graph.node("Where", [constant("exact", combinations <= cells), code, hashed], "cross/cell")
    return graph.node("Add", [cell, constant("offsets", design.offsets[len(slots) : -1] + 1)], "cross/rows")
