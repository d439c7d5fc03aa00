"""One group's input as graph nodes see it: whole, or column by column."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.graph_writer import GraphWriter
from model_export.weights import Floats


class Term(NamedTuple):
    """What adds `values.T @ weights` to the first layer.

    Attributes:
        values: In the graph, [r, rows].
        weights: [r, K].
    """

    values: str
    weights: Floats


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
        """[*columns.shape, rows]."""
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
