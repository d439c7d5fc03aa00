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
from service.decode import Candidates, Floats, Header, Ints, Sparse, Table
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
        """The tables for only these Tweets, all different."""
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
        in_order: The scalars are exactly the model's, in its order.
        complete: Nothing of the model's is absent.
        source: [k] indices of the caller's scalar columns that the model knows.
        target: [k] the model's columns for them.
        target_of: For each scalar column of the caller the model's column, or -1.
        categorical: Indices of the caller's categorical columns that the model knows, each with the feature.
        vectors: Indices of the caller's vector columns that the model knows, each with the model's columns.
        counts: ColumnCounts but for the categories.
    """

    in_order: bool
    complete: bool
    source: NDArray[np.intp]
    target: NDArray[np.intp]
    target_of: NDArray[np.intp]
    categorical: tuple[tuple[int, Feature], ...]
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
    def __init__(self, layout: GroupLayout) -> None:
        self._layout = layout
        self._plans: Cache[Header, _Plan] = Cache(CACHE_BYTES_MAX)
        self._lookups: Cache[tuple[str, tuple[str, ...]], tuple[Floats, int]] = Cache(CACHE_BYTES_MAX)

    def align(self, table: Table) -> tuple[Floats, ColumnCounts]:
        layout, values = self._layout, table.values
        plan = self._plan(table.header)
        if plan.in_order and layout.width == len(layout.scalars) and not isinstance(values, Sparse):
            return values, plan.counts
        out = np.empty((table.rows, layout.width), np.float32)
        if isinstance(values, Sparse) or not plan.complete:
            out.fill(np.nan)
        if isinstance(values, Sparse):
            target = plan.target_of[values.columns]
            known = target >= 0
            out[values.rows[known], target[known]] = values.values[known]
        elif plan.in_order:
            out[:, : len(layout.scalars)] = values
        else:
            out[:, plan.target] = values[:, plan.source]
        return out, self._fill(out, 0, table, plan)

    def align_sparse(self, table: Table) -> tuple[Floats, Sparse, ColumnCounts]:
        """Of a table of any form the columns after the scalars, and the scalars as entries, row by row."""
        plan = self._plan(table.header)
        scalars = len(self._layout.scalars)
        out = np.full((table.rows, self._layout.width - scalars), np.nan, np.float32)
        entries = table.values if isinstance(table.values, Sparse) else entries_of(table.values)
        target = plan.target_of[entries.columns]
        known = (target >= 0) & ~np.isnan(entries.values)
        entries = Sparse(entries.rows[known], target[known].astype(np.uint32), entries.values[known])
        return out, entries, self._fill(out, scalars, table, plan)

    def _fill(self, out: Floats, first: int, table: Table, plan: _Plan) -> ColumnCounts:
        """Puts the categories and vectors into `out`, which holds the columns from `first` on."""
        layout = self._layout
        unknown_categories = 0
        for i, feature in plan.categorical:
            vocabulary, indices = table.categorical[i]
            lookup, unknown = self._lookup(feature, vocabulary)
            out[:, layout.offsets[feature.name] - first] = lookup.take(indices)
            unknown_categories += unknown
        for i, columns in plan.vectors:
            out[:, columns.start - first : columns.stop - first] = table.vectors[i]
        return plan.counts._replace(unknown_categories=unknown_categories) if unknown_categories else plan.counts

    def _plan(self, header: Header) -> _Plan:
        plan = self._plans.get(header)
        if plan is None:
            plan = _make_plan(self._layout, header)
            self._plans.put(header, plan, string_weight((*header.columns, *header.categorical)))
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
    sent = len(header.columns) + len(header.categorical) + len(header.vectors)
    return _Plan(
        in_order=header.columns == tuple(f.name for f in layout.scalars),
        complete=absent == 0,
        source=source,
        target=target_of[source],
        target_of=target_of,
        categorical=categorical,
        vectors=vectors,
        counts=ColumnCounts(present, absent, unknown=sent - present, unknown_categories=0),
    )
