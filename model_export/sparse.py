"""Sums of table rows, the first layer's sparse part: an embedding bag forward, and another one backward.

The sum of an example is a bag of the table's rows. The gradient of a row is the sum over the examples that have it: a
bag of theirs, so batches come with both lists. torch's own backward of a bag sorts, and takes three times as long
(docs/decisions/0053).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True)
class SparseRows:
    """Which rows of a table are summed for each of n examples, and the same turned round.

    Attributes:
        rows: int32, of the first example, then of the second ...
        starts: int32 [n + 1], where each example's begin, and the end.
        examples: int32, those that have the first row, then those that have the second ...
        row_starts: int32 [table rows + 1].
    """

    rows: Tensor
    starts: Tensor
    examples: Tensor
    row_starts: Tensor


def sparse_rows(bins: NDArray[np.uint16], offsets: NDArray[np.int64], rows: int) -> SparseRows:
    """Args are bins [n, S] that count from 1 (0 = absent), where each slot starts [S], and how many rows there are."""
    present = bins > 0
    columns = (bins + (offsets - 1).astype(np.int32))[present]  # in the order of examples
    counts = present.sum(axis=1)
    # A stable sort of 16 bits is a radix sort.
    by_row = np.argsort(columns.astype(np.min_scalar_type(rows)), kind="stable")
    examples = np.repeat(np.arange(len(bins), dtype=np.int32), counts)[by_row]
    row_counts = np.bincount(columns, minlength=rows)
    return SparseRows(torch.from_numpy(columns), _starts(counts), torch.from_numpy(examples), _starts(row_counts))


def _starts(counts: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: SparseRows, table: Tensor) -> Tensor:
        ctx.rows = rows
        return _bags(rows.rows, rows.starts, table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, _bags(ctx.rows.examples, ctx.rows.row_starts, gradients[0].contiguous())


def _bags(indices: Tensor, starts: Tensor, table: Tensor) -> Tensor:
    return embedding_bag(indices, table, starts, mode="sum", include_last_offset=True)


def sum_rows(rows: SparseRows, table: Tensor) -> Tensor:
    """Sums rows of the table [table rows, K] for each example: [n, K], differentiable by the table."""
    summed: Tensor = _SumRows.apply(rows, table)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return summed
