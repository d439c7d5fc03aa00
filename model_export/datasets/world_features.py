"""What a request carries about the simulated world: the tables of viewers, authors and Tweets at a point in time.

Each function returns its group's columns by name, NaN where a real backend would have nothing to send: counters that
lag behind or are not kept any longer, viewers and authors too new for rates, relationships without history, texts that
the classifiers can not read. What is drawn here hangs on ids and days through a hash, not on the order of the calls: a
value is the same in every request of a day, windows nest, and counters of a Tweet only grow.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from model_export.datasets.world_population import DAY_MS, HOUR_MS, START_MS, Floats, Ints, Tweets, World
from model_export.datasets.world_schema import EMBEDDING_WIDTH, TOPICS
from service.schema import GroupLayout

Columns = dict[str, NDArray[np.generic]]

_READABLE_LANGUAGES = 4  # the text models know the first four
_SHARDS = 64  # of the counter store; a shard lags or fails as a whole
_MASK = (1 << 64) - 1


def table(layout: GroupLayout, columns: Columns) -> NDArray[np.float32]:
    """Columns by name -> float32 [rows, layout.width]; the names must be exactly those of the layout."""
    if set(columns) != set(layout.offsets):
        raise ValueError(f"columns and layout differ in {sorted(set(columns) ^ set(layout.offsets))}")
    rows = len(next(iter(columns.values())))
    filled = np.empty((rows, layout.width), np.float32)
    for feature in layout.features:
        start = layout.offsets[feature.name]
        filled[:, start : start + feature.width] = columns[feature.name].reshape(rows, feature.width)
    return filled


def viewer_columns(world: World, viewer: Ints, time_ms: Ints, last_visit_ms: Ints) -> Columns:
    """The viewer table: one row for each of these visits."""
    v = world.viewers
    day = (time_ms - START_MS) // DAY_MS
    key = (viewer, day)
    age = v.age_days[viewer] + (time_ms - START_MS) / DAY_MS
    kept = np.clip(np.floor(age), 0, 28)  # whole days of history

    def over(days: float, name: str, per_day: Floats) -> Floats:
        busy = np.exp(0.25 * _bell(world, f"{name}-busy", viewer, day // 7))
        return _count(np.minimum(kept, days) * per_day * busy, _uniform(world, f"{name}-{days}", *key))

    visits = v.visits_per_day[viewer]
    seen = visits * (15 + 30 * _uniform(world, "depth", viewer))
    like_rate = 0.025 * np.exp(0.9 * v.generosity[viewer])
    click_rate = 0.04 * np.exp(0.7 * v.clicking[viewer])
    talk_rate = 0.005 * np.exp(1.0 * v.talking[viewer])
    sessions_28d, impressions_28d = over(28, "sessions", visits), over(28, "seen", seen)
    likes_28d = np.minimum(over(28, "likes", seen * like_rate), impressions_28d)
    clicks_28d = np.minimum(over(28, "clicks", seen * click_rate), impressions_28d)
    local_ms = time_ms - START_MS + v.timezone[viewer] * HOUR_MS
    # A shard whose nightly job was late sends no windows today; an account of today has none either.
    known = (kept >= 1) & ~v.private[viewer] & (_uniform(world, "nightly", viewer % _SHARDS, day) > 0.1)
    rated = known & (impressions_28d >= 200)
    part = _uniform(world, "part", *key)
    history = {
        "sessions_1d": _part(sessions_28d, kept, 1, part),
        "sessions_7d": _part(sessions_28d, kept, 7, part),
        "sessions_28d": sessions_28d,
        "impressions_7d": _part(impressions_28d, kept, 7, part),
        "likes_1d": _part(likes_28d, kept, 1, part),
        "likes_7d": _part(likes_28d, kept, 7, part),
        "likes_28d": likes_28d,
        "retweets_28d": over(28, "retweets", seen * talk_rate),
        "replies_28d": over(28, "replies", seen * talk_rate),
        "clicks_7d": _part(clicks_28d, kept, 7, part),
        "clicks_28d": clicks_28d,
        "negative_feedbacks_28d": over(28, "negative", seen * 0.0006),
        "topic_breadth_28d": np.minimum(len(TOPICS), _count(likes_28d**0.5, _uniform(world, "breadth", *key))),
    }
    columns: Columns = {name: np.where(known, values, np.nan) for name, values in history.items()}
    tastes = v.tastes[viewer] * (0.75 + 0.25 * _uniform(world, "mood", *key))[:, None]
    drift = np.stack([_bell(world, f"taste-{i}", *key) for i in range(EMBEDDING_WIDTH)], axis=1)
    tastes += 0.35 * v.tastes.std(axis=0) * drift
    columns |= {
        "like_rate_28d": np.where(rated, likes_28d / np.maximum(impressions_28d, 1), np.nan),
        "click_rate_28d": np.where(rated, clicks_28d / np.maximum(impressions_28d, 1), np.nan),
        "session_length_28d": np.where(rated, 200 * np.exp(0.7 * _bell(world, "length", viewer)), np.nan),
        "video_dwell_share_28d": np.where(rated, _uniform(world, "video", viewer) ** 2, np.nan),
        "notifications_opened_7d": np.where(
            v.device[viewer] < 2,
            _count(7 * visits * _uniform(world, "opens", viewer), _uniform(world, "n7", *key)),
            np.nan,
        ),
        "account_age": age,
        "following": np.diff(world.follows_start)[viewer],
        "followers": v.followers[viewer],
        "hours_since_visit": np.where(last_visit_ms > 0, (time_ms - last_visit_ms) / HOUR_MS, np.nan),
        "hour": local_ms / HOUR_MS % 24,
        "is_weekend": local_ms // DAY_MS % 7 >= 5,
        "device": v.device[viewer],
        "language": v.language[viewer],
        "recent_tastes": np.where((known & (likes_28d >= 5))[:, None], tastes, np.nan),
    }
    return columns


def author_columns(world: World, viewer: Ints, author: Ints, time_ms: Ints) -> Columns:
    """The author table: a row for each of these pairs of a viewer and an author, as of each one's time."""
    return _relationship_columns(world, viewer, author, time_ms) | _account_columns(world, author, time_ms)


def _relationship_columns(world: World, viewer: Ints, author: Ints, time_ms: Ints) -> Columns:
    v, a = world.viewers, world.authors
    day = (time_ms - START_MS) // DAY_MS
    pair, today = (viewer, author), (viewer, author, day)
    # How close the two are: a shared taste, and the rest is life.
    match = np.einsum("ij,ij->i", v.tastes[viewer], world.topic_centres[a.topic[author]])
    closeness = 0.35 * match + 1.1 * _bell(world, "closeness", *pair)
    viewer_age = np.maximum(v.age_days[viewer] + day, 0)
    follow_days = viewer_age * _uniform(world, "follow", *pair) ** 0.7
    kept = np.minimum(follow_days, 90.0)
    seen = np.minimum(a.tweets_per_day[author], 40) * np.minimum(v.visits_per_day[viewer] / 3, 1) * 0.2
    impressions = _count(seen * kept, _uniform(world, "seen", *today))
    warm = np.exp(closeness)

    def acts(name: str, rate: Floats) -> Floats:
        rate = np.minimum(rate * warm, 0.9)
        return np.minimum(_count(impressions * rate, _uniform(world, name, *pair)), impressions)

    likes = acts("likes", 0.01 * np.exp(0.7 * v.generosity[viewer]))
    clicks = acts("clicks", 0.012 * np.exp(0.7 * v.clicking[viewer]))
    retweets = acts("retweets", 0.002 * np.exp(0.7 * v.talking[viewer]))
    replies = acts("replies", 0.002 * np.exp(0.9 * v.talking[viewer]))
    profiles = acts("profiles", np.full(len(viewer), 0.002))
    negatives = np.minimum(_count(impressions * 0.0006 / warm, _uniform(world, "negative", *pair)), impressions)
    # The store has a row for a pair only where something happened in 90 days.
    history = (likes + clicks + retweets + replies + profiles + negatives > 0) & ~v.private[viewer]

    def within(days: int, total: Floats) -> Floats:
        return _part(total, kept, days, _uniform(world, "part", *today))

    likes_7d, likes_28d = within(7, likes), within(28, likes)
    newest, oldest = (
        np.select([likes_7d > 0, likes_28d > 0], [0, 7], 28),
        np.select([likes_7d > 0, likes_28d > 0], [7, 28], 90),
    )
    since_like = newest + (oldest - newest) * _uniform(world, "since-like", *today)
    impressions_28d = within(28, impressions)
    mutual = _uniform(world, "mutual", *pair) < 0.5 / (1 + a.followers[author] / 2_000) * np.minimum(warm, 2)
    back = np.where(mutual, warm, 0.0)
    columns: Columns = {
        "impressions_7d": within(7, impressions),
        "impressions_28d": impressions_28d,
        "likes_7d": likes_7d,
        "likes_28d": likes_28d,
        "likes_90d": likes,
        "retweets_28d": within(28, retweets),
        "replies_7d": within(7, replies),
        "replies_28d": within(28, replies),
        "clicks_7d": within(7, clicks),
        "clicks_28d": within(28, clicks),
        "profile_clicks_28d": within(28, profiles),
        "negative_feedbacks_90d": negatives,
        "like_rate_28d": np.where(impressions_28d >= 5, likes_28d / np.maximum(impressions_28d, 1), np.nan),
        "dwell_mean_28d": np.where(
            impressions_28d >= 3, 3 * np.exp(0.4 * closeness + 0.3 * _bell(world, "dwell", *pair)), np.nan
        ),
        "days_since_like": np.where(likes > 0, np.minimum(since_like, kept), np.nan),
        "likes_back_28d": np.where(mutual, _count(0.8 * back, _uniform(world, "likes-back", *pair)), np.nan),
        "replies_back_28d": np.where(mutual, _count(0.3 * back, _uniform(world, "replies-back", *pair)), np.nan),
        "direct_messages_28d": np.where(mutual, _count(0.2 * back, _uniform(world, "messages", *pair)), np.nan),
        "strength": 1 / (1 + np.exp(1.0 - 1.3 * closeness - 0.4 * _bell(world, "strength", *pair))),
    }
    columns = {name: np.where(history, values, np.nan) for name, values in columns.items()}
    origin = _uniform(world, "origin", *pair)
    columns |= {
        "days_since_follow": follow_days,
        "mutual_follow": mutual,
        "common_follows": np.where(
            np.diff(world.follows_start)[viewer] >= 20,
            _count(0.05 * np.log1p(a.followers[author]) ** 2 * np.sqrt(warm), _uniform(world, "common", *pair)),
            np.nan,
        ),
        # Where a follow came from has been recorded for three years.
        "origin": np.where(follow_days < 1095, np.floor(6 * origin ** (1 + 0.5 * mutual)), np.nan),
    }
    return columns


def _account_columns(world: World, author: Ints, time_ms: Ints) -> Columns:
    a = world.authors
    day = (time_ms - START_MS) // DAY_MS
    age = a.age_days[author] + (time_ms - START_MS) / DAY_MS
    reach = a.tweets_per_day[author] * np.clip(age, 0, 28) * a.followers[author] * 0.3
    rated = (age >= 14) & (reach >= 10_000)
    known = _uniform(world, "author-nightly", author % _SHARDS, day) > 0.03

    def rate(name: str, base: float, score: Floats) -> Floats:
        return np.where(rated & known, base * np.exp(score + 0.25 * _bell(world, name, author, day // 7)), np.nan)

    return {
        "followers": a.followers[author],
        "following": a.following[author],
        "account_age": age,
        "verified": a.verified[author],
        "tweets_7d": _count(a.tweets_per_day[author] * np.clip(age, 0, 7), _uniform(world, "posts", author, day)),
        "author_like_rate_28d": rate("author-like", 0.02, 0.6 * a.quality[author]),
        "author_retweet_rate_28d": rate("author-retweet", 0.005, 0.4 * a.quality[author] + 0.4 * a.lively[author]),
        "author_reply_rate_28d": rate("author-reply", 0.004, 0.7 * a.lively[author]),
        "author_click_rate_28d": rate("author-click", 0.03, 0.3 * a.quality[author] + 0.8 * a.links[author]),
        "follower_growth_7d": np.where(
            known & (age >= 7),
            0.01 * np.exp(0.5 * a.quality[author] + 0.8 * _bell(world, "growth", author, day)),
            np.nan,
        ),
    }


def tweet_columns(world: World, tweets: Tweets, row: Ints, viewer: Ints, time_ms: Ints, since_visit: Floats) -> Columns:
    """The Tweet table: Tweet `row` of `tweets` as sent to `viewer` at `time_ms`.

    Args:
        world: They live in.
        tweets: All Tweets of the days around.
        row: Indices into `tweets`.
        viewer: Index of the viewer, for each of them.
        time_ms: Of the request, for each of them.
        since_visit: Tweets of the same author among the viewer's candidates; NaN on a first visit.
    """
    chosen = Tweets(**{name: getattr(tweets, name)[row] for name in Tweets.__dataclass_fields__})
    columns = _text_columns(world, chosen, time_ms) | _media_columns(world, chosen)
    columns |= _counter_columns(world, chosen, viewer, time_ms)
    columns |= _match_columns(world, chosen, viewer, time_ms)
    columns["author_tweets_since_visit"] = since_visit
    return columns


def _text_columns(world: World, t: Tweets, time_ms: Ints) -> Columns:
    def u(name: str) -> Floats:
        return _uniform(world, name, t.id)

    language = world.authors.language[t.original_author]
    age = (time_ms - t.time_ms) / HOUR_MS
    # Classifiers run after posting, and on languages they know.
    read = (language < _READABLE_LANGUAGES) & (age * 60 > 1 + 8 * u("classified"))
    embedded = (u("embedded") > 0.03) & (language < _READABLE_LANGUAGES + 1) & (age * 60 > 0.5)
    length = np.floor(10 + 130 * u("length") ** 0.6)
    long = length > 100
    columns: Columns = {
        "age": age,
        "posted_hour": (t.time_ms - START_MS) / HOUR_MS % 24,
        "length": length,
        "words": np.maximum(1, np.floor(length / (4.5 + 3 * u("words")))),
        "hashtags": np.minimum(_count(1.2 * u("hashtags") ** 2, u("hashtags-more")), 8),
        "mentions": (t.kind == 1) + _count(0.6 * u("mentions"), u("mentions-more")),
        "emojis": _count(3 * u("emojis") ** 4, u("emojis-more")),
        "line_breaks": long * _count(3 * u("breaks") ** 3, u("breaks-more")),
        "capitals_share": 0.02 + 0.5 * u("capitals") ** 5,
        "readability": np.where(read & (length > 40), 4 + 12 * u("readability"), np.nan),
        "has_question": u("question") < 0.12 + 0.03 * t.lively,
        "is_quote": t.kind == 3,
        "is_reply": t.kind == 1,
        "is_retweet": t.kind == 2,
        "is_thread": (t.kind == 0) & (u("thread") < 0.06),
        "sentiment": np.where(read, np.clip(0.35 * _bell(world, "sentiment", t.id) + 0.1, -1, 1), np.nan),
        "toxicity": np.where(read, np.round(u("toxicity") ** (4 - np.clip(t.lively, -2, 2)), 4), np.nan),
        "spam": np.where(read, np.round(u("spam") ** (6 + 2 * np.clip(t.quality, -2, 2)), 4), np.nan),
        "text_quality": np.where(read, 1 / (1 + np.exp(-0.8 * t.quality - 0.8 * _bell(world, "text", t.id))), np.nan),
        "language": language,
        "text_embedding": np.where(embedded[:, None], t.embedding, np.nan),
    }
    return columns


def _media_columns(world: World, t: Tweets) -> Columns:
    def u(name: str) -> Floats:
        return _uniform(world, name, t.id)

    a, original = world.authors, t.original_author
    image, video = u("image") < a.images[original], u("has-video") < a.videos[original]
    image &= ~video
    link = (u("link") < a.links[original]) & ~video
    domain = np.floor(300 * u("domain") ** 3).astype(np.int64)
    retweet = t.kind == 2
    return {
        "has_image": image,
        "has_video": video,
        "has_link_card": link,
        "has_poll": ~image & ~video & ~link & (u("poll") < 0.02),
        "images": np.where(image, 1 + np.floor(4 * u("images") ** 3), np.nan),
        "image_aspect_ratio": np.where(image, np.exp(0.4 * _bell(world, "aspect", t.id)), np.nan),
        "video_length": np.where(video, np.minimum(25 * np.exp(1.0 * _bell(world, "video", t.id)), 140), np.nan),
        "video_completion_rate": np.where(
            video & (t.reach > 500), 1 / (1 + np.exp(-0.7 * t.quality - 0.5 * _bell(world, "completed", t.id))), np.nan
        ),
        "link_domain_tweets_7d": np.where(link, np.floor(3e5 / (1.0 + domain) ** 1.5), np.nan),
        "link_domain_click_rate_28d": np.where(
            link & (domain < 200), 0.05 * np.exp(0.8 * _bell(world, "domain", domain)), np.nan
        ),
        "original_age": np.where(retweet, t.original_hours, np.nan),
        "original_author_followers": np.where(retweet, a.followers[original], np.nan),
    }


def _counter_columns(world: World, t: Tweets, viewer: Ints, time_ms: Ints) -> Columns:
    a = world.authors
    age = (time_ms - t.time_ms) / HOUR_MS
    hour = time_ms // HOUR_MS
    shard = t.author % _SHARDS
    lag = 0.25 * np.exp(1.0 * _bell(world, "lag", shard, hour))
    rates = {
        "likes": 0.02 * np.exp(0.7 * t.quality),
        "retweets": 0.005 * np.exp(0.5 * t.quality + 0.5 * t.lively),
        "replies": 0.004 * np.exp(0.8 * t.lively),
        "quotes": 0.001 * np.exp(0.6 * t.lively),
        "clicks": 0.03 * np.exp(0.5 * t.quality + 0.8 * a.links[t.original_author]),
        "profile_clicks": 0.004 * np.exp(0.5 * _bell(world, "profiles", t.id)),
        "negative_feedbacks": 0.0006 * np.exp(0.6 * t.lively - 0.6 * t.quality),
    }
    rates = {name: np.minimum(rate, 0.4) for name, rate in rates.items()} | {"impressions": np.ones(len(age))}

    def so_far(name: str, hours_ago: float) -> Floats:
        since = np.maximum(age + t.original_hours - hours_ago, 0)
        return _count(t.reach * rates[name] * since / (since + t.reach_hours), _uniform(world, name, t.id))

    total = {name: so_far(name, 0) for name in rates}
    # The store opens a row at the 20th impression, lags and fails at times; it keeps short windows for half a day.
    opened = (age > lag) & (total["impressions"] >= 20)
    totals = opened & (_uniform(world, "totals", shard, hour) > 0.08)
    windows = opened & (age < 12) & (_uniform(world, "windows", shard, hour) > 0.15)
    columns: Columns = {name: np.where(totals, values, np.nan) for name, values in total.items()}
    in_hour = {
        name: total[name] - so_far(name, 1) for name in ("impressions", "likes", "retweets", "replies", "clicks")
    }
    columns |= {f"{name}_1h": np.where(windows, values, np.nan) for name, values in in_hour.items()}
    for name in ("impressions", "likes", "retweets"):
        columns[f"{name}_15m"] = np.where(windows, total[name] - so_far(name, 0.25), np.nan)
    rated = totals & (total["impressions"] >= 100)
    named = {"likes": "like", "retweets": "retweet", "replies": "reply", "clicks": "click"}
    for name, act in (named | {"negative_feedbacks": "negative_feedback"}).items():
        columns[f"{act}_rate"] = np.where(rated, total[name] / np.maximum(total["impressions"], 1), np.nan)
    columns["likes_share_1h"] = np.where(
        windows & totals & (total["likes"] > 0), in_hour["likes"] / np.maximum(total["likes"], 1), np.nan
    )
    # Of the people whom the viewer follows: some share of those who saw it.
    circle = np.diff(world.follows_start)[viewer]
    for name in ("likes", "retweets", "replies"):
        near = circle * (total[name] / (t.reach + 300)) * np.exp(0.8 * _bell(world, f"near-{name}", viewer, t.id))
        near = np.minimum(
            _count(near, _uniform(world, f"near-{name}-more", viewer, t.id)), np.minimum(circle, total[name])
        )
        columns[f"{name}_by_followed"] = np.where(totals & (circle >= 20), near, np.nan)
    columns["likes_by_verified"] = np.where(
        totals & rated, np.floor(total["likes"] * 0.02 * _uniform(world, "verified", t.id)), np.nan
    )
    return columns


def _match_columns(world: World, t: Tweets, viewer: Ints, time_ms: Ints) -> Columns:
    v = world.viewers
    day = (time_ms - START_MS) // DAY_MS
    confidence = _uniform(world, "confidence", t.id) ** 0.4
    labelled = (confidence > 0.5) & (world.authors.language[t.original_author] < _READABLE_LANGUAGES)
    experienced = (v.age_days[viewer] + day >= 7) & ~v.private[viewer]
    tastes, centre = v.tastes[viewer], world.topic_centres[t.topic]
    match = np.einsum("ij,ij->i", tastes, centre)
    match /= np.linalg.norm(tastes, axis=1) * np.linalg.norm(centre, axis=1)
    topic_likes = v.visits_per_day[viewer] * 28 * np.exp(0.9 * v.generosity[viewer] + 1.5 * match - 2.0)
    languages = world.authors.language[t.original_author], v.language[viewer]
    posted_day = (t.time_ms - START_MS) // DAY_MS
    return {
        "topic": np.where(labelled, t.topic, np.nan),
        "topic_confidence": np.where(labelled, confidence, np.nan),
        "topic_match": np.where(labelled & experienced, match, np.nan),
        "topic_trend": np.where(labelled, world.topic_trends[posted_day + 3, t.topic], np.nan),
        "topic_likes_28d": np.where(
            labelled & experienced, _count(topic_likes, _uniform(world, "topic-likes", viewer, t.topic, day)), np.nan
        ),
        "language_match": languages[0] == languages[1],
        "original_author_followed": np.where(
            t.kind == 2, _uniform(world, "followed", viewer, t.original_author) < 0.3, np.nan
        ),
    }


def _uniform(world: World, name: str, *keys: Ints) -> Floats:
    """Uniform numbers in [0, 1) that are the same wherever the name and the keys are."""
    return np.asarray((_hash(world, name, keys) >> np.uint64(11)) * 2.0**-53)


def _bell(world: World, name: str, *keys: Ints) -> Floats:
    """Bell-shaped numbers of mean 0 and variance 1 within +-3.5: four uniform ones of 16 bits added."""
    pieces = _hash(world, name, keys).view(np.uint16).reshape(-1, 4)
    return np.asarray((pieces.sum(axis=1, dtype=np.int64) / 65_536 - 2) * np.sqrt(3))


def _hash(world: World, name: str, keys: tuple[Ints, ...]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014) over the seed, the name and each key in turn."""
    state = np.uint64((world.seed * 0x9E3779B97F4A7C15 + zlib.crc32(name.encode())) & _MASK)
    mixed = np.full(len(keys[0]), state)
    for key in keys:
        mixed = (mixed ^ key.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def _count(mean: Floats, uniform: Floats) -> Floats:
    """A whole number near `mean`, right on average; rises with it."""
    return np.floor(mean + uniform)


def _part(total: Floats, kept_days: Floats, days: int, uniform: Floats) -> Floats:
    """How much of what was counted over `kept_days` fell into the last `days`; longer windows hold shorter ones."""
    share = np.minimum(days / np.maximum(kept_days, 1), 1.0)
    # The exponent is below 2 and above 1/2: some have grown livelier, some quieter.
    return np.minimum(np.floor(total * share ** (0.5 + 1.5 * uniform) + uniform), total)
