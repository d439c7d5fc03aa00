"""Entries of a table in chunks: whatever is present comes out again, each in its row's chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.decode import Sparse
from service.sparse_table import CHUNK, entries_of, sparse_feeds, split, take_rows, to_chunks

NAN = np.nan
Table = NDArray[np.float32]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Up to 120 rows of up to 60 columns, rows of very different length among them, each value another."""
    rows, columns = draw(st.integers(0, 120)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 1_000)))
    table = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    table[rng.random((rows, columns)) < rng.choice([0, 0.5, 0.98, 1], (rows, 1))] = NAN
    return table


def laid_out(entries: Sparse, rows: int, columns: int) -> Table:
    """The table of these entries, the slow way."""
    table = np.full((rows, columns), NAN, np.float32)
    for row, column, value in zip(*entries, strict=True):
        assert np.isnan(table[row, column])
        table[row, column] = value
    return table


@given(tables())
def test_chunks_hold_what_is_present_and_nothing_else(table: Table) -> None:
    """Each row's chunks, by `ends` and by `rows`, hold its values by column; all else is NaN at no column."""
    rows, scalars = table.shape
    chunks = to_chunks(entries_of(table), rows, scalars)

    blocks, height, width = chunks.values.shape
    assert width == CHUNK
    assert chunks.columns.shape == chunks.values.shape
    assert chunks.rows.shape == (blocks, height)
    assert height <= 64
    values, columns = chunks.values.reshape(-1, CHUNK), chunks.columns.reshape(-1, CHUNK)
    assert np.isnan(values[0]).all()
    assert chunks.ends[0] == 0
    found = np.full_like(table, NAN)
    for row in range(rows):
        for chunk in range(chunks.ends[row] + 1, chunks.ends[row + 1] + 1):
            assert chunks.rows.ravel()[chunk] == row
            filled = columns[chunk] < scalars
            found[row, columns[chunk][filled]] = values[chunk][filled]
    np.testing.assert_array_equal(found, table)
    assert (columns < scalars).sum() == (~np.isnan(values)).sum() == (~np.isnan(table)).sum()


@given(tables())
def test_space_goes_by_what_is_present(table: Table) -> None:
    """One long row does not lengthen the others: a chunk more than full ones for a row, and one for all."""
    rows, scalars = table.shape
    present = (~np.isnan(table)).sum(axis=1)
    needed = 1 + int((-(-present // CHUNK)).sum())
    blocks, height, _ = to_chunks(entries_of(table), rows, scalars).values.shape
    assert needed <= blocks * height < needed + blocks


@given(tables(), st.integers(0, 1_000))
def test_rows_are_taken_in_the_order_asked_for(table: Table, seed: int) -> None:
    """As from the whole table, also those asked for more than once."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(table), rng.integers(0, 2 * len(table))) if len(table) else np.zeros(0, np.int64)
    taken = take_rows(entries_of(table), chosen)
    assert (np.diff(taken.rows) >= 0).all()
    np.testing.assert_array_equal(laid_out(taken, len(chosen), table.shape[1]), table[chosen])


def test_inputs_bear_the_name_of_the_table() -> None:
    """Two rows by hand: the first has nothing, the second one value."""
    feeds = sparse_feeds("tweets", entries_of(np.array([[NAN, NAN], [NAN, 7]], np.float32)), 2, 2)

    assert list(feeds) == ["tweets_values", "tweets_columns", "tweets_rows", "tweets_ends"]
    assert feeds["tweets_values"].shape == (1, 2, CHUNK)
    assert feeds["tweets_values"][0, 1, 0] == 7
    assert feeds["tweets_columns"][0].tolist() == [[2] * CHUNK, [1] + [2] * (CHUNK - 1)]
    assert feeds["tweets_rows"].tolist() == [[0, 1]]
    assert feeds["tweets_ends"].tolist() == [0, 0, 1]
    assert [array.dtype for array in feeds.values()] == [np.float32, np.int32, np.int64, np.int64]


@pytest.mark.parametrize("scalars", [0, 2, 3])
def test_a_table_falls_into_its_scalars_and_the_rest(scalars: int) -> None:
    """Which together are the table."""
    table = np.array([[1, NAN, 3], [NAN, 5, NAN]], np.float32)
    rest, entries = split(table, scalars)
    assert rest.flags.c_contiguous
    np.testing.assert_array_equal(np.concatenate([laid_out(entries, 2, scalars), rest], axis=1), table)
