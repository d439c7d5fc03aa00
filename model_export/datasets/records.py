"""Impressions on disk: the one record form that every data source is turned into and the trainer reads.

A data set is a directory: `schema.json` and one `day=NNN.parquet` per day, a row an impression, in time order.
Columns of a row:

    viewer_id, author_id, tweet_id   int64
    session                          int64   which timeline view
    time_ms                          int64   when it was shown, Unix ms
    <group>.<name>                   float32 scalar, NaN = absent
                                     int32 index into the schema's vocabulary for categoricals, -1 = absent
                                     fixed-size list of float32 for vectors, all NaN = absent
    label.<head>                     uint8   1 = the engagement happened
    true.<head>, reachable.<head>    float32 only in a simulated world: the probability that the label was drawn with,
                                     and its expectation given what a request carries. For evaluation, never a feature.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.schema import GROUPS, Feature, Group, GroupLayout, Schema

ID_COLUMNS = ("viewer_id", "author_id", "tweet_id", "session", "time_ms")
# Impressions that are in memory at a time.
BATCH_ROWS = 16_384
_READ_BYTES = 65_536
_EPOCH = datetime.date(1970, 1, 1)


class DataError(ValueError):
    """Data that is to be turned into the record form is not what its reader takes; the message says where."""


def data_path(path: str) -> Path:
    """A path of a plan, `$NAME` standing for an environment variable: plans can be shared without anyone's folders.

    Raises:
        DataError: The variable is not set.
    """
    resolved = os.path.expandvars(path)
    if "$" in resolved:
        raise DataError(f"{path}: an environment variable in it is not set")
    return Path(resolved)


def epoch_day(date: datetime.date) -> int:
    """Days since 1970-01-01: how a source of real impressions counts its days."""
    return (date - _EPOCH).days


def epoch_date(day: int) -> datetime.date:
    """The date of such a day."""
    return _EPOCH + datetime.timedelta(days=day)


@dataclass(frozen=True)
class Impressions:
    """n impressions as arrays.

    Attributes:
        ids: Each of ID_COLUMNS -> int64 [n].
        tables: Group -> float32 [n, layout width], in the columns of the schema's layout; NaN = absent.
        labels: uint8 [n, heads].
        true, reachable: float32 [n, heads], or None where the source is not simulated.
    """

    ids: dict[str, NDArray[np.int64]]
    tables: dict[Group, NDArray[np.float32]]
    labels: NDArray[np.uint8]
    true: NDArray[np.float32] | None = None
    reachable: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[Any]) -> Impressions:
        """The impressions at these indices (or where this mask holds)."""
        return Impressions(
            ids={name: column[rows] for name, column in self.ids.items()},
            tables={group: table[rows] for group, table in self.tables.items()},
            labels=self.labels[rows],
            true=None if self.true is None else self.true[rows],
            reachable=None if self.reachable is None else self.reachable[rows],
        )


@dataclass(frozen=True)
class RecordSet:
    """A data set in the record form."""

    root: Path
    schema: Schema
    days: tuple[int, ...]

    @staticmethod
    def open(root: Path) -> RecordSet:
        """Opens the data set at `root`; raises FileNotFoundError where there is none."""
        schema = Schema.from_json(json.loads((root / "schema.json").read_text()))
        days = tuple(sorted(int(path.stem.removeprefix("day=")) for path in root.glob("day=*.parquet")))
        return RecordSet(root, schema, days)

    def for_model(self, schema: Schema) -> RecordSet:
        """The same data with a model's features and heads; raises DataError where it lacks one or has another."""
        there = {(feature.group, feature.name): feature for feature in self.schema.features}
        for feature in schema.features:
            if (feature.group, feature.name) not in there:
                raise DataError(f"the data has no {feature.group}.{feature.name}, which the model reads")
            if there[feature.group, feature.name] != feature:
                raise DataError(f"{feature.group}.{feature.name}: other categories, kind or unit than the model's")
        for head in schema.head_names:
            if head not in self.schema.head_names:
                raise DataError(f"the data has no labels for the model's head {head!r}")
        return RecordSet(self.root, schema, self.days)

    def rows(self, days: Sequence[int]) -> int:
        """Impressions on these days, from the files' footers."""
        return sum(int(pq.read_metadata(_day_path(self.root, day)).num_rows) for day in days)

    def batches(self, days: Sequence[int], rows_max: int = BATCH_ROWS) -> Iterator[Impressions]:
        """Streams the impressions of these days in order, at most `rows_max` at a time.

        Only the columns of `schema` are read: a record set with a part of its schema costs that part.
        """
        columns = [f"{feature.group}.{feature.name}" for feature in self.schema.features]
        columns += [f"{kind}.{head}" for head in self.schema.head_names for kind in ("label", "true", "reachable")]
        for day in days:
            path = _day_path(self.root, day)
            present = set(pq.read_schema(path).names)
            wanted = [*ID_COLUMNS, *(name for name in columns if name in present)]
            for batch in read_batches(path, wanted, rows_max):
                yield _impressions(batch, self.schema)


def read_batches(path: Path, columns: Sequence[str], rows_max: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Streams columns of a Parquet file in order, at most `rows_max` rows at a time.

    Memory grows neither with the file nor with its row groups.
    """
    # What pyarrow reads ahead, all row groups, stays until the file is closed; unbuffered, it reads whole chunks.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=_READ_BYTES) as file:
        yield from file.iter_batches(rows_max, columns=columns)


def create(root: Path, schema: Schema) -> None:
    """Starts a data set at `root`, which may exist and be empty."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "schema.json").write_text(json.dumps(schema.to_json(), indent=1))


def write_day(root: Path, schema: Schema, day: int, impressions: Impressions) -> None:
    """Writes one day of a data set that `create` started; the file appears whole or not at all."""
    with day_writer(root, schema, day) as write:
        write(impressions)


@contextmanager
def day_writer(root: Path, schema: Schema, day: int) -> Iterator[Callable[[Impressions], None]]:
    """Writes one day in parts, in order of time: what it gives takes the next part. At least one is needed.

    The file appears whole, at the end, or not at all.
    """
    path = _day_path(root, day)
    partial = path.with_suffix(".partial")
    writer: pq.ParquetWriter | None = None

    def write(impressions: Impressions) -> None:
        nonlocal writer
        table = _to_table(schema, impressions)
        writer = writer or pq.ParquetWriter(partial, table.schema, compression="lz4")
        writer.write_table(table, row_group_size=131_072)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
    partial.rename(path)


def _to_table(schema: Schema, impressions: Impressions) -> pa.Table:
    columns: dict[str, Any] = {name: impressions.ids[name] for name in ID_COLUMNS}
    for group in GROUPS:
        layout = schema.layouts[group]
        for feature in layout.features:
            columns[f"{group}.{feature.name}"] = _to_arrow(feature, layout, impressions.tables[group])
    for j, head in enumerate(schema.head_names):
        columns[f"label.{head}"] = np.ascontiguousarray(impressions.labels[:, j])
        for kind, values in (("true", impressions.true), ("reachable", impressions.reachable)):
            if values is not None:
                columns[f"{kind}.{head}"] = np.ascontiguousarray(values[:, j])
    return pa.table(columns)


def _day_path(root: Path, day: int) -> Path:
    return root / f"day={day:03d}.parquet"


def _to_arrow(feature: Feature, layout: GroupLayout, table: NDArray[np.float32]) -> Any:
    start = layout.offsets[feature.name]
    values = np.ascontiguousarray(table[:, start : start + feature.width])
    if feature.kind == "vector":
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), feature.width)
    if feature.kind == "categorical":
        return np.where(np.isnan(values[:, 0]), -1, values[:, 0]).astype(np.int32)
    return values[:, 0]


def _impressions(batch: pa.RecordBatch, schema: Schema) -> Impressions:
    tables: dict[Group, NDArray[np.float32]] = {}
    for group in GROUPS:
        layout = schema.layouts[group]
        table = np.empty((batch.num_rows, layout.width), np.float32)
        for feature in layout.features:
            column = batch.column(f"{group}.{feature.name}")
            start = layout.offsets[feature.name]
            if feature.kind == "vector":
                table[:, start : start + feature.width] = column.flatten().to_numpy().reshape(-1, feature.width)
            elif feature.kind == "categorical":
                indices = column.to_numpy().astype(np.float32)
                table[:, start] = np.where(indices < 0, np.nan, indices)
            else:
                table[:, start] = column.to_numpy()
        tables[group] = table

    def heads(kind: str) -> NDArray[Any]:
        return np.stack([batch.column(f"{kind}.{head}").to_numpy() for head in schema.head_names], axis=1)

    simulated = f"reachable.{schema.head_names[0]}" in batch.schema.names
    return Impressions(
        ids={name: batch.column(name).to_numpy() for name in ID_COLUMNS},
        tables=tables,
        labels=heads("label"),
        true=heads("true") if simulated else None,
        reachable=heads("reachable") if simulated else None,
    )
