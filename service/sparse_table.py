"""A table's scalars as what is present of them: how a model takes them whose schema is wide and whose rows are not.

A row's entries stand in chunks of CHUNK places. Chunks stand in blocks of equal size: a model gathers the weights of
one block at a time, which stays in a core's cache, however large the request.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.decode import Floats, Ints, Sparse

# Places of a chunk. Rows fill half of their last one on average; a longer chunk is a little faster to add up.
CHUNK = 16
# Rows of weights that a block gathers are CHUNK times as many: they fit a core's cache.
_CHUNKS_PER_BLOCK_MAX = 64


class Chunks(NamedTuple):
    """The inputs of a model, in the order and under the names that follow the table's: `tweets_values` and so on.

    Attributes:
        values: float32 [blocks, chunks, CHUNK]; NaN where there is no entry.
        columns: int32, likewise: the column of each value; the number of scalars where there is no entry.
        rows: int64 [blocks, chunks], the row that each chunk belongs to.
        ends: int64 [rows + 1]: row r has the chunks after number ends[r] up to number ends[r + 1], counted through all
            blocks. Chunk 0 is empty and nobody's.
    """

    values: Floats
    columns: NDArray[np.int32]
    rows: Ints
    ends: Ints


def entries_of(values: Floats) -> Sparse:
    """What is present in a table [rows, columns], row by row."""
    present = ~np.isnan(values)
    # A third of the time that np.nonzero takes for both indices.
    places = np.flatnonzero(present)
    rows = np.repeat(np.arange(len(values)), np.count_nonzero(present, axis=1))
    return Sparse(rows, (places - rows * values.shape[1]).astype(np.uint32), values.ravel()[places])


def split(table: Floats, scalars: int) -> tuple[Floats, Sparse]:
    """A table [rows, width] as its columns after the scalars [rows, width - scalars], and the scalars as entries."""
    return np.ascontiguousarray(table[:, scalars:]), entries_of(table[:, :scalars])


def take_rows(entries: Sparse, rows: Ints) -> Sparse:
    """The entries of these rows, in their order; those of a row that is named twice come twice."""
    begins = np.searchsorted(entries.rows, rows)
    lengths = np.searchsorted(entries.rows, rows, side="right") - begins
    # Where a row's entries begin, less the number of entries taken before: what to add to the number of each.
    places = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    return Sparse(np.repeat(np.arange(len(rows)), lengths), entries.columns[places], entries.values[places])


def sparse_feeds(name: str, entries: Sparse, rows: int, scalars: int) -> dict[str, NDArray[Any]]:
    """The inputs of a model for the scalars of the table `name`; see `to_chunks`."""
    return {f"{name}_{part}": array for part, array in to_chunks(entries, rows, scalars)._asdict().items()}


def to_chunks(entries: Sparse, rows: int, scalars: int) -> Chunks:
    """Lays out entries, which stand row by row, of a table of `rows` rows and `scalars` columns."""
    lengths = np.bincount(entries.rows, minlength=rows)
    counts = -(-lengths // CHUNK)
    ends = np.concatenate([[0], np.cumsum(counts)])
    used = int(ends[-1]) + 1
    blocks = -(-used // _CHUNKS_PER_BLOCK_MAX)
    height = -(-used // blocks)
    # The first place of each row, less the entries before it: what to add to an entry's number.
    shifts = (ends[:-1] + 1) * CHUNK - (np.cumsum(lengths) - lengths)
    places = np.repeat(shifts, lengths) + np.arange(len(entries.values))
    values = np.full(blocks * height * CHUNK, np.nan, np.float32)
    values[places] = entries.values
    columns = np.full(len(values), scalars, np.int32)
    columns[places] = entries.columns
    chunk_rows = np.zeros(blocks * height, np.int64)
    chunk_rows[1:used] = np.repeat(np.arange(rows), counts)
    shape = blocks, height, CHUNK
    return Chunks(values.reshape(shape), columns.reshape(shape), chunk_rows.reshape(shape[:2]), ends)
