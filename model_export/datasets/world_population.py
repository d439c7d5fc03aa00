"""Who lives in the simulated world: viewers, authors, who follows whom, when viewers visit and what authors post.

Everything is a function of the seed (and, for the number of viewers, of how many impressions are wanted). Tweets are
drawn day by day from their own streams, so any day can be had without the days before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_export.datasets.world_draws import Floats, Ints, stream
from model_export.datasets.world_schema import DEVICES, EMBEDDING_WIDTH, LANGUAGES, TOPICS

START_MS = 1_493_596_800_000  # day 0 begins: Monday, 1 May 2017, 00:00 UTC
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
HISTORY_DAYS = 10  # visits before day 0: what the first days' last visits are taken from
WINDOW_DAYS = 3  # older Tweets are no candidates any more
AUTHORS = 8_000
FOLLOWING_MAX = 1_500

_SNOWFLAKE_MS = 1_288_834_974_657  # where snowflake ids begin to count
_LANGUAGE_SHARES = (0.42, 0.16, 0.12, 0.08, 0.08, 0.05, 0.05, 0.04)
_TIMEZONES = (-6, 9, -5, -3, 3, 1, 3, 7)  # hours from UTC, by language
_DEVICE_SHARES = (0.38, 0.36, 0.14, 0.06, 0.06)
# Share of a day's visits by local hour: low at night, a peak at noon, a higher one in the evening.
_DIURNAL = np.array([3, 2, 1, 1, 1, 2, 4, 6, 7, 7, 7, 8, 9, 8, 7, 7, 7, 8, 9, 10, 11, 11, 9, 6]) / 151


@dataclass(frozen=True)
class Viewers:
    """V viewers; every array is [V] unless stated.

    Attributes:
        visits_per_day: Mean visits a day, heavy-tailed.
        generosity: How readily they engage, standard score.
        clicking, talking: The same for clicks, and for replies and retweets.
        age_days: Of the account on day 0; negative where it is opened later.
        followers, language, device: As the names say; the latter two are indices of vocabularies.
        timezone: Hours from UTC.
        private: Asked that no history of theirs be kept.
        tastes: [V, EMBEDDING_WIDTH] what they like in the long run, in the space of the text embeddings.
    """

    visits_per_day: Floats
    generosity: Floats
    clicking: Floats
    talking: Floats
    age_days: Floats
    followers: Floats
    language: Ints
    device: Ints
    timezone: Ints
    private: NDArray[np.bool_]
    tastes: Floats


@dataclass(frozen=True)
class Authors:
    """AUTHORS authors; every array is [AUTHORS].

    Attributes:
        topic, language: Indices of vocabularies.
        followers, following, verified: As the names say; followers over six orders of magnitude.
        tweets_per_day: Mean Tweets a day, heavy-tailed.
        quality: How well their Tweets are received, standard score.
        lively: How much they make people talk, standard score.
        age_days: Of the account on day 0; negative where it is opened later.
        images, videos, links, retweets, replies: Share of their Tweets that are or have one.
    """

    topic: Ints
    language: Ints
    followers: Floats
    following: Floats
    verified: NDArray[np.bool_]
    tweets_per_day: Floats
    quality: Floats
    lively: Floats
    age_days: Floats
    images: Floats
    videos: Floats
    links: Floats
    retweets: Floats
    replies: Floats


@dataclass(frozen=True)
class Visits:
    """All visits of all viewers in time order; every array is [visits].

    Attributes:
        viewer: Index of the viewer.
        time_ms: Unix ms.
        last_visit_ms: Of the same viewer; 0 = none within HISTORY_DAYS before day 0.
    """

    viewer: Ints
    time_ms: Ints
    last_visit_ms: Ints


@dataclass(frozen=True)
class World:
    """The population of one seed.

    Attributes:
        seed: It was drawn from.
        days: Days 0 to days - 1 have visits.
        viewers, authors, visits: See there.
        topic_centres: [TOPICS, EMBEDDING_WIDTH] in the space of the text embeddings.
        topic_trends: [WINDOW_DAYS + days, TOPICS] volume of a topic on a day over its usual volume; row 0 is day
            -WINDOW_DAYS.
        follows: Indices of followed authors, viewer by viewer, rising within a viewer.
        follows_start: [V + 1]; viewer v follows `follows[follows_start[v]:follows_start[v + 1]]`.
    """

    seed: int
    days: int
    viewers: Viewers
    authors: Authors
    visits: Visits
    topic_centres: Floats
    topic_trends: Floats
    follows: NDArray[np.int32]
    follows_start: Ints


@dataclass(frozen=True)
class Tweets:
    """T Tweets sorted by author, then time. Every array is [T] unless stated; nothing changes after posting.

    Attributes:
        id: Unique, rising with time.
        author: Index of who posted or retweeted it.
        time_ms: When.
        kind: 0 plain, 1 reply, 2 retweet, 3 quote.
        topic: Index of the vocabulary.
        embedding: [T, EMBEDDING_WIDTH] of its text.
        quality: How well it is received, standard score.
        lively: How much it makes people talk, standard score.
        reach: Impressions it will have got in the end.
        reach_hours: After which it has got half of them.
        original_hours: Age of the original when it was retweeted; 0 where it is no retweet.
        original_author: Whose Tweet it was first; the author where it is no retweet.
    """

    id: Ints
    author: Ints
    time_ms: Ints
    kind: Ints
    topic: Ints
    embedding: NDArray[np.float32]
    quality: Floats
    lively: Floats
    reach: Floats
    reach_hours: Floats
    original_hours: Floats
    original_author: Ints


def create_world(seed: int, days: int, viewers: int) -> World:
    """Draws the population of a seed: `viewers` viewers who visit on days 0 to `days` - 1."""
    centres = _EMBEDDING_STDS * _unit_variance(_centre_directions())
    authors = _draw_authors(stream(seed, "authors"))
    crowd = _draw_viewers(stream(seed, "viewers"), viewers, days, centres)
    follows, follows_start = _draw_follows(stream(seed, "follows"), crowd, authors, centres)
    steps = stream(seed, "trends").normal(0.0, 0.25, (WINDOW_DAYS + days, len(TOPICS)))
    trends = np.zeros_like(steps)
    for day in range(1, len(steps)):
        trends[day] = 0.8 * trends[day - 1] + steps[day]
    visits = _draw_visits(stream(seed, "visits"), crowd, days)
    return World(seed, days, crowd, authors, visits, centres, np.exp(trends), follows, follows_start)


# Text embeddings as a principal component analysis gives them: variance falls from one axis to the next.
_EMBEDDING_STDS = 0.88 ** np.arange(EMBEDDING_WIDTH)
_TOPIC_SHARE = 0.6  # of a Tweet's embedding (and of tastes) that its topic explains, as a correlation


def _centre_directions() -> Floats:
    # The encoder of texts is the same in every world, and so is where topics lie in its space.
    return stream(0, "topics").normal(size=(len(TOPICS), EMBEDDING_WIDTH))


def _unit_variance(values: Floats) -> Floats:
    centred = values - values.mean(axis=0)
    return np.asarray(centred / centred.std(axis=0))


def _heavy(rng: np.random.Generator, n: int, median: float, sigma: float, low: float, high: float) -> Floats:
    """Log-normal numbers, cut off at both ends."""
    return np.clip(median * np.exp(sigma * rng.standard_normal(n)), low, high)


def _draw_authors(rng: np.random.Generator) -> Authors:
    n = AUTHORS
    rank = rng.permutation(n) + 1.0
    followers = np.clip(3e7 * rank**-1.45 * np.exp(0.8 * rng.standard_normal(n)), 5, 8e7).round()
    return Authors(
        topic=rng.integers(0, len(TOPICS), n),
        language=rng.choice(len(LANGUAGES), n, p=_LANGUAGE_SHARES),
        followers=followers,
        following=_heavy(rng, n, 350, 1.1, 1, 2e5).round(),
        verified=rng.random(n) < 0.85 * followers / (followers + 1e5),
        tweets_per_day=_heavy(rng, n, 1.6, 1.0, 0.03, 60),
        quality=rng.standard_normal(n),
        lively=rng.standard_normal(n),
        age_days=np.where(rng.random(n) < 0.12, rng.uniform(-10, 40, n), rng.uniform(40, 3650, n)),
        images=rng.beta(1.2, 2.5, n),
        videos=rng.beta(0.7, 6.0, n),
        links=rng.beta(0.8, 2.2, n),
        retweets=rng.beta(1.0, 4.0, n),
        replies=rng.beta(1.0, 6.0, n),
    )


def _draw_viewers(rng: np.random.Generator, n: int, days: int, centres: Floats) -> Viewers:
    generosity = rng.standard_normal(n)
    language = rng.choice(len(LANGUAGES), n, p=_LANGUAGE_SHARES)
    favourite, second = rng.integers(0, len(TOPICS), (2, n))
    tastes = _TOPIC_SHARE * (0.8 * centres[favourite] + 0.6 * centres[second])
    tastes += np.sqrt(1 - _TOPIC_SHARE**2) * _EMBEDDING_STDS * rng.standard_normal((n, EMBEDDING_WIDTH))
    new = rng.random(n) < 0.15
    return Viewers(
        visits_per_day=_heavy(rng, n, 0.9, 1.0, 0.05, 15),
        generosity=generosity,
        clicking=0.5 * generosity + 0.87 * rng.standard_normal(n),
        talking=0.5 * generosity + 0.87 * rng.standard_normal(n),
        age_days=np.where(new, rng.uniform(-days, 28, n), rng.uniform(28, 3650, n)),
        followers=_heavy(rng, n, 120, 1.6, 0, 1e6).round(),
        language=language,
        device=rng.choice(len(DEVICES), n, p=_DEVICE_SHARES),
        timezone=np.array(_TIMEZONES)[language],
        private=rng.random(n) < 0.1,
        tastes=tastes,
    )


def _draw_follows(
    rng: np.random.Generator, viewers: Viewers, authors: Authors, centres: Floats
) -> tuple[NDArray[np.int32], Ints]:
    """Half of the follows go by popularity alone, half to authors of topics that the viewer likes."""
    n = len(viewers.language)
    wanted = _heavy(rng, n, 130, 0.9, 5, FOLLOWING_MAX).astype(np.int64)
    viewer = np.repeat(np.arange(n), wanted)
    # Authors stand in blocks by topic; within a block and over all of them, popularity decides.
    order = np.argsort(authors.topic, kind="stable")
    popularity = np.cumsum(authors.followers[order] ** 0.3)
    block_ends = popularity[np.searchsorted(authors.topic[order], np.arange(len(TOPICS)), side="right") - 1]
    block_starts = np.concatenate([[0.0], block_ends[:-1]])
    interest = np.exp(1.2 * _cosine(viewers.tastes, centres) * 3)
    interest = np.cumsum(interest / interest.sum(axis=1, keepdims=True), axis=1)
    by_topic = rng.random(len(viewer)) < 0.5
    topic = np.minimum((interest[viewer] < rng.random(len(viewer))[:, None]).sum(axis=1), len(TOPICS) - 1)
    low = np.where(by_topic, block_starts[topic], 0.0)
    high = np.where(by_topic, block_ends[topic], popularity[-1])
    at = np.searchsorted(popularity, low + (high - low) * rng.random(len(viewer)))
    pairs = np.unique(viewer * AUTHORS + order[np.minimum(at, AUTHORS - 1)])
    start = np.searchsorted(pairs // AUTHORS, np.arange(n + 1))
    return (pairs % AUTHORS).astype(np.int32), start


def _cosine(a: Floats, b: Floats) -> Floats:
    return np.asarray((a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1))


def _draw_visits(rng: np.random.Generator, viewers: Viewers, days: int) -> Visits:
    count = rng.poisson(viewers.visits_per_day * (HISTORY_DAYS + days))
    viewer = np.repeat(np.arange(len(count)), count)
    day = rng.integers(-HISTORY_DAYS, days, len(viewer))
    local_hour = rng.choice(24, len(viewer), p=_DIURNAL) + rng.random(len(viewer))
    hour = (local_hour - viewers.timezone[viewer]) % 24
    time_ms = START_MS + day * DAY_MS + (hour * HOUR_MS).astype(np.int64)
    # Nobody visits before they have an account.
    opened = time_ms >= START_MS - viewers.age_days[viewer] * DAY_MS
    viewer, time_ms = viewer[opened], time_ms[opened]
    order = np.lexsort((time_ms, viewer))
    viewer, time_ms = viewer[order], time_ms[order]
    last = np.zeros_like(time_ms)
    same = viewer[1:] == viewer[:-1]
    last[1:][same] = time_ms[:-1][same]
    order = np.argsort(time_ms, kind="stable")
    return Visits(viewer[order], time_ms[order], last[order])


def draw_tweets(world: World, days: range) -> Tweets:
    """All Tweets posted on these days, the same whatever other days are asked for; days begin at -WINDOW_DAYS."""
    parts = [_draw_day(world, day) for day in days]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Tweets.__dataclass_fields__}
    order = np.lexsort((columns["time_ms"], columns["author"]))
    return Tweets(**{name: column[order] for name, column in columns.items()})


def _draw_day(world: World, day: int) -> Tweets:
    rng = stream(world.seed, "tweets", day + WINDOW_DAYS)
    authors = world.authors
    trend = world.topic_trends[day + WINDOW_DAYS][authors.topic]
    opened = authors.age_days + day >= 0
    author = np.repeat(np.arange(AUTHORS), rng.poisson(authors.tweets_per_day * trend * opened))
    n = len(author)
    hour = (rng.choice(24, n, p=_DIURNAL) + rng.random(n) - np.array(_TIMEZONES)[authors.language[author]]) % 24
    time_ms = START_MS + day * DAY_MS + (hour * HOUR_MS).astype(np.int64)
    pick = rng.random(n)
    retweets, replies = authors.retweets[author], authors.replies[author]
    kind = np.select([pick < retweets, pick < retweets + replies, pick > 0.95], [2, 1, 3], 0)
    retweet = kind == 2
    popular = authors.followers**0.5
    other = rng.choice(AUTHORS, n, p=popular / popular.sum())
    original = np.where(retweet, other, author)
    topic = np.where(rng.random(n) < 0.75, authors.topic[author], rng.integers(0, len(TOPICS), n))
    noise = rng.standard_normal((n, EMBEDDING_WIDTH))
    embedding = _TOPIC_SHARE * world.topic_centres[topic] + np.sqrt(1 - _TOPIC_SHARE**2) * _EMBEDDING_STDS * noise
    quality = 0.6 * authors.quality[original] + 0.8 * rng.standard_normal(n)
    spread = np.exp(0.6 * quality + 0.9 * rng.standard_normal(n))
    return Tweets(
        # As snowflake ids do: milliseconds in the upper bits, a running number below.
        id=((time_ms - _SNOWFLAKE_MS) << 22) + np.arange(n),
        author=author,
        time_ms=time_ms,
        kind=kind,
        topic=topic,
        embedding=embedding.astype(np.float32),
        quality=quality,
        lively=0.6 * authors.lively[original] + 0.8 * rng.standard_normal(n),
        reach=0.3 * authors.followers[original] * spread * np.where(retweet, 3.0, 1.0),
        reach_hours=3.0 * np.exp(0.7 * rng.standard_normal(n)),
        original_hours=np.where(retweet, 12 * np.exp(1.3 * rng.standard_normal(n)), 0.0),
        original_author=original,
    )
