"""Requests for the toy model as hypothesis draws them: legal ones, and legal ones with one thing wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from hypothesis import strategies as st

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.schema import Group, GroupLayout
from tests import toy

NOW_MS = 1_750_000_000_000
INT64S = st.integers(-(2**63), 2**63 - 1)
# Small enough for sums of float32 to be right to four decimals.
NUMBERS = st.floats(-100, 100, width=32) | st.sampled_from([math.nan, 0.0, -0.0, 1.0, 1e-40])
NAMES = st.text(max_size=20)
WIDTHS = {f.name: f.width for f in toy.SCHEMA.features if f.kind == "vector"}
STRANGER_WIDTH = 3


class Columns(NamedTuple):
    """What a drawn table says about one feature, by row: a number, a category or a vector; None: absent."""

    scalars: dict[str, list[float]]
    categorical: dict[str, list[str | None]]
    vectors: dict[str, list[list[float] | None]]


class Drawn(NamedTuple):
    """A legal request, and its tables as the model should see them."""

    request: pb.RankTimelineRequest
    tables: dict[Group, Columns]


@st.composite
def drawn_requests(draw: st.DrawFn) -> Drawn:
    """Up to 12 Tweets by up to 5 authors, any subset of the features in any order and form, strangers among them."""
    tweet_ids = draw(st.lists(INT64S, max_size=12, unique=True))
    author_ids = draw(st.lists(INT64S, min_size=1 if tweet_ids else 0, max_size=5, unique=True))
    rows = len(tweet_ids)
    request_time_ms = draw(st.sampled_from([0, NOW_MS]))
    candidates = pb.Candidates(
        tweet_ids=tweet_ids,
        created_at_ms=draw(st.lists(INT64S, min_size=rows, max_size=rows)),
        author_index=draw(st.lists(st.integers(0, max(0, len(author_ids) - 1)), min_size=rows, max_size=rows)),
        author_ids=author_ids,
    )
    tables: dict[Group, Columns] = {}
    messages: dict[Group, tuple[pb.FeatureTable, int]] = {
        "viewer": (candidates.viewer, 1),
        "author": (candidates.authors, len(author_ids)),
        "tweet": (candidates.tweets, rows),
    }
    for group, (message, size) in messages.items():
        tables[group] = draw(columns(toy.SCHEMA.layouts[group], size))
        draw(fill(message, tables[group], size))
    request = pb.RankTimelineRequest(
        request_id=draw(NAMES),
        viewer_id=draw(INT64S.filter(bool)),
        last_visit_ms=draw(st.sampled_from([0, 1, NOW_MS - 86_400_000, NOW_MS - 1])),
        request_time_ms=request_time_ms,
        candidates=candidates,
        require_full_ranking=draw(st.booleans()),
        explain=draw(st.booleans()),
        model=draw(st.sampled_from(["", "stable"])),
    )
    return Drawn(request, tables)


@st.composite
def columns(draw: st.DrawFn, layout: GroupLayout, rows: int) -> Columns:
    """Any subset of a group's features, and up to two strangers of each kind."""

    def names(known: tuple[str, ...], prefix: str) -> list[str]:
        chosen = draw(st.lists(st.sampled_from(known), unique=True)) if known else []
        return draw(st.permutations([*chosen, *(f"{prefix}{i}" for i in range(draw(st.integers(0, 2))))]))

    def by_row(cell: st.SearchStrategy[object]) -> list[object]:
        return draw(st.lists(cell, min_size=rows, max_size=rows))

    vocabularies = {f.name: f.vocabulary for f in layout.categoricals}
    categorical, vectors = {}, {}
    for name in names(tuple(vocabularies), "stranger_category_"):
        known = st.sampled_from(vocabularies.get(name, ("x",)))
        categorical[name] = by_row(st.none() | known | st.sampled_from(["tlh", ""]))
    for name in names(tuple(f.name for f in layout.vectors), "stranger_vector_"):
        width = WIDTHS.get(name, STRANGER_WIDTH)
        number = st.floats(-10, 10, width=32)
        vectors[name] = by_row(st.none() | st.lists(number, min_size=width, max_size=width))
    scalars = {name: by_row(NUMBERS) for name in names(tuple(f.name for f in layout.scalars), "stranger_")}
    return Columns(scalars, categorical, vectors)  # type: ignore[arg-type] # by_row gives what its cell gives


@st.composite
def fill(draw: st.DrawFn, message: pb.FeatureTable, columns: Columns, rows: int) -> None:
    """Writes a table, its scalars dense or sparse."""
    message.columns.extend(columns.scalars)
    by_row = [[values[row] for values in columns.scalars.values()] for row in range(rows)]
    if draw(st.booleans()):
        message.values.extend(x for row in by_row for x in row)
    else:
        for row in by_row:
            there = [i for i, x in enumerate(row) if not math.isnan(x) or draw(st.booleans())]
            message.sparse_row_lengths.append(len(there))
            message.sparse_column_indices.extend(there)
            message.sparse_values.extend(row[i] for i in there)
    for name, cells in columns.categorical.items():
        vocabulary = draw(st.permutations(sorted({c for c in cells if c is not None})))
        index = {None: len(vocabulary)} | {category: i for i, category in enumerate(vocabulary)}
        message.categorical.add(name=name, vocabulary=vocabulary, indices=[index[c] for c in cells])
    for name, vectors in columns.vectors.items():
        width = next((len(v) for v in vectors if v is not None), WIDTHS.get(name, STRANGER_WIDTH))
        flat = [x for vector in vectors for x in (vector if vector is not None else [math.nan] * width)]
        message.vectors.add(name=name, width=width, values=flat)


class Spoiler(NamedTuple):
    """One thing to do to a request that makes it an error, and the field that the error must name."""

    field: str
    spoil: Callable[[pb.RankTimelineRequest], None]


def _set(path: str, value: object) -> Callable[[pb.RankTimelineRequest], None]:
    return lambda request: setattr(request, path, value)


def _tweet_more(request: pb.RankTimelineRequest) -> pb.Candidates:
    """The candidates with one more Tweet by one more author and no features, so that there is something to spoil."""
    candidates = request.candidates
    for table in (candidates.viewer, candidates.authors, candidates.tweets):
        table.Clear()
    used = {*candidates.tweet_ids, *candidates.author_ids}
    new = next(i for i in range(1, 100) if i not in used)
    candidates.tweet_ids.append(new)
    candidates.created_at_ms.append(0)
    candidates.author_index.append(len(candidates.author_ids))
    candidates.author_ids.append(new)
    return candidates


def _on_candidates(act: Callable[[pb.Candidates], object]) -> Callable[[pb.RankTimelineRequest], None]:
    def spoil(request: pb.RankTimelineRequest) -> None:
        act(_tweet_more(request))

    return spoil


def _twice(candidates: pb.Candidates) -> None:
    candidates.tweet_ids.append(candidates.tweet_ids[0])
    candidates.created_at_ms.append(0)
    candidates.author_index.append(0)


def _categorical(**wrong: object) -> pb.CategoricalColumn:
    return pb.CategoricalColumn(**({"name": "c", "vocabulary": ["x"], "indices": [0]} | wrong))  # type: ignore[arg-type] # by name


def _table_spoilers() -> list[Spoiler]:
    """What can be wrong with a table, on the viewer's, which has one row whatever else is drawn."""
    inf, nan = math.inf, math.nan
    bad: list[tuple[str, pb.FeatureTable]] = [
        ("values", pb.FeatureTable(columns=["a", "b"], values=[1])),
        ("values", pb.FeatureTable(columns=["a"])),
        ("values", pb.FeatureTable(values=[1])),
        ("values", pb.FeatureTable(columns=["a"], values=[inf])),
        ("values", pb.FeatureTable(columns=["a"], values=[1], sparse_row_lengths=[0])),
        ("columns", pb.FeatureTable(columns=["a", "a"], values=[1, 2])),
        ("columns", pb.FeatureTable(columns=["x" * 257], values=[1])),
        ("", pb.FeatureTable(columns=[f"c{i}" for i in range(2_049)], values=[0] * 2_049)),
        ("", pb.FeatureTable(vectors=[pb.VectorColumn(name="v", width=2_049, values=[0] * 2_049)])),
        ("sparse_row_lengths", pb.FeatureTable(columns=["a"], sparse_row_lengths=[0, 0])),
        ("sparse_column_indices", pb.FeatureTable(columns=["a"], sparse_row_lengths=[1])),
        ("sparse_values", pb.FeatureTable(columns=["a"], sparse_row_lengths=[1], sparse_column_indices=[0])),
        (
            "sparse_column_indices",
            pb.FeatureTable(columns=["a"], sparse_row_lengths=[1], sparse_column_indices=[1], sparse_values=[1]),
        ),
        (
            "sparse_column_indices",
            pb.FeatureTable(columns=["a"], sparse_row_lengths=[2], sparse_column_indices=[0, 0], sparse_values=[1, 1]),
        ),
        (
            "sparse_values",
            pb.FeatureTable(columns=["a"], sparse_row_lengths=[1], sparse_column_indices=[0], sparse_values=[-inf]),
        ),
        ("categorical", pb.FeatureTable(columns=["c"], values=[1], categorical=[_categorical()])),
        ("categorical[0].vocabulary", pb.FeatureTable(categorical=[_categorical(vocabulary=["x", "x"])])),
        ("categorical[0].vocabulary", pb.FeatureTable(categorical=[_categorical(vocabulary=["x" * 257])])),
        ("categorical[0].vocabulary", pb.FeatureTable(categorical=[_categorical(vocabulary=map(str, range(10_001)))])),
        ("categorical[0].indices", pb.FeatureTable(categorical=[_categorical(indices=[2])])),
        ("categorical[0].indices", pb.FeatureTable(categorical=[_categorical(indices=[])])),
        ("vectors[0].width", pb.FeatureTable(vectors=[pb.VectorColumn(name="v")])),
        ("vectors[0].values", pb.FeatureTable(vectors=[pb.VectorColumn(name="v", width=2, values=[1])])),
        ("vectors[0].values", pb.FeatureTable(vectors=[pb.VectorColumn(name="v", width=2, values=[1, nan])])),
        ("vectors[0].values", pb.FeatureTable(vectors=[pb.VectorColumn(name="v", width=1, values=[inf])])),
    ]

    def spoiler(field: str, table: pb.FeatureTable) -> Spoiler:
        def spoil(request: pb.RankTimelineRequest) -> None:
            request.candidates.viewer.CopyFrom(table)

        return Spoiler(f"candidates.viewer.{field}".rstrip("."), spoil)

    return [spoiler(field, table) for field, table in bad]


SPOILERS = [
    Spoiler("viewer_id", _set("viewer_id", 0)),
    Spoiler("request_id", _set("request_id", "é" * 129)),
    Spoiler("model", _set("model", "m" * 257)),
    Spoiler("last_visit_ms", _set("last_visit_ms", 2**63 - 1)),
    Spoiler("forced_arms", lambda request: request.forced_arms.update({"colour": "blue"})),
    Spoiler("candidates.created_at_ms", _on_candidates(lambda c: c.created_at_ms.append(0))),
    Spoiler("candidates.author_index", _on_candidates(lambda c: c.author_index.pop())),
    Spoiler("candidates.author_index", _on_candidates(lambda c: c.author_ids.pop())),
    Spoiler("candidates.tweet_ids", _on_candidates(_twice)),
    Spoiler("candidates.author_ids", _on_candidates(lambda c: c.author_ids.append(c.author_ids[0]))),
    Spoiler("candidates.tweet_ids", _on_candidates(lambda c: c.tweet_ids.extend(range(-5_001, 0)))),
    Spoiler("candidates.author_ids", _on_candidates(lambda c: c.author_ids.extend(range(-5_001, 0)))),
    *_table_spoilers(),
]
