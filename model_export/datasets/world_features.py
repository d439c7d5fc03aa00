"""What a request carries about viewers, authors and the two together, at a point in time.

Each function returns its group's columns by name, NaN where a real backend would have nothing to send: nightly jobs
that were late, viewers who want no history kept, viewers and authors too new for rates, pairs without history. What is
drawn here hangs on ids and days through a hash: a value is the same in every request of a day, and windows nest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.datasets.world_draws import Floats, Ints, bell, count, part_of, uniform
from model_export.datasets.world_population import DAY_MS, HOUR_MS, START_MS, World
from model_export.datasets.world_schema import EMBEDDING_WIDTH, ORIGINS, TOPICS
from service.schema import GroupLayout

Columns = dict[str, NDArray[Any]]

SHARDS = 64  # of the counter stores; a shard lags or fails as a whole


def table(layout: GroupLayout, columns: Columns) -> NDArray[np.float32]:
    """Columns by name -> float32 [rows, layout.width]; ValueError unless the names are exactly the layout's."""
    if set(columns) != set(layout.offsets):
        raise ValueError(f"columns and layout differ in {sorted(set(columns) ^ set(layout.offsets))}")
    rows = len(next(iter(columns.values())))
    filled = np.empty((rows, layout.width), np.float32)
    for feature in layout.features:
        start = layout.offsets[feature.name]
        filled[:, start : start + feature.width] = columns[feature.name].reshape(rows, feature.width)
    return filled


def sent(known: NDArray[np.bool_], values: NDArray[Any]) -> Floats:
    """The values where they are known, NaN elsewhere; `known` [n], values [n] or [n, width]."""
    return np.where(known if values.ndim == 1 else known[:, None], values, np.nan)


def days_since_start(time_ms: Ints) -> Ints:
    """The day that a time lies in."""
    return (time_ms - START_MS) // DAY_MS


def viewer_columns(world: World, viewer: Ints, time_ms: Ints, last_visit_ms: Ints) -> Columns:
    """The viewer table: one row for each of these visits; last_visit_ms 0 = first visit."""
    v = world.viewers
    age = v.age_days[viewer] + (time_ms - START_MS) / DAY_MS
    local_ms = time_ms - START_MS + v.timezone[viewer] * HOUR_MS
    return _habit_columns(world, viewer, days_since_start(time_ms)) | {
        "account_age": age,
        "following": np.diff(world.follows_start)[viewer],
        "followers": v.followers[viewer],
        "hours_since_visit": sent(last_visit_ms > 0, (time_ms - last_visit_ms) / HOUR_MS),
        "hour": local_ms / HOUR_MS % 24,
        "is_weekend": local_ms // DAY_MS % 7 >= 5,
        "device": v.device[viewer],
        "language": v.language[viewer],
    }


def _habit_columns(world: World, viewer: Ints, day: Ints) -> Columns:
    v, seed = world.viewers, world.seed
    today = (viewer, day)
    kept = np.clip(np.floor(v.age_days[viewer] + day), 0, 28)  # whole days of history, as of last midnight

    def over_28d(name: str, per_day: Floats) -> Floats:
        busy = np.exp(0.25 * bell(seed, f"{name}-busy", viewer, day // 7))
        return count(kept * per_day * busy, uniform(seed, name, *today))

    visits = v.visits_per_day[viewer]
    seen = visits * (15 + 30 * uniform(seed, "depth", viewer))
    talk_rate = 0.005 * np.exp(v.talking[viewer])
    sessions, impressions = over_28d("sessions", visits), over_28d("impressions", seen)
    likes = np.minimum(over_28d("likes", seen * 0.025 * np.exp(0.9 * v.generosity[viewer])), impressions)
    clicks = np.minimum(over_28d("clicks", seen * 0.04 * np.exp(0.7 * v.clicking[viewer])), impressions)
    # A shard whose nightly job was late sends no windows today; an account of today has none either.
    known = (kept >= 1) & ~v.private[viewer] & (uniform(seed, "nightly", viewer % SHARDS, day) > 0.06)
    rated = known & (impressions >= 200)
    part = uniform(seed, "part", *today)
    opened = count(7 * visits * uniform(seed, "opens", viewer), uniform(seed, "opened", *today))
    return {
        "sessions_1d": sent(known, part_of(sessions, kept, 1, part)),
        "sessions_7d": sent(known, part_of(sessions, kept, 7, part)),
        "sessions_28d": sent(known, sessions),
        "impressions_7d": sent(known, part_of(impressions, kept, 7, part)),
        "likes_1d": sent(known, part_of(likes, kept, 1, part)),
        "likes_7d": sent(known, part_of(likes, kept, 7, part)),
        "likes_28d": sent(known, likes),
        "retweets_28d": sent(known, over_28d("retweets", seen * talk_rate)),
        "replies_28d": sent(known, over_28d("replies", seen * talk_rate)),
        "clicks_7d": sent(known, part_of(clicks, kept, 7, part)),
        "clicks_28d": sent(known, clicks),
        "negative_feedbacks_28d": sent(known, over_28d("negative", seen * 0.0006)),
        "topic_breadth_28d": sent(known, np.minimum(len(TOPICS), np.floor(likes**0.5))),
        "like_rate_28d": sent(rated, likes / np.maximum(impressions, 1)),
        "click_rate_28d": sent(rated, clicks / np.maximum(impressions, 1)),
        "session_length_28d": sent(rated, 200 * np.exp(0.7 * bell(seed, "length", viewer))),
        "video_dwell_share_28d": sent(rated, uniform(seed, "video", viewer) ** 2),
        "notifications_opened_7d": sent(v.device[viewer] < 2, opened),  # the two that notify
        "recent_tastes": sent(known & (likes >= 5), _recent_tastes(world, *today)),
    }


def _recent_tastes(world: World, viewer: Ints, day: Ints) -> Floats:
    """Long-term tastes, held more or less firmly, and what the day drifts to."""
    tastes, seed = world.viewers.tastes, world.seed
    firm = 0.75 + 0.25 * uniform(seed, "firm", viewer, day)
    drift = np.stack([bell(seed, f"drift-{i}", viewer, day) for i in range(EMBEDDING_WIDTH)], axis=1)
    return np.asarray(tastes[viewer] * firm[:, None] + 0.35 * tastes.std(axis=0) * drift)


def author_columns(world: World, viewer: Ints, author: Ints, time_ms: Ints) -> Columns:
    """The author table: a row for each of these pairs of a viewer and an author, as of each one's time."""
    v, a, pair = world.viewers, world.authors, (viewer, author)
    # How close the two are: a shared taste, and the rest is life.
    shared = np.einsum("ij,ij->i", v.tastes[viewer], world.topic_centres[a.topic[author]])
    closeness = 0.35 * shared + 1.1 * bell(world.seed, "closeness", *pair)
    viewer_age = np.maximum(v.age_days[viewer] + days_since_start(time_ms), 0)
    follow_days = viewer_age * uniform(world.seed, "follow", *pair) ** 0.7
    near = 0.5 / (1 + a.followers[author] / 2_000) * np.minimum(np.exp(closeness), 2)
    mutual = uniform(world.seed, "mutual", *pair) < near
    common = 0.05 * np.log1p(a.followers[author]) ** 2 * np.exp(0.5 * closeness)
    origin = np.floor(len(ORIGINS) * uniform(world.seed, "origin", *pair) ** (1 + 0.5 * mutual))
    return {
        **_history_columns(world, viewer, author, time_ms, closeness, follow_days, mutual),
        **_account_columns(world, author, time_ms),
        "days_since_follow": follow_days,
        "mutual_follow": mutual,
        "common_follows": sent(
            np.diff(world.follows_start)[viewer] >= 20, count(common, uniform(world.seed, "common", *pair))
        ),
        "origin": sent(follow_days < 1_095, origin),  # recorded for three years now
    }


def _history_columns(
    world: World,
    viewer: Ints,
    author: Ints,
    time_ms: Ints,
    closeness: Floats,
    follow_days: Floats,
    mutual: NDArray[np.bool_],
) -> Columns:
    v, a, seed = world.viewers, world.authors, world.seed
    pair, today = (viewer, author), (viewer, author, days_since_start(time_ms))
    kept = np.minimum(follow_days, 90.0)
    seen_per_day = 0.2 * np.minimum(a.tweets_per_day[author], 40) * np.minimum(v.visits_per_day[viewer] / 3, 1)
    impressions = count(seen_per_day * kept, uniform(seed, "seen", *today))
    warm = np.exp(closeness)

    def acts(name: str, rate: Floats) -> Floats:
        return count(impressions * np.minimum(rate, 0.9), uniform(seed, f"{name}-of", *pair))

    likes = np.minimum(acts("likes", 0.01 * warm * np.exp(0.7 * v.generosity[viewer])), impressions)
    clicks = np.minimum(acts("clicks", 0.012 * warm * np.exp(0.7 * v.clicking[viewer])), impressions)
    retweets = np.minimum(acts("retweets", 0.002 * warm * np.exp(0.7 * v.talking[viewer])), impressions)
    replies = np.minimum(acts("replies", 0.002 * warm * np.exp(0.9 * v.talking[viewer])), impressions)
    profiles = np.minimum(acts("profiles", 0.002 * warm), impressions)
    negatives = np.minimum(acts("negatives", 0.0006 / warm), impressions)
    # The store has a row for a pair only where something happened in 90 days.
    known = (likes + clicks + retweets + replies + profiles + negatives > 0) & ~v.private[viewer]
    part = uniform(seed, "part-of", *today)

    def within(days: int, total: Floats) -> Floats:
        return sent(known, part_of(total, kept, days, part))

    seen_28d, likes_28d = within(28, impressions), within(28, likes)
    dwell = 3 * np.exp(0.4 * closeness + 0.3 * bell(seed, "dwell", *pair))
    strength = 1 / (1 + np.exp(1.0 - 1.3 * closeness - 0.4 * bell(seed, "strength", *pair)))
    back = {"likes_back": 0.8 * warm, "replies_back": 0.3 * warm, "direct_messages": 0.2 * warm}
    return {
        "impressions_7d": within(7, impressions),
        "impressions_28d": seen_28d,
        "likes_7d": within(7, likes),
        "likes_28d": likes_28d,
        "likes_90d": sent(known, likes),
        "retweets_28d": within(28, retweets),
        "replies_7d": within(7, replies),
        "replies_28d": within(28, replies),
        "clicks_7d": within(7, clicks),
        "clicks_28d": within(28, clicks),
        "profile_clicks_28d": within(28, profiles),
        "negative_feedbacks_90d": sent(known, negatives),
        "like_rate_28d": sent(seen_28d >= 5, likes_28d / np.maximum(seen_28d, 1)),
        "dwell_mean_28d": sent(seen_28d >= 3, dwell),
        "days_since_like": sent(known & (likes > 0), _days_since(likes, kept, part, uniform(seed, "liked", *today))),
        "strength": sent(known, strength),
        **{f"{name}_28d": sent(known & mutual, count(mean, uniform(seed, name, *pair))) for name, mean in back.items()},
    }


def _days_since(total: Floats, kept: Floats, part: Floats, draw: Floats) -> Floats:
    """When the last of `total` acts was, in agreement with how many fell into 7 and 28 days."""
    recent = [part_of(total, kept, 7, part) > 0, part_of(total, kept, 28, part) > 0]
    newest = np.select(recent, [0.0, np.minimum(kept, 7)], np.minimum(kept, 28))
    oldest = np.select(recent, [np.minimum(kept, 7), np.minimum(kept, 28)], kept)
    return np.asarray(newest + (oldest - newest) * draw)


def _account_columns(world: World, author: Ints, time_ms: Ints) -> Columns:
    a, seed = world.authors, world.seed
    day = days_since_start(time_ms)
    kept = np.maximum(np.floor(a.age_days[author] + day), 0)  # whole days of history, as of last midnight
    known = uniform(seed, "author-nightly", author % SHARDS, day) > 0.03
    # A cold author has no rates: too new, or hardly seen.
    seen = 0.3 * a.followers[author] * a.tweets_per_day[author] * np.minimum(kept, 28)
    rated = known & (kept >= 14) & (seen >= 10_000)

    def rate(name: str, base: float, score: Floats) -> Floats:
        return sent(rated, base * np.exp(score + 0.25 * bell(seed, name, author, day // 7)))

    quality, lively = a.quality[author], a.lively[author]
    growth = 0.01 * np.exp(0.5 * quality + 0.8 * bell(seed, "growth", author, day))
    return {
        "followers": a.followers[author],
        "following": a.following[author],
        "account_age": a.age_days[author] + (time_ms - START_MS) / DAY_MS,
        "verified": a.verified[author],
        "tweets_7d": count(a.tweets_per_day[author] * np.minimum(kept, 7), uniform(seed, "posts", author, day)),
        "author_like_rate_28d": rate("like-rate", 0.02, 0.6 * quality),
        "author_retweet_rate_28d": rate("retweet-rate", 0.005, 0.4 * quality + 0.4 * lively),
        "author_reply_rate_28d": rate("reply-rate", 0.004, 0.7 * lively),
        "author_click_rate_28d": rate("click-rate", 0.03, 0.3 * quality + 0.8 * a.links[author]),
        "follower_growth_7d": sent(known & (kept >= 7), growth),
    }
