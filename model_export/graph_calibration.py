"""The calibration of all heads as graph nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from model_export.graph_writer import GraphWriter
from model_export.weights import Knots


def add_calibration(graph: GraphWriter, raw: str, calibration: Sequence[Knots], output: str) -> None:
    """Adds `output` = the calibrated form of `raw`, both float32 [N, H].

    A probability falls into the segment numbered by the knots at or below it, and goes on from the segment's anchor
    with the segment's slope. The result is held below the segment's upper end: so it never falls as `raw` rises, not
    even by a rounding.
    """
    knots_max = max(len(knots.x) for knots in calibration)
    heads = len(calibration)
    x = np.full((heads, knots_max), np.inf, np.float32)
    # Per head and segment: anchor x, anchor y, slope, upper end.
    segments = np.zeros((4, heads, knots_max + 1), np.float32)
    for head, knots in enumerate(calibration):
        count = len(knots.x)
        x[head, :count] = knots.x
        x64, y64 = knots.x.astype(np.float64), knots.y.astype(np.float64)
        inner = np.diff(y64) / np.diff(x64)
        segments[0, head, : count + 1] = np.concatenate([knots.x[:1], knots.x])
        segments[1, head, : count + 1] = np.concatenate([knots.y[:1], knots.y])
        segments[2, head, : count + 1] = np.concatenate([[knots.end_slope], inner, [knots.end_slope]])
        segments[3, head, : count + 1] = np.concatenate([knots.y, [1.0]])

    last_axis = graph.constant("calibration/last_axis", np.array([-1], np.int64))
    column = graph.node("Unsqueeze", [raw, last_axis], "calibration/column")
    reached = graph.node("GreaterOrEqual", [column, graph.constant("calibration/knots", x)], "calibration/reached")
    ones = graph.cast(reached, TensorProto.INT32, "calibration/reached_int32")
    count_below = graph.node("ReduceSum", [ones, last_axis], "calibration/knots_below", keepdims=0)
    offsets = graph.constant("calibration/head_offsets", np.arange(heads, dtype=np.int32) * (knots_max + 1))
    segment = graph.node("Add", [count_below, offsets], "calibration/segment")
    x_anchor, y_anchor, slope, upper = (
        graph.node("Gather", [graph.constant(f"calibration/{name}s", table.ravel()), segment], f"calibration/{name}")
        for name, table in zip(("x_anchor", "y_anchor", "slope", "upper_end"), segments, strict=True)
    )
    away = graph.node("Sub", [raw, x_anchor], "calibration/from_anchor")
    rise = graph.node("Mul", [away, slope], "calibration/rise")
    value = graph.node("Add", [rise, y_anchor], "calibration/value")
    below = graph.node("Min", [value, upper], "calibration/below_upper_end")
    graph.node("Max", [below, graph.constant("calibration/zero", np.zeros((), np.float32))], output)
