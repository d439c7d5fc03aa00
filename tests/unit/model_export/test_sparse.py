"""The sparse sum against torch's own embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_export.sparse import sparse_rows, sum_rows


@given(st.integers(0, 9), st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_sum_and_gradient_are_those_of_an_embedding(n: int, sizes: list[int], seed: int) -> None:
    """Any slot sizes, absent features included; row 0 of the embedding stands for absent and is masked out."""
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *sizes])[:-1]
    bins = np.stack([rng.integers(0, size + 1, n) for size in sizes], axis=1).astype(np.uint16)
    table = torch.randn(sum(sizes), 4, requires_grad=True)
    gradient = torch.randn(n, 4)

    summed = sum_rows(sparse_rows(bins, offsets, sum(sizes)), table)
    summed.backward(gradient)  # type: ignore[no-untyped-call]  # torch leaves backward untyped

    twin = table.detach().clone().requires_grad_()
    indices = torch.from_numpy(bins.astype(np.int64) + offsets - 1)
    present = torch.from_numpy(bins > 0)
    expected = (twin[indices.clamp(min=0)] * present.unsqueeze(2)).sum(dim=1)
    expected.backward(gradient)  # type: ignore[no-untyped-call]
    assert table.grad is not None
    assert twin.grad is not None
    torch.testing.assert_close(summed, expected)
    torch.testing.assert_close(table.grad, twin.grad)


def test_no_slots_sum_to_zero() -> None:
    """A model of raw values alone."""
    rows = sparse_rows(np.empty((3, 0), np.uint16), np.empty(0, np.int64), 0)

    assert sum_rows(rows, torch.empty(0, 2)).tolist() == [[0.0, 0.0]] * 3


@pytest.mark.parametrize("rows", [70_000])
def test_tables_of_more_rows_than_16_bits_count(rows: int) -> None:
    """The sort by row is not cut to 16 bits."""
    bins = np.array([[1, 60_000], [0, 1], [5, 0]], np.uint16)
    table = torch.arange(rows, dtype=torch.float32).unsqueeze(1).requires_grad_()

    summed = sum_rows(sparse_rows(bins, np.array([0, 10_000]), rows), table)
    summed.sum().backward()  # type: ignore[no-untyped-call]

    assert summed.ravel().tolist() == [69_999, 10_000, 4]
    assert table.grad is not None
    assert table.grad.nonzero()[:, 0].tolist() == [0, 4, 10_000, 69_999]
