"""The simulated world: what is generated, and whether it holds together."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from model_export.datasets import world
from model_export.datasets.records import Impressions, RecordSet
from model_export.datasets.world_draws import Ints
from model_export.datasets.world_features import Columns, author_columns, viewer_columns
from model_export.datasets.world_population import (
    DAY_MS,
    HOUR_MS,
    START_MS,
    WINDOW_DAYS,
    create_world,
    draw_tweets,
)
from service.schema import GROUPS, Group

DAYS = 5
ROWS = 12_003
SEED = 11


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world")
    world.generate(path, "tastes", SEED, ROWS, DAYS)
    return path


@pytest.fixture(scope="module")
def impressions(root: Path) -> Impressions:
    records = RecordSet.open(root)
    return _joined(list(records.batches(records.days)))


def _joined(parts: list[Impressions]) -> Impressions:
    assert all(part.true is not None and part.reachable is not None for part in parts)
    return Impressions(
        ids={name: np.concatenate([part.ids[name] for part in parts]) for name in parts[0].ids},
        tables={group: np.concatenate([part.tables[group] for part in parts]) for group in GROUPS},
        labels=np.concatenate([part.labels for part in parts]),
        true=np.concatenate([part.true for part in parts if part.true is not None]),
        reachable=np.concatenate([part.reachable for part in parts if part.reachable is not None]),
    )


def _column(impressions: Impressions, group: Group, name: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return impressions.tables[group][:, world.SCHEMA.layouts[group].offsets[name]]


def test_schema_has_the_contracted_scalars() -> None:
    """The bench's numbers hold for exactly this many scalar features per group."""
    scalars = {group: len(world.SCHEMA.layouts[group].scalars) for group in GROUPS}

    assert scalars == {"viewer": 24, "author": 32, "tweet": 64}


def test_generates_exactly_the_rows_asked_for(root: Path) -> None:
    """Rows spread evenly over the days and add up to what was asked for."""
    records = RecordSet.open(root)

    rows = [records.rows([day]) for day in records.days]

    assert records.days == tuple(range(DAYS))
    assert sum(rows) == ROWS
    assert max(rows) - min(rows) <= 1


def test_chosen_days_are_those_of_the_whole_data_set(root: Path, tmp_path: Path) -> None:
    """Generating the last day alone gives the same bytes as generating all, whatever was generated before."""
    seen = []

    world.generate(tmp_path, "tastes", SEED, ROWS, DAYS, only_days=[4, 2], progress=lambda *at: seen.append(at))

    assert seen == [(1, 2), (2, 2)]
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == ["day=002.parquet", "day=004.parquet"]
    for name in ("day=002.parquet", "day=004.parquet", "schema.json"):
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes()


def test_law_changes_labels_and_nothing_else(impressions: Impressions, tmp_path: Path) -> None:
    """Laws differ in how people engage, not in who they are and what they see."""
    world.generate(tmp_path, "steps", SEED, ROWS, DAYS, only_days=[0])
    other = next(iter(RecordSet.open(tmp_path).batches([0])))
    same = impressions.take(np.arange(len(other)))

    for group in GROUPS:
        np.testing.assert_array_equal(other.tables[group], same.tables[group])
    for name, ids in other.ids.items():
        np.testing.assert_array_equal(ids, same.ids[name])
    assert other.reachable is not None
    assert same.reachable is not None
    assert not np.allclose(other.reachable, same.reachable, rtol=0.1)


def test_seed_redraws_the_world(impressions: Impressions, tmp_path: Path) -> None:
    """Another seed has other Tweets at other times."""
    world.generate(tmp_path, "tastes", SEED + 1, ROWS, DAYS, only_days=[0])
    other = next(iter(RecordSet.open(tmp_path).batches([0])))

    assert not set(other.ids["tweet_id"].tolist()) & set(impressions.ids["tweet_id"].tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"law": "gravity"}, "law 'gravity' is none of steps, smooth, tastes"),
        ({"impressions": 3}, "3 impressions over 5 days"),
        ({"days": 0}, "over 0 days"),
        ({"only_days": [5]}, "only_days"),
        ({"only_days": [-1]}, "only_days"),
    ],
)
def test_refuses_what_it_can_not_generate(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    """A wrong argument is named, and nothing is written."""
    valid: dict[str, object] = {"law": "steps", "seed": 0, "impressions": 1_000, "days": 5}

    with pytest.raises(ValueError, match=message):
        world.generate(tmp_path / "out", **{**valid, **arguments})  # type: ignore[arg-type]  # wrong on purpose

    assert not (tmp_path / "out").exists()


def test_days_hold_their_own_rows_in_time_order(root: Path) -> None:
    """A day's file has that day's visits, in the order in which they happened."""
    records = RecordSet.open(root)

    for day in records.days:
        times = np.concatenate([batch.ids["time_ms"] for batch in records.batches([day])])
        assert START_MS + day * DAY_MS <= times[0] <= times[-1] < START_MS + (day + 1) * DAY_MS
        assert (np.diff(times) >= 0).all()


def test_shows_a_sample_of_each_visit(impressions: Impressions) -> None:
    """At most 40 impressions of a visit, never one Tweet twice, always after it was posted."""
    _visits, counts = np.unique(impressions.ids["session"], return_counts=True)
    pairs = np.stack([impressions.ids["session"], impressions.ids["tweet_id"]], axis=1)

    assert counts.max() == 40
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    assert (_column(impressions, "tweet", "age") >= 0).all()


def test_values_are_numbers_or_absent(impressions: Impressions) -> None:
    """Everything finite or NaN; binaries 0 or 1; categories in their vocabulary; vectors whole or absent."""
    for group in GROUPS:
        layout = world.SCHEMA.layouts[group]
        table = impressions.tables[group]
        assert not np.isinf(table).any()
        for feature in layout.features:
            values = table[:, layout.offsets[feature.name] :][:, : feature.width]
            present = values[~np.isnan(values)]
            if feature.kind == "binary":
                assert set(np.unique(present)) <= {0.0, 1.0}
            elif feature.kind == "categorical":
                assert set(np.unique(present)) <= set(range(len(feature.vocabulary)))
            elif feature.kind == "vector":
                absent = np.isnan(values)
                assert (absent.all(axis=1) == absent.any(axis=1)).all()
            elif feature.unit in ("ratio", "probability"):
                assert present.min() >= 0
                assert feature.name in ("image_aspect_ratio", "topic_trend") or present.max() <= 1


def test_no_scalar_is_constant(impressions: Impressions) -> None:
    """Each scalar says something: it is present at times and takes more than one value then."""
    for group in GROUPS:
        layout = world.SCHEMA.layouts[group]
        for feature in layout.scalars:
            values = _column(impressions, group, feature.name)
            assert len(np.unique(values[~np.isnan(values)])) > 1, feature.name


def test_a_third_of_the_scalars_is_absent(impressions: Impressions) -> None:
    """About one third overall, and no group is always there."""
    absent = {g: np.isnan(impressions.tables[g][:, : len(world.SCHEMA.layouts[g].scalars)]) for g in GROUPS}
    cells = np.concatenate([values.ravel() for values in absent.values()])

    assert 0.28 < cells.mean() < 0.38
    assert min(values.mean() for values in absent.values()) > 0.08


def test_counts_span_six_orders_of_magnitude(impressions: Impressions) -> None:
    """Heavy tails: from single impressions to millions."""
    counts = _column(impressions, "tweet", "impressions")

    assert np.nanmax(counts) / np.nanmin(counts) >= 1e6


@pytest.mark.parametrize(
    ("group", "shorter", "longer"),
    [
        ("viewer", "sessions_1d", "sessions_7d"),
        ("viewer", "sessions_7d", "sessions_28d"),
        ("viewer", "likes_1d", "likes_7d"),
        ("viewer", "likes_7d", "likes_28d"),
        ("viewer", "clicks_7d", "clicks_28d"),
        ("author", "likes_7d", "likes_28d"),
        ("author", "likes_28d", "likes_90d"),
        ("author", "likes_28d", "impressions_28d"),
        ("author", "clicks_7d", "clicks_28d"),
        ("author", "replies_7d", "replies_28d"),
        ("tweet", "likes_15m", "likes_1h"),
        ("tweet", "retweets_15m", "retweets_1h"),
        ("tweet", "impressions_15m", "impressions_1h"),
        ("tweet", "likes_1h", "likes"),
        ("tweet", "replies_1h", "replies"),
        ("tweet", "likes_by_followed", "likes"),
    ],
)
def test_windows_nest(impressions: Impressions, group: Group, shorter: str, longer: str) -> None:
    """A window never holds more than one that contains it."""
    a, b = _column(impressions, group, shorter), _column(impressions, group, longer)
    both = ~np.isnan(a) & ~np.isnan(b)

    assert both.any()
    assert (a[both] <= b[both]).all()


def test_last_like_agrees_with_the_windows(impressions: Impressions) -> None:
    """Who liked within 7 days did so at most 7 days ago, and the other way round."""
    days, likes = _column(impressions, "author", "days_since_like"), _column(impressions, "author", "likes_7d")
    known = ~np.isnan(days)

    assert (days[known & (likes > 0)] <= 7).all()
    assert (
        days[known & (likes == 0)]
        >= np.minimum(7, _column(impressions, "author", "days_since_follow"))[known & (likes == 0)]
    ).all()
    assert (_column(impressions, "author", "likes_90d")[known] > 0).all()


def test_a_tweet_is_the_same_for_everybody(impressions: Impressions) -> None:
    """Text and media of a Tweet are one for all viewers, and its counters never go back."""
    layout = world.SCHEMA.layouts["tweet"]
    order = np.lexsort((impressions.ids["time_ms"], impressions.ids["tweet_id"]))
    ids, table = impressions.ids["tweet_id"][order], impressions.tables["tweet"][order]
    again = ids[1:] == ids[:-1]
    before, after = table[:-1][again], table[1:][again]

    assert again.sum() > 100
    for name in ("length", "words", "has_image", "is_retweet", "posted_hour", "original_age", "language", "topic"):
        np.testing.assert_array_equal(before[:, layout.offsets[name]], after[:, layout.offsets[name]])
    for name in ("impressions", "likes", "replies", "clicks"):
        at = layout.offsets[name]
        assert not (after[:, at] < before[:, at]).any()


def test_history_does_not_flicker() -> None:
    """Two requests of a day carry the same history of a viewer and of a pair; another day's differs."""
    people = create_world(SEED, DAYS, 500)
    viewer = np.repeat(np.arange(500), 3)
    author = people.follows[people.follows_start[viewer] + np.tile(np.arange(3), 500)].astype(np.int64)
    morning, evening, tomorrow = (np.full(1_500, START_MS + 2 * DAY_MS + hours * HOUR_MS) for hours in (8, 20, 32))

    def columns(time_ms: Ints) -> list[Columns]:
        return [
            author_columns(people, viewer, author, time_ms),
            viewer_columns(people, viewer, time_ms, time_ms - 1),
        ]

    for first, second, third in zip(columns(morning), columns(evening), columns(tomorrow), strict=True):
        history = [name for name in first if name.endswith(("_7d", "_28d", "_90d", "strength", "recent_tastes"))]
        assert len(history) > 12
        for name in history:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        assert any(not np.array_equal(first[name], third[name], equal_nan=True) for name in history)


def test_labels_follow_their_probabilities(impressions: Impressions) -> None:
    """Each head's positives are as many as the true probabilities say, within four standard deviations."""
    assert impressions.true is not None
    p = impressions.true.astype(np.float64)
    deviation = np.sqrt((p * (1 - p)).sum(axis=0))

    assert (np.abs(impressions.labels.sum(axis=0) - p.sum(axis=0)) < 4 * deviation).all()


def test_sessions_hold_every_candidate_and_no_other() -> None:
    """Against a search through all Tweets: what followed authors posted after the last visit and up to now."""
    sessions = list(islice(world.sessions(SEED), 15))
    day = WINDOW_DAYS
    people = create_world(SEED, day + 1, 1_000)
    tweets = draw_tweets(people, range(day + 1))

    for session in sessions:
        viewer = session.viewer_id - world._VIEWER_ID
        followed = people.follows[people.follows_start[viewer] : people.follows_start[viewer + 1]]
        now = session.request_time_ms
        oldest = now - (WINDOW_DAYS * 24 if session.last_visit_ms else 24) * HOUR_MS
        expected = (
            np.isin(tweets.author, followed)
            & (tweets.time_ms > max(session.last_visit_ms, oldest))
            & (tweets.time_ms <= now)
        )
        assert sorted(session.tweet_ids.tolist()) == sorted(tweets.id[expected].tolist())


def test_sessions_are_whole_requests() -> None:
    """Shapes, order and references of a session are those that a request needs."""
    for session in islice(world.sessions(5, 100, 400), 5):
        n, a = len(session.tweet_ids), len(session.author_ids)
        assert 100 <= n <= 400
        assert {group: table.shape for group, table in session.tables.items()} == {
            "viewer": (1, world.SCHEMA.layouts["viewer"].width),
            "author": (a, world.SCHEMA.layouts["author"].width),
            "tweet": (n, world.SCHEMA.layouts["tweet"].width),
        }
        assert len(set(session.tweet_ids.tolist())) == n
        assert len(set(session.author_ids.tolist())) == a
        assert set(session.author_index.tolist()) == set(range(a))
        assert session.last_visit_ms < session.created_at_ms.min()
        assert session.created_at_ms.max() <= session.request_time_ms
        age = session.tables["tweet"][:, world.SCHEMA.layouts["tweet"].offsets["age"]]
        np.testing.assert_allclose(age, (session.request_time_ms - session.created_at_ms) / HOUR_MS, rtol=1e-5)


def test_sessions_vary_from_tens_to_more_than_a_thousand() -> None:
    """Candidate counts are heavy-tailed, as the served traffic is."""
    counts = [len(session.tweet_ids) for session in islice(world.sessions(3), 150)]
    low, middle, high = np.quantile(counts, [0.1, 0.5, 0.98])

    assert low < 40
    assert 50 < middle < 400
    assert high > 1_500
