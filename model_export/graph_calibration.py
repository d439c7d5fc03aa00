"""The calibration of all heads as graph nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from model_export.graph_writer import GraphWriter
from model_export.weights import Floats, Knots


def add_calibration(graph: GraphWriter, raw: str, calibration: Sequence[Knots], output: str) -> None:
    """Adds `output` = the calibrated form of `raw`, both float32 [N, H].

    A probability falls into the segment numbered by the knots at or below it, and goes on from the segment's anchor
    with the segment's slope. The result is held below the segment's upper end: so it never falls as `raw` rises, not
    even by a rounding.
    """
    x, segments = _tables(calibration)
    heads, knots_max = x.shape
    # Heads outside, Tweets inside: every operation then runs along all Tweets.
    value = graph.node("Transpose", [raw], "calibration/raw", perm=[1, 0])
    axis = graph.constant("calibration/knot_axis", np.array([1], np.int64))
    spread = graph.node("Unsqueeze", [value, axis], "calibration/values")
    knots = graph.constant("calibration/knots", x[:, :, np.newaxis])
    reached = graph.node("GreaterOrEqual", [spread, knots], "calibration/reached")  # [H, B, N]
    bits = graph.cast(reached, TensorProto.INT8, "calibration/bits_int8")
    ones = graph.constant("calibration/ones", np.ones((1, knots_max), np.uint8))
    # Counts several times as fast as ReduceSum.
    count = graph.node("MatMulInteger", [ones, bits], "calibration/knots_below")  # [H, 1, N]
    first_rows = (np.arange(heads, dtype=np.int32) * (knots_max + 1))[:, np.newaxis, np.newaxis]
    offsets = graph.constant("calibration/offsets", first_rows)
    row = graph.node("Add", [count, offsets], "calibration/row")
    segment = graph.node("Gather", [graph.constant("calibration/segments", segments), row], "calibration/segment")
    as_rows = graph.constant("calibration/as_rows", np.array([-1, 4], np.int64))
    rows = graph.node("Reshape", [segment, as_rows], "calibration/segment_rows")
    columns = graph.node("Transpose", [rows], "calibration/segment_columns", perm=[1, 0])
    as_tables = graph.constant("calibration/as_tables", np.array([4, heads, -1], np.int64))
    tables = graph.node("Reshape", [columns, as_tables], "calibration/segment_tables")  # [4, H, N]
    indices = [graph.constant(f"calibration/table{i}", np.array(i)) for i in range(4)]
    x_anchor, y_anchor, slope, upper_end = (
        graph.node("Gather", [tables, index], f"calibration/{name}", axis=0)
        for index, name in zip(indices, ("x_anchor", "y_anchor", "slope", "upper_end"), strict=True)
    )
    away = graph.node("Sub", [value, x_anchor], "calibration/from_anchor")
    rise = graph.node("Mul", [away, slope], "calibration/rise")
    total = graph.node("Add", [rise, y_anchor], "calibration/total")
    held = graph.node("Min", [total, upper_end], "calibration/held")
    zero = graph.constant("calibration/zero", np.zeros((), np.float32))
    positive = graph.node("Max", [held, zero], "calibration/positive")
    graph.node("Transpose", [positive], output, perm=[1, 0])


def _tables(calibration: Sequence[Knots]) -> tuple[Floats, Floats]:
    """Knots [H, B], +inf after a head's last, and segments [H * (B + 1), 4]: anchor x and y, slope, upper end."""
    knots_max = max(len(knots.x) for knots in calibration)
    x = np.full((len(calibration), knots_max), np.inf, np.float32)
    segments = np.zeros((len(calibration), knots_max + 1, 4), np.float32)
    for head, knots in enumerate(calibration):
        count = len(knots.x)
        x[head, :count] = knots.x
        inner = np.diff(knots.y.astype(np.float64)) / np.diff(knots.x.astype(np.float64))
        segments[head, : count + 1] = np.stack(
            [
                np.concatenate([knots.x[:1], knots.x]),
                np.concatenate([knots.y[:1], knots.y]),
                np.concatenate([[knots.end_slope], inner, [knots.end_slope]]),
                np.concatenate([knots.y, [1.0]]),
            ],
            axis=1,
        )
    return x, segments.reshape(-1, 4)
