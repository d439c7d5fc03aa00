"""Encoded training examples on disk: what the network reads, ready to be read again every epoch.

A folder of Parquet files with one column `example` of fixed-size binary, a packed record per row (`record_type`), in
small row groups that a reader takes in any order. Reading holds a few row groups at a time, whatever the data's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

ROW_GROUP_ROWS = 8_192
FILE_ROWS = 32 * ROW_GROUP_ROWS
# Row groups that are shuffled together: at 600 bytes a row some 80 MB.
BUFFER_GROUPS = 16


@dataclass(frozen=True)
class Examples:
    """n encoded impressions.

    Attributes:
        bins: uint16 [n, S], as `Encoding.encode` gives them.
        raw: float32 [n, R], likewise.
        labels: uint8 [n, H].
        used: uint8 [n, H]: 1 where the head trains on the row.
    """

    bins: NDArray[np.uint16]
    raw: NDArray[np.float32]
    labels: NDArray[np.uint8]
    used: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)


def record_type(slots: int, raws: int, heads: int) -> np.dtype[np.void]:
    """The layout of one packed record."""
    return np.dtype(
        [("labels", "u1", (heads,)), ("used", "u1", (heads,)), ("bins", "<u2", (slots,)), ("raw", "<f4", (raws,))]
    )


class ExampleWriter:
    """Writes examples to `folder` as they come; the files are complete once the context ends."""

    def __init__(self, folder: Path, record: np.dtype[np.void]) -> None:
        self._folder = folder
        self._record = record
        self._schema = pa.schema([("example", pa.binary(record.itemsize))])
        self._waiting: list[NDArray[np.void]] = []
        self._file: pq.ParquetWriter | None = None
        self._file_rows = 0
        self._files = 0

    def __enter__(self) -> ExampleWriter:
        self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush(rows_min=1)
        if self._file is not None:
            self._file.close()

    def write(self, examples: Examples) -> None:
        """Appends examples."""
        records = np.empty(len(examples), self._record)
        for name in ("labels", "used", "bins", "raw"):
            records[name] = getattr(examples, name)
        self._waiting.append(records)
        self._flush(rows_min=ROW_GROUP_ROWS)

    def _flush(self, rows_min: int) -> None:
        records = np.concatenate(self._waiting) if self._waiting else np.empty(0, self._record)
        while len(records) >= rows_min:
            self._write_group(records[:ROW_GROUP_ROWS])
            records = records[ROW_GROUP_ROWS:]
        self._waiting = [records]

    def _write_group(self, records: NDArray[np.void]) -> None:
        if self._file is None or self._file_rows >= FILE_ROWS:
            if self._file is not None:
                self._file.close()
            path = self._folder / f"part-{self._files:05d}.parquet"
            self._file = pq.ParquetWriter(path, self._schema, compression="lz4", use_dictionary=False)
            self._files += 1
            self._file_rows = 0
        column = pa.Array.from_buffers(pa.binary(self._record.itemsize), len(records), [None, pa.py_buffer(records)])
        self._file.write_table(pa.table([column], schema=self._schema), row_group_size=ROW_GROUP_ROWS)
        self._file_rows += len(records)


@dataclass(frozen=True)
class RowGroup:
    """Where a row group lies, and how many rows it has."""

    path: Path
    index: int
    rows: int


@dataclass(frozen=True)
class ExampleSet:
    """Examples that an ExampleWriter wrote."""

    folder: Path
    record: np.dtype[np.void]

    @property
    def rows(self) -> int:
        """How many examples, from the files' footers."""
        return sum(int(pq.read_metadata(path).num_rows) for path in self.folder.glob("part-*.parquet"))

    def rows_each(self, ranks: int) -> int:
        """How many of them each of `ranks` processes gets in `shuffled`."""
        return sum(part.rows for part in _dealt(self.row_groups(), 0, ranks))

    def row_groups(self) -> list[RowGroup]:
        """All row groups in the order written."""
        groups = []
        for path in sorted(self.folder.glob("part-*.parquet")):
            metadata = pq.read_metadata(path)
            groups += [RowGroup(path, i, metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)]
        return groups

    def in_order(self) -> Iterator[Examples]:
        """A row group at a time, in the order written."""
        for group in self.row_groups():
            yield _examples(_read_group(group, self.record))

    def raw_moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(mean, standard deviation) [R] of each raw value over the examples that have it.

        Of one that no example has they are 0 and 1; where it is the same in all, the deviation is 1.
        """
        raws = self.record["raw"].shape[0]
        present, total, squares = np.zeros(raws), np.zeros(raws), np.zeros(raws)
        for examples in self.in_order():
            values = examples.raw.astype(np.float64)
            present += (~np.isnan(values)).sum(axis=0)
            total += np.nansum(values, axis=0)
            squares += np.nansum(values**2, axis=0)
        mean = total / np.maximum(present, 1)
        mean_square = squares / np.maximum(present, 1)
        variance = mean_square - mean**2
        # What is left of a constant is rounding.
        varies = variance > 1e-12 * mean_square
        return mean, np.sqrt(np.where(varies, variance, 1.0))

    def shuffled(self, batch_rows: int, rng: np.random.Generator, rank: int = 0, ranks: int = 1) -> Iterator[Examples]:
        """Every example once, in batches of `batch_rows` (the last one smaller), in an order drawn from `rng`.

        Row groups are drawn over all files, and rows over the BUFFER_GROUPS groups held at a time: a batch mixes
        impressions of many days.

        Of several processes with equal generators each gets batches of its own, as many rows as any other: whole row
        groups in turn, and an equal share of each group that is left over, less fewer than `ranks` rows of it.
        """
        groups = self.row_groups()
        parts = _dealt([groups[i] for i in rng.permutation(len(groups))], rank, ranks)
        if ranks > 1:
            rng = np.random.default_rng((int(rng.integers(2**62)), rank))
        left = np.empty(0, self.record)
        for first in range(0, len(parts), BUFFER_GROUPS):
            read = [part.of(_read_group(part.group, self.record)) for part in parts[first : first + BUFFER_GROUPS]]
            records = np.concatenate([left, *read])
            order = rng.permutation(len(records))
            whole = len(records) - len(records) % batch_rows
            for start in range(0, whole, batch_rows):
                yield _examples(records.take(order[start : start + batch_rows]))
            left = records.take(order[whole:])
        if len(left):
            yield _examples(left)


@dataclass(frozen=True)
class _Part:
    """Every `step`-th row of a row group from `first` on, `rows` of them."""

    group: RowGroup
    first: int
    step: int
    rows: int

    def of(self, records: NDArray[np.void]) -> NDArray[np.void]:
        return records[self.first :: self.step][: self.rows]


def _dealt(groups: list[RowGroup], rank: int, ranks: int) -> list[_Part]:
    """What one of `ranks` processes reads: whole groups go round as often as they are enough for all."""
    whole = [group for group in groups if group.rows == ROW_GROUP_ROWS]
    given = {group: i % ranks for i, group in enumerate(whole[: len(whole) // ranks * ranks])}
    parts = []
    for group in groups:
        if group not in given:
            parts.append(_Part(group, rank, ranks, group.rows // ranks))
        elif given[group] == rank:
            parts.append(_Part(group, 0, 1, group.rows))
    return parts


def _read_group(group: RowGroup, record: np.dtype[np.void]) -> NDArray[np.void]:
    with pq.ParquetFile(group.path) as file:
        column = file.read_row_group(group.index).column("example").combine_chunks()
    records = np.frombuffer(column.buffers()[1], record)
    return records[column.offset : column.offset + len(column)]


def _examples(records: NDArray[np.void]) -> Examples:
    return Examples(**{name: records[name].copy() for name in ("bins", "raw", "labels", "used")})
