"""The simulated world: a source of impressions whose true probabilities are known.

A seed redraws who lives in it, what is posted and when people look; the law of engagement is fixed by name
(`world_laws`). What a viewer could see at a visit are the Tweets that followed authors posted since the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.datasets.records import Impressions, create, write_day
from model_export.datasets.world_draws import Floats, Ints, stream
from model_export.datasets.world_features import author_columns, table, viewer_columns
from model_export.datasets.world_laws import LAWS, engagement
from model_export.datasets.world_population import (
    DAY_MS,
    HOUR_MS,
    START_MS,
    WINDOW_DAYS,
    Tweets,
    World,
    create_world,
    draw_tweets,
)
from model_export.datasets.world_schema import SCHEMA
from model_export.datasets.world_tweet_features import tweet_columns
from service.schema import Group

__all__ = ["LAWS", "SCHEMA", "Session", "generate", "sessions"]

SHOWN_MAX = 40  # impressions logged of a visit, drawn from its candidates
FIRST_VISIT_HOURS = 24  # how far a first visit looks back
_VIEWERS_MIN = 1_000
_IMPRESSIONS_PER_VIEWER_DAY = 5  # so few that most viewers are seen in several visits, none in all
_VIEWER_ID = 500_000_000
_AUTHOR_ID = 10_000_000


@dataclass(frozen=True)
class Session:
    """One visit with all its candidates, as a request carries it: N Tweets by A authors.

    Attributes:
        viewer_id: Of the viewer.
        request_time_ms, last_visit_ms: Unix ms; last_visit_ms 0 = first visit.
        tweet_ids, created_at_ms, author_index: int64 [N]; author_index points into the rows of `authors`.
        author_ids: int64 [A], each once.
        tables: `viewer` float32 [1, Fv], `author` float32 [A, Fa], `tweet` float32 [N, Ft] in the columns of
            SCHEMA's layouts; NaN = absent.
    """

    viewer_id: int
    request_time_ms: int
    last_visit_ms: int
    tweet_ids: Ints
    created_at_ms: Ints
    author_index: Ints
    author_ids: Ints
    tables: dict[Group, NDArray[np.float32]]


def generate(
    root: Path,
    law: str,
    seed: int,
    impressions: int,
    days: int = 20,
    only_days: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Writes a data set of the world in the record form, day by day; memory does not grow with `days`.

    The same law, seed, impressions and days give the same bytes. Labels of one seed differ between laws, features do
    not.

    Args:
        root: Directory to write, which may exist and be empty.
        law: One of LAWS.
        seed: Of the population, the visits and all noise; not negative.
        impressions: Rows over all `days`; spread evenly over them.
        days: Of the whole data set, numbered from 0.
        only_days: Write these days alone, each with what it has in the whole data set.
        progress: Called after each day with how many are written and how many there are to write.

    Raises:
        ValueError: An argument out of its range.
    """
    if law not in LAWS:
        raise ValueError(f"law {law!r} is none of {', '.join(LAWS)}")
    if days < 1 or impressions < days:
        raise ValueError(f"{impressions} impressions over {days} days: at least one day, and one impression on each")
    wanted = range(days) if only_days is None else sorted(set(only_days))
    if any(not 0 <= day < days for day in wanted):
        raise ValueError(f"only_days {list(wanted)} are not all within 0 to {days - 1}")
    world = create_world(seed, days, max(_VIEWERS_MIN, impressions // days // _IMPRESSIONS_PER_VIEWER_DAY))
    create(root, SCHEMA)
    for done, day in enumerate(wanted):
        rows = impressions * (day + 1) // days - impressions * day // days
        write_day(root, SCHEMA, day, _impressions_of_day(world, law, day, rows))
        progress(done + 1, len(wanted))


def sessions(seed: int, candidates_min: int = 1, candidates_max: int = 5_000) -> Iterator[Session]:
    """Visits of a world of this seed in random order, those with this many candidates; ends after a day's visits.

    For sample requests, golden cases and load: take a seed that no data set was generated with.
    """
    day = WINDOW_DAYS
    world = create_world(seed, day + 1, _VIEWERS_MIN)
    tweets = draw_tweets(world, range(day - WINDOW_DAYS, day + 1))
    visits = _shuffled_visits(world, day)
    for at in range(0, len(visits), 64):
        candidates = _candidates(world, tweets, visits[at : at + 64])
        for visit in visits[at : at + 64]:
            rows = np.flatnonzero(candidates.visit == visit)
            if candidates_min <= len(rows) <= candidates_max:
                yield _session(world, tweets, int(visit), candidates.take(rows))


@dataclass(frozen=True)
class _Candidates:
    """n candidates of some visits, in the order of these; every array is [n].

    Attributes:
        visit: Index into the world's visits.
        tweet: Index into the Tweets at hand.
        since_visit: How many of the visit's candidates are by the same author; NaN on a first visit.
    """

    visit: Ints
    tweet: Ints
    since_visit: Floats

    def take(self, rows: Ints) -> _Candidates:
        return _Candidates(self.visit[rows], self.tweet[rows], self.since_visit[rows])


def _shuffled_visits(world: World, day: int) -> Ints:
    begin = START_MS + day * DAY_MS
    first, end = np.searchsorted(world.visits.time_ms, [begin, begin + DAY_MS])
    return stream(world.seed, "shown", day).permutation(np.arange(first, end))


def _candidates(world: World, tweets: Tweets, visits: Ints) -> _Candidates:
    """All Tweets that the viewers' followed authors posted since the last visit, oldest WINDOW_DAYS ago."""
    viewer, now = world.visits.viewer[visits], world.visits.time_ms[visits]
    last = world.visits.last_visit_ms[visits]
    since = np.where(last > 0, np.maximum(last, now - WINDOW_DAYS * DAY_MS), now - FIRST_VISIT_HOURS * HOUR_MS)
    pair, follow = _expand(world.follows_start[viewer], world.follows_start[viewer + 1])
    author = world.follows[follow].astype(np.int64)
    # Tweets are sorted by author, then time: a (visit, author) pair's candidates stand side by side.
    origin, span = int(tweets.time_ms.min()), (WINDOW_DAYS + 2) * DAY_MS
    keys = tweets.author * span + (tweets.time_ms - origin)
    begin = np.searchsorted(keys, author * span + np.maximum(since[pair] - origin, 0), side="right")
    end = np.searchsorted(keys, author * span + (now[pair] - origin), side="right")
    row, tweet = _expand(begin, end)
    since_visit = np.where(last[pair] > 0, end - begin, np.nan)
    return _Candidates(visits[pair[row]], tweet, since_visit[row])


def _expand(begin: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Ranges -> for each of their numbers the index of its range, and the number."""
    length = end - begin
    index = np.repeat(np.arange(len(length)), length)
    before = np.cumsum(length) - length
    return index, np.arange(len(index)) - before[index] + begin[index]


def _shown(world: World, tweets: Tweets, day: int, rows: int, rng: np.random.Generator) -> _Candidates:
    """`rows` impressions of a day: of visits in random order, each one's share of its candidates."""
    visits = _shuffled_visits(world, day)
    parts: list[_Candidates] = []
    at = have = 0
    while have < rows:
        if at >= len(visits):
            raise ValueError(f"day {day} of seed {world.seed} has only {have} of {rows} impressions: too few visits")
        chunk = visits[at : at + min(512, 1 + (rows - have) // 20)]
        at += len(chunk)
        candidates = _candidates(world, tweets, chunk)
        # A random order within each visit, of which the first SHOWN_MAX are shown.
        order = np.lexsort((rng.random(len(candidates.visit)), candidates.visit))
        visit = candidates.visit[order]
        shown = order[np.arange(len(order)) - np.searchsorted(visit, visit) < SHOWN_MAX]
        parts.append(candidates.take(shown[: rows - have]))
        have += len(parts[-1].visit)
    joined = _Candidates(
        visit=np.concatenate([part.visit for part in parts]),
        tweet=np.concatenate([part.tweet for part in parts]),
        since_visit=np.concatenate([part.since_visit for part in parts]),
    )
    return joined.take(np.lexsort((joined.tweet, joined.visit)))  # visits are numbered in time order


def _impressions_of_day(world: World, law: str, day: int, rows: int) -> Impressions:
    rng = stream(world.seed, "impressions", day)
    tweets = draw_tweets(world, range(day - WINDOW_DAYS, day + 1))
    shown = _shown(world, tweets, day, rows, rng)
    distinct, of_visit = np.unique(shown.visit, return_inverse=True)
    visits, viewer, time_ms = world.visits, world.visits.viewer[shown.visit], world.visits.time_ms[shown.visit]
    author = tweets.author[shown.tweet]
    layouts = SCHEMA.layouts
    viewer_rows = viewer_columns(
        world, visits.viewer[distinct], visits.time_ms[distinct], visits.last_visit_ms[distinct]
    )
    tables: dict[Group, NDArray[np.float32]] = {
        "viewer": table(layouts["viewer"], viewer_rows)[of_visit],
        "author": table(layouts["author"], author_columns(world, viewer, author, time_ms)),
        "tweet": table(layouts["tweet"], tweet_columns(world, tweets, shown.tweet, viewer, time_ms, shown.since_visit)),
    }
    true, reachable = engagement(law, tables, rng)
    return Impressions(
        ids={
            "viewer_id": _VIEWER_ID + viewer,
            "author_id": _AUTHOR_ID + author,
            "tweet_id": tweets.id[shown.tweet],
            "session": shown.visit,
            "time_ms": time_ms,
        },
        tables=tables,
        labels=(rng.random(true.shape) < true).astype(np.uint8),
        true=true,
        reachable=reachable,
    )


def _session(world: World, tweets: Tweets, visit: int, candidates: _Candidates) -> Session:
    one = np.array([visit])
    viewer, now = world.visits.viewer[one], world.visits.time_ms[one]
    last = world.visits.last_visit_ms[one]
    n = len(candidates.tweet)
    author = tweets.author[candidates.tweet]
    authors, author_index = np.unique(author, return_inverse=True)
    a = len(authors)
    layouts = SCHEMA.layouts
    return Session(
        viewer_id=int(_VIEWER_ID + viewer[0]),
        request_time_ms=int(now[0]),
        last_visit_ms=int(last[0]),
        tweet_ids=tweets.id[candidates.tweet],
        created_at_ms=tweets.time_ms[candidates.tweet],
        author_index=author_index,
        author_ids=_AUTHOR_ID + authors,
        tables={
            "viewer": table(layouts["viewer"], viewer_columns(world, viewer, now, last)),
            "author": table(layouts["author"], author_columns(world, np.repeat(viewer, a), authors, np.repeat(now, a))),
            "tweet": table(
                layouts["tweet"],
                tweet_columns(
                    world, tweets, candidates.tweet, np.repeat(viewer, n), np.repeat(now, n), candidates.since_visit
                ),
            ),
        },
    )
