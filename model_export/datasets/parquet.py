"""Anyone's impressions in Parquet, in the record form; a plan says which column is what.

    [data.parquet]
    path = "impressions"            a file, or a folder whose *.parquet files are read in order of their paths
    train_days = 20                 categories are learned from the first 20 days; or, for new days of a model that
                                    exists, schema_from = "runs/a" and first = "2026-11-01" (last likewise)
    [data.parquet.ids]
    viewer_id = "user"              likewise author_id, tweet_id, session, time_ms
    [data.parquet.labels]
    like = "liked"                  head = column of 0 and 1
    [data.parquet.features]
    "tweet.likes" = {kind = "continuous", column = "n_likes", unit = "count"}

Rows must be in order of time, over all files: so they stream, and memory does not grow with them.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_export.datasets.parquet_columns import READERS, ids, labels, texts, times
from model_export.datasets.records import (
    DataError,
    Impressions,
    RecordSet,
    create,
    data_path,
    day_writer,
    epoch_date,
    read_batches,
)
from model_export.plan_table import unknown
from service.schema import GROUPS, Feature, Group, Head, Kind, Schema

_GROUPS: dict[str, Group] = {group: group for group in GROUPS}
_DAY_MS = 86_400_000
_BATCH_ROWS = 65_536
# Values of a categorical column that are counted at once, per category that is kept.
_COUNTED_PER_KEPT = 8


@dataclass(frozen=True)
class IdColumns:
    """Columns of ids: whole numbers, none missing. `session` says which timeline view; `time_ms` may be a timestamp."""

    viewer_id: str
    author_id: str
    tweet_id: str
    session: str
    time_ms: str


@dataclass(frozen=True)
class FeatureColumn:
    """A column that is a feature; null and NaN are absent.

    Attributes:
        kind: Continuous: any number. Binary: 0, 1 or a boolean. Categorical: text or a whole number. Vector: a list of
            `width` numbers.
        column: Its name in the file.
        unit: Of the value.
        width: Of a vector.
    """

    kind: Kind
    column: str
    unit: str = ""
    width: int = 1


@dataclass(frozen=True)
class ParquetData:
    """A plan's mapping of Parquet columns.

    Attributes:
        path: A file or a folder; `$NAME` stands for an environment variable.
        ids: Columns of ids.
        labels: Column of each head.
        features: By `<group>.<feature>`.
        train_days: Vocabularies are learned from as many of the first days: not from those that models are tested on.
        schema_from: Instead, a run whose data has the schema.
        first, last: Dates in UTC, both included; impressions before or after them are left out.
        vocabulary_max: Most categories of a categorical feature: the most frequent ones. What is not among them is
            absent.
    """

    path: str
    ids: IdColumns
    labels: dict[str, str]
    features: dict[str, FeatureColumn]
    train_days: int | None = None
    schema_from: str | None = None
    first: str | None = None
    last: str | None = None
    vocabulary_max: int = 1_000

    def __post_init__(self) -> None:
        if not self.labels or not self.features:
            raise ValueError("labels and features must name at least one column each")
        if (self.train_days is None) == (self.schema_from is None):
            raise ValueError("wants either train_days or schema_from")
        if self.train_days is not None and self.train_days < 1:
            raise ValueError("train_days must be at least 1")
        if self.dates[0] > self.dates[1]:
            raise ValueError("first must not be after last")
        if not 1 <= self.vocabulary_max <= 10_000:
            raise ValueError("vocabulary_max must be in 1 to 10000, what a server takes")
        for name, feature in self.features.items():
            group, dot, rest = name.partition(".")
            if not dot or not rest:
                raise ValueError(f"features: {name!r} is not <group>.<feature>")
            if group not in GROUPS:
                raise ValueError(f"features: {name!r}: {unknown(group, GROUPS)}")
            if feature.column in self.labels.values():
                raise ValueError(f"features: {name!r} reads {feature.column!r}, which is a label")
            if feature.width < 1 or (feature.width > 1 and feature.kind != "vector"):
                raise ValueError(f"features: {name!r}: width {feature.width} does not fit kind {feature.kind}")

    @property
    def dates(self) -> tuple[datetime.date, datetime.date]:
        """The first and the last date to read."""
        first = datetime.date.min if self.first is None else datetime.date.fromisoformat(self.first)
        return first, datetime.date.max if self.last is None else datetime.date.fromisoformat(self.last)


def convert(source: ParquetData, root: Path, schema: Schema | None = None) -> RecordSet:
    """Turns the source's days into a data set at `root`; day = days since 1970-01-01, in UTC.

    Args:
        source: What to read.
        root: Where to write.
        schema: Of a model that exists; None: it is learned from the first `train_days` days.

    Raises:
        DataError: There are no such days, a column is missing, or has values that its kind does not take, or rows are
            not in order of time.
    """
    days = find_days(source)
    if schema is None:
        schema = learn_schema(source, days[: source.train_days])
    return write_days(source, schema, root, days)


def find_days(source: ParquetData) -> list[int]:
    """The days to read that there are impressions on, rising; at least one.

    Raises:
        DataError: There is none, a column is missing, or rows are not in order of time.
    """
    _check_columns(source)
    found = [day for day, _ in groupby(_pieces(source, []), key=lambda piece: piece[0])]
    first, last = source.dates
    days = [day for day in found if first <= epoch_date(day) <= last]
    if not days:
        there = f"there are {epoch_date(found[0])} to {epoch_date(found[-1])}" if found else "there are none"
        raise DataError(f"{source.path}: no impressions from {first} to {last}; {there}")
    return days


def learn_schema(source: ParquetData, days: Collection[int]) -> Schema:
    """The schema, its vocabularies learned from these days alone; heads weigh 1 until a plan says otherwise."""
    columns = {name: feature.column for name, feature in source.features.items() if feature.kind == "categorical"}
    seen = {name: Frequencies(source.vocabulary_max * _COUNTED_PER_KEPT) for name in columns}
    for day, batch in _pieces(source, columns.values()):
        if day in days:
            for name, column in columns.items():
                seen[name].add(Counter(text for text in texts(batch, column) if text is not None))
    features = []
    for name, feature in source.features.items():
        vocabulary = tuple(seen[name].most_frequent(source.vocabulary_max)) if name in seen else ()
        if name in seen and not vocabulary:
            raise DataError(f"features: {name!r} has no value on the training days")
        group, _, short = name.partition(".")
        features.append(Feature(short, _GROUPS[group], feature.kind, feature.unit, vocabulary, feature.width))
    return Schema(tuple(features), tuple(Head(name, 1.0, 1) for name in source.labels))


def write_days(source: ParquetData, schema: Schema, root: Path, days: Collection[int]) -> RecordSet:
    """Writes these days in the record form, with the features, categories and heads of `schema`."""
    create(root, schema)
    for name in (f"{feature.group}.{feature.name}" for feature in schema.features):
        if name not in source.features:
            raise DataError(f"features: the model's {name!r} has no column")
    for head in schema.head_names:
        if head not in source.labels:
            raise DataError(f"labels: the model's {head!r} has no column")
    columns = (*source.labels.values(), *(feature.column for feature in source.features.values()))
    pieces = _pieces(source, [*asdict(source.ids).values(), *columns])
    for day, parts in groupby(pieces, key=lambda piece: piece[0]):
        if day in days:
            with day_writer(root, schema, day) as write:
                for _, batch in parts:
                    write(_impressions(source, schema, batch))
    return RecordSet.open(root)


class Frequencies:
    """Counts values in bounded memory (Misra and Gries 1982).

    Exact while there are at most `capacity` distinct values; after n values no count is more than n / capacity short.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._counts: dict[str, int] = {}

    def add(self, counts: Mapping[str, int]) -> None:
        """Adds values with how often they came."""
        for value, count in counts.items():
            self._counts[value] = self._counts.get(value, 0) + count
        if len(self._counts) > self._capacity:
            cut = sorted(self._counts.values(), reverse=True)[self._capacity]
            self._counts = {value: count - cut for value, count in self._counts.items() if count > cut}

    def most_frequent(self, n: int) -> list[str]:
        """At most n values, the most frequent first; of equally frequent ones in alphabetical order."""
        return sorted(self._counts, key=lambda value: (-self._counts[value], value))[:n]


def source_files(source: ParquetData) -> list[Path]:
    """The files that are read, in their order; raises DataError where there are none."""
    path = data_path(source.path)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.exists() for file in files):
        raise DataError(f"{path}: no Parquet there")
    return files


def _check_columns(source: ParquetData) -> None:
    wanted = {f"ids.{key}": column for key, column in asdict(source.ids).items()}
    wanted |= {f"labels.{head}": column for head, column in source.labels.items()}
    wanted |= {f"features.{name}": feature.column for name, feature in source.features.items()}
    for path in source_files(source):
        there = pq.read_schema(path).names
        for key, column in wanted.items():
            if column not in there:
                raise DataError(f"{path}: {key}: column {unknown(column, there)}")


def _pieces(source: ParquetData, columns: Iterable[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Rows in order, each piece of one day: (day, at most _BATCH_ROWS rows of the columns and of time)."""
    time = source.ids.time_ms
    last_ms = np.iinfo(np.int64).min
    for path in source_files(source):
        for batch in read_batches(path, sorted({time, *columns}), _BATCH_ROWS):
            time_ms = times(batch, time)
            if (time_ms < np.concatenate([[last_ms], time_ms[:-1]])).any():
                raise DataError(f"{path}: rows are not in order of {time!r}; sort them by it, over all files")
            last_ms = time_ms[-1] if len(time_ms) else last_ms
            days, starts = np.unique(time_ms // _DAY_MS, return_index=True)
            for day, start, stop in zip(days.tolist(), starts, [*starts[1:], len(time_ms)], strict=True):
                yield day, batch.slice(start, stop - start)


def _impressions(source: ParquetData, schema: Schema, batch: pa.RecordBatch) -> Impressions:
    tables = {group: np.full((len(batch), schema.layouts[group].width), np.nan, np.float32) for group in GROUPS}
    for feature in schema.features:
        column = source.features[f"{feature.group}.{feature.name}"].column
        start = schema.layouts[feature.group].offsets[feature.name]
        tables[feature.group][:, start : start + feature.width] = READERS[feature.kind](batch, column, feature)
    columns = asdict(source.ids)
    time_ms = times(batch, columns.pop("time_ms"))
    return Impressions(
        ids={**{name: ids(batch, column) for name, column in columns.items()}, "time_ms": time_ms},
        tables=tables,
        labels=np.stack([labels(batch, source.labels[head]) for head in schema.head_names], axis=1),
    )
