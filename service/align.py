"""From the caller's columns to the model's: any subset in any order, known by name.

How the columns of a table map depends on their names alone. Callers send the same names over and over, so the maps
are cached by them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.cache import Cache, string_weight
from service.decode import Candidates, Floats, Header, Ints, Sparse, Table, names_in
from service.schema import Feature, GroupLayout, Schema
from service.sparse_table import entries_of, take_rows

# For each of the two memories of a group.
CACHE_BYTES_MAX = 4 << 20


class Tables(NamedTuple):
    """What the model reads: tables in the columns of the schema's layouts, NaN = absent.

    Attributes:
        viewer: float32 [1, viewer columns].
        authors: float32 [A, author columns].
        author_index: int64 [N], in [0, A).
        tweets: float32 [N, tweet columns].
        tweet_scalars: What is present of the Tweets' scalars, row by row, for a model that takes them so; `tweets` then
            has the other columns only. None for other models.
    """

    viewer: Floats
    authors: Floats
    author_index: Ints
    tweets: Floats
    tweet_scalars: Sparse | None = None

    def take(self, rows: Ints) -> Tables:
        """The tables for these Tweets, in their order; one may come more than once."""
        scalars = None if self.tweet_scalars is None else take_rows(self.tweet_scalars, rows)
        return self._replace(author_index=self.author_index[rows], tweets=self.tweets[rows], tweet_scalars=scalars)

    def without(self, table: str) -> Tables:
        """The tables with all of `viewer`, `authors` or `tweets` absent."""
        absent = self._replace(**{table: np.full_like(getattr(self, table), np.nan)})
        entries = self.tweet_scalars
        if table != "tweets" or entries is None:
            return absent
        return absent._replace(tweet_scalars=Sparse(entries.rows[:0], entries.columns[:0], entries.values[:0]))


class ColumnCounts(NamedTuple):
    """How the columns of one table fared; see FeatureCounts.Columns in the API."""

    present: int
    absent: int
    unknown: int
    unknown_categories: int


class Counts(NamedTuple):
    """ColumnCounts of the three tables."""

    viewer: ColumnCounts
    authors: ColumnCounts
    tweets: ColumnCounts


class _Plan(NamedTuple):
    """How the columns of one header map to a layout.

    Attributes:
        whole: The scalars are exactly the model's, in its order, and there is nothing else in the layout.
        complete: Nothing of the model's is absent.
        source: The caller's scalar columns that the model knows.
        target: The model's columns for them.
        target_of: For each scalar column of the caller the model's column, or -1.
        categorical: Indices of the caller's categorical columns that the model knows, each with the feature.
        vectors: Indices of the caller's vector columns that the model knows, each with the model's columns.
        counts: ColumnCounts but for the categories.
    """

    whole: bool
    complete: bool
    source: NDArray[np.intp] | slice
    target: NDArray[np.intp] | slice
    target_of: NDArray[np.intp]
    categorical: tuple[tuple[int, Feature], ...]
    vectors: tuple[tuple[int, slice], ...]
    counts: ColumnCounts


class _Mapping(NamedTuple):
    """How a table with certain vocabularies maps to a layout.

    Attributes:
        plan: Its header's.
        categorical: For each of the plan's categorical columns its index, the column to fill, and the model's index for
            each index of the caller's, NaN = absent.
        vectors: For each of the plan's vector columns its index, and the columns to fill.
        counts: ColumnCounts.
    """

    plan: _Plan
    categorical: tuple[tuple[int, int, Floats], ...]
    vectors: tuple[tuple[int, slice], ...]
    counts: ColumnCounts


class Aligner:
    """Aligns candidates to one schema. May be shared by threads."""

    def __init__(self, schema: Schema, sparse_tweets: bool = False) -> None:
        """Starts with empty memories.

        Args:
            schema: To align to.
            sparse_tweets: Whether the model takes the Tweets' scalars as entries.
        """
        self._groups = {group: _GroupAligner(layout) for group, layout in schema.layouts.items()}
        if sparse_tweets:
            tweets = schema.layouts["tweet"]
            self._groups["tweet"] = _GroupAligner(tweets, first=len(tweets.scalars))
        self._sparse_tweets = sparse_tweets

    def align(self, candidates: Candidates) -> tuple[Tables, Counts]:
        """The candidates' tables in the model's columns, and what became of the caller's."""
        viewer, viewer_counts = self._groups["viewer"].align(candidates.viewer)
        authors, authors_counts = self._groups["author"].align(candidates.authors)
        entries = None
        if self._sparse_tweets:
            tweets, entries, tweets_counts = self._groups["tweet"].align_sparse(candidates.tweets)
        else:
            tweets, tweets_counts = self._groups["tweet"].align(candidates.tweets)
        tables = Tables(viewer, authors, candidates.author_index, tweets, entries)
        return tables, Counts(viewer_counts, authors_counts, tweets_counts)


class _GroupAligner:
    """Aligns tables to a layout from its column `first` on: 0, or the first one after the scalars."""

    def __init__(self, layout: GroupLayout, first: int = 0) -> None:
        self._layout = layout
        self._first = first
        self._plans: Cache[Header, _Plan] = Cache(CACHE_BYTES_MAX)
        self._lookups: Cache[tuple[str, tuple[str, ...]], tuple[Floats, int]] = Cache(CACHE_BYTES_MAX)
        # Header and vocabularies of the latest table, with how it mapped. Replaced as one reference. Comparing objects
        # that are the same takes no look at their strings, as finding them in a memory does.
        self._latest: tuple[tuple[object, ...], _Mapping] | None = None

    def align(self, table: Table) -> tuple[Floats, ColumnCounts]:
        values, mapping = table.values, self._mapping(table)
        plan = mapping.plan
        if isinstance(values, Sparse):
            out = np.full((table.rows, self._layout.width), np.nan, np.float32)
            target = plan.target_of[values.columns]
            known = target >= 0
            out[values.rows[known], target[known]] = values.values[known]
        elif plan.whole:
            return values, mapping.counts
        else:
            out = np.empty((table.rows, self._layout.width), np.float32)
            if not plan.complete:
                out.fill(np.nan)
            out[:, plan.target] = values[:, plan.source]
        _fill(out, table, mapping)
        return out, mapping.counts

    def align_sparse(self, table: Table) -> tuple[Floats, Sparse, ColumnCounts]:
        """Of a table of any form the columns after the scalars, and the scalars as entries, row by row."""
        mapping = self._mapping(table)
        out = np.full((table.rows, self._layout.width - self._first), np.nan, np.float32)
        entries = table.values if isinstance(table.values, Sparse) else entries_of(table.values)
        target = mapping.plan.target_of[entries.columns]
        known = (target >= 0) & ~np.isnan(entries.values)
        entries = Sparse(entries.rows[known], target[known].astype(np.uint32), entries.values[known])
        _fill(out, table, mapping)
        return out, entries, mapping.counts

    def _mapping(self, table: Table) -> _Mapping:
        key = (table.header, *[vocabulary for vocabulary, _ in table.categorical])
        latest = self._latest
        if latest is not None and latest[0] == key:
            return latest[1]
        plan, first = self._plan(table.header), self._first
        lookups = [self._lookup(feature, table.categorical[i].vocabulary) for i, feature in plan.categorical]
        categorical = tuple(
            (i, self._layout.offsets[feature.name] - first, lookup)
            for (i, feature), (lookup, _) in zip(plan.categorical, lookups, strict=True)
        )
        vectors = tuple((i, slice(columns.start - first, columns.stop - first)) for i, columns in plan.vectors)
        counts = plan.counts._replace(unknown_categories=sum(unknown for _, unknown in lookups))
        mapping = _Mapping(plan, categorical, vectors, counts)
        self._latest = key, mapping
        return mapping

    def _plan(self, header: Header) -> _Plan:
        plan = self._plans.get(header)
        if plan is None:
            plan = _make_plan(self._layout, header)
            self._plans.put(header, plan, string_weight(names_in(header)))
        return plan

    def _lookup(self, feature: Feature, vocabulary: tuple[str, ...]) -> tuple[Floats, int]:
        """The model's index for each index of the caller's, NaN = absent, and how many categories are not known."""
        key = (feature.name, vocabulary)
        found = self._lookups.get(key)
        if found is None:
            index_of = {category: float(i) for i, category in enumerate(feature.vocabulary)}
            indices = [index_of.get(category, math.nan) for category in vocabulary]
            indices.append(math.nan)  # what the size of the vocabulary, as an index, stands for
            lookup = np.array(indices, np.float32)
            found = lookup, int(np.isnan(lookup).sum()) - 1
            self._lookups.put(key, found, string_weight(vocabulary))
        return found


def _fill(out: Floats, table: Table, mapping: _Mapping) -> None:
    """Puts the categories and vectors into `out`."""
    for i, column, lookup in mapping.categorical:
        out[:, column] = lookup.take(table.categorical[i].indices)
    for i, columns in mapping.vectors:
        out[:, columns] = table.vectors[i]


def _make_plan(layout: GroupLayout, header: Header) -> _Plan:
    scalars = {f.name for f in layout.scalars}
    categoricals = {f.name: f for f in layout.categoricals}
    widths = {f.name: f.width for f in layout.vectors}

    target_of = np.array([layout.offsets[name] if name in scalars else -1 for name in header.columns], np.intp)
    source = np.flatnonzero(target_of >= 0)
    categorical = tuple((i, categoricals[name]) for i, name in enumerate(header.categorical) if name in categoricals)
    vectors = tuple(
        (i, slice(layout.offsets[name], layout.offsets[name] + width))
        for i, (name, width) in enumerate(header.vectors)
        if widths.get(name) == width
    )
    present = len(source) + len(categorical) + len(vectors)
    absent = len(layout.features) - present
    in_order = header.columns == tuple(f.name for f in layout.scalars)
    sent = len(header.columns) + len(header.categorical) + len(header.vectors)
    return _Plan(
        whole=in_order and layout.width == len(layout.scalars),
        complete=absent == 0,
        source=slice(None) if in_order else source,
        target=slice(len(source)) if in_order else target_of[source],
        target_of=target_of,
        categorical=categorical,
        vectors=vectors,
        counts=ColumnCounts(present, absent, unknown=sent - present, unknown_categories=0),
    )
