"""A wide table's scalars as graph nodes: the cost is that of what is present.

An entry's bin is found among the boundaries of its column, the bin's row of weights is gathered, and the rows of a
chunk are summed by a product with ones. Chunks are worked through block by block in a `Scan`, or a large request would
gather gigabytes. A row of the table is the sum of its chunks: a difference of running sums, exact in int32, and in
float64 exact to far more than float32 holds. (`ScatterND` adds up as fast, but loses additions between threads.)
The inputs are those of `service.sparse_table.Chunks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto

from model_export.graph_table import Table
from model_export.graph_thermometer import Precision
from model_export.graph_writer import GraphWriter, tensor_info
from model_export.weights import Binned, Floats
from service.sparse_table import CHUNK


@dataclass(frozen=True)
class Lookup:
    """Where an entry finds its row of weights: row `bases[column] + number of thresholds reached`.

    Attributes:
        thresholds: [S + 1, J], by column -inf and the boundaries, NaN to fill up; the last column is of no entry.
        bases: float32 [S + 1]; whole numbers.
        rows: [rows, K] float32 or int8; the row at each base is zero: nothing is at or above NaN.
        scales: [K], what sums of int8 rows are to be multiplied by; None for float32.
    """

    thresholds: Floats
    bases: Floats
    rows: NDArray[Any]
    scales: Floats | None


def plan_lookup(binned: Sequence[Binned], scalars: int, precision: Precision) -> Lookup:
    """The lookup of the discretised ones among a table's `scalars` first columns."""
    thresholds = np.full((scalars + 1, max((len(b.weights) for b in binned), default=1)), np.nan, np.float32)
    bases = np.zeros(scalars + 1, np.float32)
    units = binned[0].weights.shape[1]
    parts = [np.zeros((1, units), np.float32)]
    end = 1
    for feature in binned:
        thresholds[feature.column, : len(feature.weights)] = np.concatenate([[-np.inf], feature.boundaries])
        bases[feature.column] = end
        parts += [np.zeros((1, units), np.float32), feature.weights]
        end += len(feature.weights) + 1
    rows = np.concatenate(parts)
    if precision == "float32":
        return Lookup(thresholds, bases, rows, None)
    largest = np.abs(rows).max(axis=0)
    scales = (np.where(largest > 0, largest, 1.0) / 127).astype(np.float32)
    return Lookup(thresholds, bases, np.rint(rows / scales).astype(np.int8), scales)


def sparse_inputs(name: str) -> list[ValueInfoProto]:
    """What a graph takes for the scalars of a sparse table beside the table of its other columns."""
    shape = (f"{name}_blocks", f"{name}_chunks", CHUNK)
    return [
        tensor_info(f"{name}_values", "float32", shape),
        tensor_info(f"{name}_columns", "int32", shape),
        tensor_info(f"{name}_rows", "int64", shape[:2]),
        tensor_info(f"{name}_ends", "int64", (f"{name}_ends",)),
    ]


def add_lookup(graph: GraphWriter, name: str, lookup: Lookup, start: str) -> str:
    """Adds `start` + the rows of all entries; returns [rows of the table, K]. `start` broadcasts to that."""
    prefix = f"{name}/entries"
    units = lookup.rows.shape[1]
    summed = TensorProto.FLOAT if lookup.scales is None else TensorProto.INT32
    block = (f"{name}_chunks", CHUNK)
    body = _block_body(graph, prefix, lookup).to_graph(
        f"{prefix}/block",
        [tensor_info(f"{prefix}/values", "float32", block), tensor_info(f"{prefix}/columns", "int32", block)],
        [tensor_info(f"{prefix}/chunk_sums", "float32" if lookup.scales is None else "int32", (block[0], units))],
    )
    inputs = [f"{name}_values", f"{name}_columns"]
    blocks = graph.node("Scan", inputs, f"{prefix}/blocks", num_scan_inputs=2, body=body)
    shape = graph.constant(f"{prefix}/chunk_shape", np.array([-1, units], np.int64))
    chunks = graph.node("Reshape", [blocks, shape], f"{prefix}/chunks")
    if summed == TensorProto.FLOAT:
        chunks = graph.cast(chunks, TensorProto.DOUBLE, f"{prefix}/chunks_float64")
    axis = graph.constant(f"{prefix}/axis", np.array(0, np.int64))
    running = graph.node("CumSum", [chunks, axis], f"{prefix}/running")
    at_ends = graph.node("Gather", [running, f"{name}_ends"], f"{prefix}/at_ends", axis=0)
    total = graph.node("Sub", [_from(graph, at_ends, 1, None), _from(graph, at_ends, 0, -1)], f"{prefix}/row_sums")
    total = graph.cast(total, TensorProto.FLOAT, f"{prefix}/row_sums_float32")
    if lookup.scales is not None:
        total = graph.node("Mul", [total, graph.constant(f"{prefix}/scales", lookup.scales)], f"{prefix}/scaled")
    return graph.node("Add", [total, start], f"{prefix}/sum")


def _block_body(graph: GraphWriter, prefix: str, lookup: Lookup) -> GraphWriter:
    """Values and columns [chunks, CHUNK] -> sums [chunks, K] of the rows found; constants stand in `graph`."""
    body = GraphWriter()
    last_axis = graph.constant(f"{prefix}/last_axis", np.array([-1], np.int64))
    columns = f"{prefix}/columns"
    thresholds = graph.constant(f"{prefix}/thresholds", lookup.thresholds)
    own = body.node("Gather", [thresholds, columns], f"{prefix}/own_thresholds", axis=0)
    spread = body.node("Unsqueeze", [f"{prefix}/values", last_axis], f"{prefix}/spread")
    reached = body.node("GreaterOrEqual", [spread, own], f"{prefix}/reached")
    # Floats: they are added up in half the time of integers.
    ones = body.cast(reached, TensorProto.FLOAT, f"{prefix}/ones")
    bins = body.node("ReduceSum", [ones, last_axis], f"{prefix}/bins", keepdims=0)
    bases = body.node("Gather", [graph.constant(f"{prefix}/bases", lookup.bases), columns], f"{prefix}/own_bases")
    index = body.cast(body.node("Add", [bins, bases], f"{prefix}/index_float32"), TensorProto.INT32, f"{prefix}/index")
    gathered = body.node("Gather", [graph.constant(f"{prefix}/rows", lookup.rows), index], f"{prefix}/gathered")
    integers = lookup.scales is not None
    every = np.ones((1, 1, CHUNK), np.uint8 if integers else np.float32)
    factors = [graph.constant(f"{prefix}/every", every), gathered]
    product = body.node("MatMulInteger" if integers else "MatMul", factors, f"{prefix}/product")
    axis = graph.constant(f"{prefix}/chunk_axis", np.array([1], np.int64))
    body.node("Squeeze", [product, axis], f"{prefix}/chunk_sums")
    return body


def _from(graph: GraphWriter, value: str, first: int, end: int | None) -> str:
    """Rows of [rows, K] from `first` to `end`, as Python counts them."""
    name = f"{value}/from{first}"
    last = np.iinfo(np.int64).max if end is None else end
    bounds = [("first", first), ("end", last), ("axis", 0)]
    constants = [graph.constant(f"{name}/{key}", np.array([x], np.int64)) for key, x in bounds]
    return graph.node("Slice", [value, *constants], name)


class SparseTable(Table):
    """A table whose first `scalars` columns come as entries, the others as its input [rows, width - scalars].

    Scalars that are picked, because they enter by value, are laid out: that costs rows x columns picked.
    """

    def __init__(self, graph: GraphWriter, name: str, width: int, scalars: int) -> None:
        super().__init__(graph, name, width)
        self.scalars = scalars

    def pick(self, columns: NDArray[np.int64], name: str) -> str:
        """[*columns.shape, rows]; scalars only by a list of columns."""
        among = columns < self.scalars
        if not among.any():
            index = self.graph.constant(f"{name}/columns", columns - self.scalars)
            return self.graph.node("Gather", [self.transposed, index], f"{name}/picked", axis=0)
        laid_out = self._lay_out(columns[among], name)
        if among.all():
            return laid_out
        parts = [laid_out, self.pick(columns[~among], f"{name}/others")]
        joined = self.graph.node("Concat", parts, f"{name}/joined", axis=0)
        order = np.argsort(np.concatenate([np.flatnonzero(among), np.flatnonzero(~among)]))
        return self.graph.node(
            "Gather", [joined, self.graph.constant(f"{name}/order", order)], f"{name}/picked", axis=0
        )

    def columns(self, columns: NDArray[np.int64], name: str) -> str:
        """[rows, len(columns)]."""
        return self.graph.node("Transpose", [self.pick(columns, name)], f"{name}/table_columns", perm=[1, 0])

    def _lay_out(self, columns: NDArray[np.int64], name: str) -> str:
        """[len(columns), rows] of scalars; one row more takes the entries of others, and is cut off."""
        graph, count = self.graph, len(columns)

        def constant(key: str, *values: int) -> str:
            return graph.constant(f"{name}/{key}", np.array(values, np.int64))

        place_of = np.full(self.scalars + 1, count)
        place_of[columns] = np.arange(count)
        places = graph.node("Gather", [constant("place_of", *place_of), f"{self.name}_columns"], f"{name}/places")
        shape = graph.node("Shape", [places], f"{name}/entries_shape")
        last_axis = constant("last_axis", -1)
        chunk_rows = graph.node("Unsqueeze", [f"{self.name}_rows", last_axis], f"{name}/chunk_rows")
        rows = graph.node("Expand", [chunk_rows, shape], f"{name}/rows")
        pair = [graph.node("Unsqueeze", [part, last_axis], f"{part}/spread") for part in (places, rows)]
        index = graph.node("Concat", pair, f"{name}/index", axis=-1)
        ends = graph.node("Shape", [f"{self.name}_ends"], f"{name}/end_count")
        row_count = graph.node("Sub", [ends, constant("one", 1)], f"{name}/row_count")
        size = graph.node("Concat", [constant("height", count + 1), row_count], f"{name}/size", axis=0)
        nan = graph.constant(f"{name}/absent", np.array(np.nan, np.float32))
        empty = graph.node("Expand", [nan, size], f"{name}/empty")
        filled = graph.node("ScatterND", [empty, index, f"{self.name}_values"], f"{name}/filled")
        bounds = [constant("first", 0), constant("end", count), constant("axis", 0)]
        return graph.node("Slice", [filled, *bounds], f"{name}/laid_out")
