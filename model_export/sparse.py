"""Sums of table rows, the first layer's sparse part, forward and backward as sparse matrix products.

A batch of bins is a matrix of zeros and ones [n, table rows] with a one per present feature. The sums are its product
with the table, and the table's gradient is the product of its transpose. For 1,024 examples of 125 features, a third
absent, and 256 units both take 10.8 ms on one thread, torch's embedding bag 11.5.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class SparseRows:
    """Which rows of a table are summed for each example, and the same turned round.

    Attributes:
        matrix: sparse CSR [n, table rows] of ones.
        transposed: sparse CSR [table rows, n].
    """

    matrix: Tensor
    transposed: Tensor


def sparse_rows(bins: NDArray[np.uint16], offsets: NDArray[np.int64], rows: int) -> SparseRows:
    """Args are bins [n, S] that count from 1 (0 = absent), where each slot starts [S], and how many rows there are."""
    n = len(bins)
    present = bins > 0
    columns = (bins + (offsets - 1))[present]  # in the order of examples
    ends = np.cumsum(present.sum(axis=1))
    # A stable sort of 16 bits is a radix sort.
    by_row = np.argsort(columns.astype(np.min_scalar_type(rows)), kind="stable")
    examples = np.repeat(np.arange(n), np.diff(ends, prepend=0))[by_row]
    row_ends = np.cumsum(np.bincount(columns, minlength=rows))
    return SparseRows(_ones(ends, columns, (n, rows)), _ones(row_ends, examples, (rows, n)))


def _ones(ends: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> Tensor:
    starts = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int64))
    with warnings.catch_warnings():  # torch says once per process that its CSR tensors are in beta.
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(starts, torch.from_numpy(columns), torch.ones(len(columns)), shape)


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: SparseRows, table: Tensor) -> Tensor:
        ctx.transposed = rows.transposed
        return rows.matrix @ table

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, ctx.transposed @ gradients[0]


def sum_rows(rows: SparseRows, table: Tensor) -> Tensor:
    """Sums rows of the table [table rows, K] for each example: [n, K], differentiable by the table."""
    summed: Tensor = _SumRows.apply(rows, table)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return summed
