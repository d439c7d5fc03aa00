"""What a request carries about a Tweet at a point in time, to a given viewer.

Text and media never change after posting; counters only grow, and windows of them nest. NaN where a real backend would
have nothing to send: texts not classified yet or in a language that the models do not know, media that are not there,
counters that lag, fail, or are not kept any longer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model_export.datasets.world_draws import Floats, Ints, bell, count, uniform
from model_export.datasets.world_features import SHARDS, Columns, days_since_start, sent
from model_export.datasets.world_population import HOUR_MS, START_MS, WINDOW_DAYS, Tweets, World

_READABLE_LANGUAGES = 4  # the text models know the first four
_REPLY, _RETWEET, _QUOTE = 1, 2, 3


def tweet_columns(world: World, tweets: Tweets, row: Ints, viewer: Ints, time_ms: Ints, since_visit: Floats) -> Columns:
    """The Tweet table: Tweet `row` of `tweets` as sent to `viewer` at `time_ms`, all of one length.

    Args:
        world: They live in.
        tweets: All Tweets of the days around.
        row: Indices into `tweets`.
        viewer: Indices of viewers.
        time_ms: Of the requests.
        since_visit: Tweets of the same author among the viewer's candidates; NaN on a first visit.
    """
    chosen = Tweets(**{name: getattr(tweets, name)[row] for name in Tweets.__dataclass_fields__})
    return {
        **_text_columns(world, chosen, time_ms),
        **_media_columns(world, chosen),
        **_counter_columns(world, chosen, viewer, time_ms),
        **_match_columns(world, chosen, viewer, time_ms),
        "author_tweets_since_visit": since_visit,
    }


def _text_columns(world: World, t: Tweets, time_ms: Ints) -> Columns:
    def u(name: str) -> Floats:
        return uniform(world.seed, name, t.id)

    def normal(name: str) -> Floats:
        return bell(world.seed, name, t.id)

    language = world.authors.language[t.original_author]
    minutes = (time_ms - t.time_ms) / HOUR_MS * 60
    read = (language < _READABLE_LANGUAGES) & (minutes > 1 + 8 * u("classified"))
    embedded = (language < _READABLE_LANGUAGES + 1) & (minutes > 0.5) & (u("embedded") > 0.03)
    length = np.floor(10 + 130 * u("length") ** 0.6)
    return {
        "age": minutes / 60,
        "posted_hour": (t.time_ms - START_MS) / HOUR_MS % 24,
        "length": length,
        "words": np.maximum(1, np.floor(length / (4.5 + 3 * u("words")))),
        "hashtags": count(1.2 * u("hashtags") ** 2, u("hashtags-more")),
        "mentions": (t.kind == _REPLY) + count(0.6 * u("mentions"), u("mentions-more")),
        "emojis": count(3 * u("emojis") ** 4, u("emojis-more")),
        "line_breaks": np.where(length > 100, count(3 * u("breaks") ** 3, u("breaks-more")), 0),
        "capitals_share": 0.02 + 0.5 * u("capitals") ** 5,
        "readability": sent(read & (length > 40), 4 + 12 * u("readability")),
        "has_question": u("question") < 0.12 + 0.03 * t.lively,
        "is_quote": t.kind == _QUOTE,
        "is_reply": t.kind == _REPLY,
        "is_retweet": t.kind == _RETWEET,
        "is_thread": (t.kind == 0) & (u("thread") < 0.06),
        "sentiment": sent(read, np.clip(0.35 * normal("sentiment") + 0.1, -1, 1)),
        "toxicity": sent(read, np.round(u("toxicity") ** (4 - np.clip(t.lively, -2, 2)), 4)),
        "spam": sent(read, np.round(u("spam") ** (6 + 2 * np.clip(t.quality, -2, 2)), 4)),
        "text_quality": sent(read, 1 / (1 + np.exp(-0.8 * t.quality - 0.8 * normal("text")))),
        "language": language,
        "text_embedding": sent(embedded, t.embedding),
    }


def _media_columns(world: World, t: Tweets) -> Columns:
    def u(name: str) -> Floats:
        return uniform(world.seed, name, t.id)

    def normal(name: str) -> Floats:
        return bell(world.seed, name, t.id)

    a, original = world.authors, t.original_author
    video = u("video") < a.videos[original]
    image = ~video & (u("image") < a.images[original])
    link = ~video & (u("link") < a.links[original])
    domain = np.floor(300 * u("domain") ** 3).astype(np.int64)  # by rank: the first is linked to most
    clicked = 0.05 * np.exp(0.8 * bell(world.seed, "domain-clicks", domain))
    completed = 1 / (1 + np.exp(-0.7 * t.quality - 0.5 * normal("completed")))
    retweet = t.kind == _RETWEET
    return {
        "has_image": image,
        "has_video": video,
        "has_link_card": link,
        "has_poll": ~image & ~video & ~link & (u("poll") < 0.02),
        "images": sent(image, 1 + np.floor(4 * u("images") ** 3)),
        "image_aspect_ratio": sent(image, np.exp(0.4 * normal("aspect"))),
        "video_length": sent(video, np.minimum(25 * np.exp(normal("seconds")), 140)),
        "video_completion_rate": sent(video & (t.reach > 500), completed),
        "link_domain_tweets_7d": sent(link, np.floor(3e5 / (1.0 + domain) ** 1.5)),
        "link_domain_click_rate_28d": sent(link & (domain < 200), clicked),
        "original_age": sent(retweet, t.original_hours),
        "original_author_followers": sent(retweet, a.followers[original]),
    }


def _counter_columns(world: World, t: Tweets, viewer: Ints, time_ms: Ints) -> Columns:
    hour, shard = time_ms // HOUR_MS, t.author % SHARDS
    age = (time_ms - t.time_ms) / HOUR_MS
    so_far = _counters(world, t, age)
    total = {name: so_far(name, 0.0) for name in _COUNTERS}
    # The store opens a row at the 20th impression, lags, and fails at times; it keeps short windows for six hours.
    lag = 0.25 * np.exp(bell(world.seed, "lag", shard, hour))
    opened = (age > lag) & (total["impressions"] >= 20)
    totals = opened & (uniform(world.seed, "totals", shard, hour) > 0.08)
    windows = opened & (age < 6) & (uniform(world.seed, "windows", shard, hour) > 0.15)
    rated = totals & (total["impressions"] >= 150)
    acts = {
        "like_rate": "likes",
        "retweet_rate": "retweets",
        "reply_rate": "replies",
        "click_rate": "clicks",
        "negative_feedback_rate": "negative_feedbacks",
    }
    likes, in_hour = total["likes"], ("impressions", "likes", "retweets", "replies", "clicks")
    verified = np.floor(0.02 * likes * uniform(world.seed, "verified", t.id))
    columns: Columns = {
        **{name: sent(totals, values) for name, values in total.items()},
        **{f"{name}_1h": sent(windows, total[name] - so_far(name, 1.0)) for name in in_hour},
        **{f"{name}_15m": sent(windows, total[name] - so_far(name, 0.25)) for name in in_hour[:3]},
        **{rate: sent(rated, total[name] / np.maximum(total["impressions"], 1)) for rate, name in acts.items()},
        "likes_by_verified": sent(rated, verified),
    }
    columns["likes_share_1h"] = sent(totals & (likes > 0), columns["likes_1h"] / np.maximum(likes, 1))
    following = np.diff(world.follows_start)[viewer]
    for name in ("likes", "retweets", "replies"):
        # Of those whom the viewer follows, about the share that acted of all whom the Tweet reaches.
        mean = following * total[name] / (t.reach + 300) * np.exp(0.8 * bell(world.seed, f"near-{name}", viewer, t.id))
        near = np.minimum(count(mean, uniform(world.seed, f"near-{name}-more", viewer, t.id)), following)
        columns[f"{name}_by_followed"] = sent(totals & (following >= 20), np.minimum(near, total[name]))
    return columns


_COUNTERS = (
    "impressions", "likes", "retweets", "replies", "quotes", "clicks", "profile_clicks", "negative_feedbacks",
)  # fmt: skip


def _counters(world: World, t: Tweets, age_hours: Floats) -> Callable[[str, float], Floats]:
    """A function of a counter's name and of how many hours ago: the counter as it stood then."""
    rates = {
        "impressions": np.ones(len(age_hours)),
        "likes": 0.02 * np.exp(0.7 * t.quality),
        "retweets": 0.005 * np.exp(0.5 * t.quality + 0.5 * t.lively),
        "replies": 0.004 * np.exp(0.8 * t.lively),
        "quotes": 0.001 * np.exp(0.6 * t.lively),
        "clicks": 0.03 * np.exp(0.5 * t.quality + 0.8 * world.authors.links[t.original_author]),
        "profile_clicks": 0.004 * np.exp(0.5 * bell(world.seed, "profile-clicks", t.id)),
        "negative_feedbacks": 0.0006 * np.exp(0.6 * t.lively - 0.6 * t.quality),
    }

    def so_far(name: str, hours_ago: float) -> Floats:
        # Half of all that will ever come has come after `reach_hours`; a retweet counts on from its original.
        hours = np.maximum(age_hours + t.original_hours - hours_ago, 0)
        mean = (
            t.reach * np.minimum(rates[name], 0.4 if name != "impressions" else 1.0) * hours / (hours + t.reach_hours)
        )
        return count(mean, uniform(world.seed, name, t.id))

    return so_far


def _match_columns(world: World, t: Tweets, viewer: Ints, time_ms: Ints) -> Columns:
    v, language = world.viewers, world.authors.language[t.original_author]
    day = days_since_start(time_ms)
    confidence = uniform(world.seed, "confidence", t.id) ** 0.4
    labelled = (language < _READABLE_LANGUAGES) & (confidence > 0.5)
    experienced = (v.age_days[viewer] + day >= 7) & ~v.private[viewer]
    match = _cosine(v.tastes[viewer], world.topic_centres[t.topic])
    likes = 28 * v.visits_per_day[viewer] * np.exp(0.9 * v.generosity[viewer] + 1.5 * match - 2)
    followed = uniform(world.seed, "followed", viewer, t.original_author) < 0.3
    return {
        "topic": sent(labelled, t.topic),
        "topic_confidence": sent(labelled, confidence),
        "topic_match": sent(labelled & experienced, match),
        "topic_trend": sent(labelled, world.topic_trends[days_since_start(t.time_ms) + WINDOW_DAYS, t.topic]),
        "topic_likes_28d": sent(
            labelled & experienced, count(likes, uniform(world.seed, "topic-likes", viewer, t.topic, day))
        ),
        "language_match": language == v.language[viewer],
        "original_author_followed": sent(t.kind == _RETWEET, followed),
    }


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> Floats:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.einsum("ij,ij->i", a, b) / lengths)
