"""From the caller's columns to the model's: any subset in any order, known by name.

How the columns of a table map depends on their names alone. Callers send the same names over and over, so the maps
are cached by them.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.decode import Candidates, Categorical, Floats, Ints, Sparse, Table
from service.schema import Group, GroupLayout, Schema

# Per group. A caller has a handful of headers; the bounds are for one that makes them up: at most
# PLANS_MAX * PLAN_CHARACTERS_MAX characters of names are kept.
PLANS_MAX = 64
PLAN_CHARACTERS_MAX = 1 << 16

Header = tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, int], ...]]


class Tables(NamedTuple):
    """What the model reads: tables in the columns of the schema's layouts, NaN = absent.

    Attributes:
        viewer: float32 [1, viewer columns].
        authors: float32 [A, author columns].
        author_index: int64 [N], in [0, A).
        tweets: float32 [N, tweet columns].
    """

    viewer: Floats
    authors: Floats
    author_index: Ints
    tweets: Floats

    def take(self, rows: Ints) -> Tables:
        """The tables for only these Tweets."""
        return self._replace(author_index=self.author_index[rows], tweets=self.tweets[rows])


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
        source: [k] indices of the caller's scalar columns that the model knows.
        target: [k] the model's columns for them.
        target_of: For each scalar column of the caller the model's column, or -1.
        categorical: Per categorical column of the caller: the model's column and index by category; None if unknown.
        vectors: Per vector column of the caller: the model's first column; None if unknown.
        present, absent, unknown: As in ColumnCounts.
    """

    in_order: bool
    source: NDArray[np.intp]
    target: NDArray[np.intp]
    target_of: NDArray[np.intp]
    categorical: tuple[tuple[int, dict[str, float]] | None, ...]
    vectors: tuple[int | None, ...]
    present: int
    absent: int
    unknown: int


class Aligner:
    """Aligns tables to one schema. May be shared by threads: the caches lock for themselves."""

    def __init__(self, schema: Schema) -> None:
        self._groups = {group: _GroupAligner(layout) for group, layout in schema.layouts.items()}

    def align(self, candidates: Candidates) -> tuple[Tables, Counts]:
        """The candidates' tables in the model's columns, and what became of the caller's."""
        viewer, viewer_counts = self._align_group("viewer", candidates.viewer)
        authors, authors_counts = self._align_group("author", candidates.authors)
        tweets, tweets_counts = self._align_group("tweet", candidates.tweets)
        tables = Tables(viewer, authors, candidates.author_index, tweets)
        return tables, Counts(viewer_counts, authors_counts, tweets_counts)

    def _align_group(self, group: Group, table: Table) -> tuple[Floats, ColumnCounts]:
        return self._groups[group].align(table)


class _GroupAligner:
    def __init__(self, layout: GroupLayout) -> None:
        self._layout = layout
        self._plan = functools.lru_cache(PLANS_MAX)(functools.partial(_make_plan, layout))

    def align(self, table: Table) -> tuple[Floats, ColumnCounts]:
        header = (
            table.columns,
            tuple(c.name for c in table.categorical),
            tuple((v.name, v.values.shape[1]) for v in table.vectors),
        )
        long = sum(map(len, table.columns)) > PLAN_CHARACTERS_MAX
        plan = self._plan.__wrapped__(header) if long else self._plan(header)

        out, unknown_categories = _fill(plan, self._layout, table)
        return out, ColumnCounts(plan.present, plan.absent, plan.unknown, unknown_categories)


def _fill(plan: _Plan, layout: GroupLayout, table: Table) -> tuple[Floats, int]:
    values = table.values
    if plan.in_order and layout.width == len(layout.scalars) and not isinstance(values, Sparse):
        return values, 0
    if plan.in_order and plan.absent == 0 and not isinstance(values, Sparse):
        out = np.empty((table.rows, layout.width), np.float32)
    else:
        out = np.full((table.rows, layout.width), np.nan, np.float32)
    if isinstance(values, Sparse):
        target = plan.target_of[values.columns]
        known = target >= 0
        out[values.rows[known], target[known]] = values.values[known]
    elif plan.in_order:
        out[:, : len(layout.scalars)] = values
    elif len(plan.source):
        out[:, plan.target] = values[:, plan.source]

    unknown_categories = 0
    for column, known_column in zip(table.categorical, plan.categorical, strict=True):
        if known_column is not None:
            target_column, index_of = known_column
            out[:, target_column], unknown = _category_indices(column, index_of)
            unknown_categories += unknown
    for vector, start in zip(table.vectors, plan.vectors, strict=True):
        if start is not None:
            out[:, start : start + vector.values.shape[1]] = vector.values
    return out, unknown_categories


def _category_indices(column: Categorical, index_of: dict[str, float]) -> tuple[Floats, int]:
    """The model's indices [rows], NaN = absent, and how many of the column's categories the model does not know."""
    indices = [index_of.get(category, math.nan) for category in column.vocabulary]
    indices.append(math.nan)  # what the size of the vocabulary, as an index, stands for
    lookup = np.array(indices, np.float32)
    return lookup[column.indices], int(np.isnan(lookup).sum()) - 1


def _make_plan(layout: GroupLayout, header: Header) -> _Plan:
    columns, categorical, vectors = header
    scalar_targets = {f.name: layout.offsets[f.name] for f in layout.scalars}
    category_indices = {f.name: {c: float(i) for i, c in enumerate(f.vocabulary)} for f in layout.categoricals}
    vector_widths = {f.name: f.width for f in layout.vectors}

    target_of = np.array([scalar_targets.get(name, -1) for name in columns], np.intp)
    source = np.flatnonzero(target_of >= 0)
    categorical_plan = tuple(
        (layout.offsets[name], category_indices[name]) if name in category_indices else None for name in categorical
    )
    vector_plan = tuple(layout.offsets[name] if vector_widths.get(name) == width else None for name, width in vectors)
    present = len(source) + sum(c is not None for c in categorical_plan) + sum(v is not None for v in vector_plan)
    return _Plan(
        in_order=columns == tuple(f.name for f in layout.scalars),
        source=source,
        target=target_of[source],
        target_of=target_of,
        categorical=categorical_plan,
        vectors=vector_plan,
        present=present,
        absent=len(layout.features) - present,
        unknown=len(columns) + len(categorical) + len(vectors) - present,
    )
