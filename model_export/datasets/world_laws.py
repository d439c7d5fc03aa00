"""How viewers of the simulated world engage: three laws, each a fixed function of what a request carries.

A law turns the tables of a request (after values went missing) into terms, the same for all heads; a head's logit is
its intercept plus a weighted sum of the terms. Nature adds independent Gaussian noise to it that no request carries:

    true = sigmoid(logit + noise)        reachable = E[true | what the request carries]

A seed never changes a law. Terms are scaled to a spread of about 1, and what is absent counts as average unless a term
says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model_export.datasets.world_schema import SCHEMA
from service.schema import Group

Values = NDArray[np.float32]
Tables = dict[Group, Values]

_QUADRATURE_NODES, _QUADRATURE_WEIGHTS = np.polynomial.hermite.hermgauss(12)

# Noise of each head's logit.
NOISE = np.array([0.35, 0.45, 0.45, 0.35, 0.5, 0.5])


def engagement(law: str, tables: Tables, rng: np.random.Generator) -> tuple[Values, Values]:
    """True and reachable probabilities of a law of LAWS, float32 [n, heads] each.

    Args:
        law: Its name.
        tables: All three float32 [n, layout width], row i of each belonging to impression i.
        rng: Draws the noise.
    """
    logits = law_logits(law, tables)
    true = _sigmoid(logits + NOISE * rng.standard_normal(logits.shape))
    # Gauss-Hermite: E f(z) = sum_k w_k f(sqrt(2) sigma x_k) / sqrt(pi) for z ~ N(0, sigma^2).
    reachable = np.zeros_like(logits)
    for node, weight in zip(_QUADRATURE_NODES, _QUADRATURE_WEIGHTS, strict=True):
        reachable += weight / np.sqrt(np.pi) * _sigmoid(logits + np.sqrt(2) * NOISE * node)
    return true.astype(np.float32), reachable.astype(np.float32)


def law_logits(law: str, tables: Tables) -> NDArray[np.float64]:
    """Logits before noise, float64 [n, heads]."""
    terms, weights, intercepts = _LAWS[law]
    return terms(_Columns(tables)) @ weights + intercepts


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)))


# "group.feature" -> its group, its first column there and how many it has.
_PLACES: dict[str, tuple[Group, int, int]] = {
    f"{f.group}.{f.name}": (f.group, SCHEMA.layouts[f.group].offsets[f.name], f.width) for f in SCHEMA.features
}


class _Columns:
    """Columns of the tables by "group.feature"."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def __getitem__(self, name: str) -> Values:
        group, start, width = _PLACES[name]
        values = self._tables[group][:, start : start + width]
        return values[:, 0] if width == 1 else values

    def score(self, name: str, absent: float = 0.0) -> Values:
        """A continuous column as a standard score within +-3, on the scale that _SCALES gives."""
        offset, centre, spread = _SCALES[name]
        values = self[name] if offset is None else np.log(self[name] + np.float32(offset))
        scores = np.clip((values - centre) / spread, -3, 3)
        return np.where(np.isnan(scores), np.float32(absent), scores).astype(np.float32)

    def holds(self, name: str) -> Values:
        """A binary column as 0 or 1; absent is 0."""
        return (self[name] > 0).astype(np.float32)


# Standard scores: (x - centre) / spread, or (log(x + offset) - centre) / spread where an offset stands.
_SCALES: dict[str, tuple[float | None, float, float]] = {
    "tweet.like_rate": (0.005, -3.56, 0.56),
    "tweet.click_rate": (0.01, -2.95, 0.43),
    "tweet.reply_rate": (0.002, -5.09, 0.63),
    "tweet.retweet_rate": (0.002, -4.89, 0.60),
    "tweet.likes_1h": (1, 1.56, 2.22),
    "tweet.age": (0.1, 1.22, 1.44),
    "tweet.likes_by_followed": (1, 0.86, 0.85),
    "tweet.topic_likes_28d": (1, 2.5, 1.27),
    "tweet.text_quality": (None, 0.5, 0.23),
    "tweet.topic_match": (None, 0.17, 0.46),
    "tweet.toxicity": (None, 0.21, 0.27),
    "tweet.topic_trend": (None, 1.5, 0.73),
    "author.likes_90d": (1, 0.93, 0.85),
    "author.clicks_28d": (1, 0.44, 0.62),
    "author.strength": (None, 0.45, 0.27),
    "author.followers": (1, 6.86, 2.53),
    "author.author_like_rate_28d": (0.001, -3.83, 0.59),
    "author.author_click_rate_28d": (0.001, -3.21, 0.44),
    "author.author_reply_rate_28d": (0.001, -5.25, 0.57),
    "author.common_follows": (1, 1.28, 0.66),
    "viewer.like_rate_28d": (0.003, -3.54, 0.89),
    "viewer.click_rate_28d": (0.003, -3.14, 0.74),
    "viewer.replies_28d": (1, 2.28, 1.26),
    "viewer.retweets_28d": (1, 2.27, 1.26),
    "viewer.sessions_28d": (1, 3.96, 0.97),
    "viewer.hours_since_visit": (0.5, 2.26, 1.18),
    "viewer.video_dwell_share_28d": (None, 0.33, 0.29),
}

# Rules of the law `steps`: conditions that must all hold, and what each head's logit gains then, in the order of the
# heads: like, retweet, reply, click, profile_click, negative_feedback. A condition is (feature, low, high): present
# and low <= value < high; with None for both it holds where the value is absent.
_INF = float("inf")
_RULES: tuple[tuple[tuple[tuple[str, float | None, float | None], ...], tuple[float, ...]], ...] = (
    ((("author.likes_90d", 2, _INF),), (0.7, 0.6, 0.4, 0.5, 0.2, -0.4)),
    ((("author.likes_90d", 8, _INF), ("tweet.age", 0, 6)), (0.9, 0.9, 0.7, 0.6, 0.4, -0.4)),
    ((("author.strength", None, None),), (-0.7, -0.7, -0.8, -0.5, 0.5, 0.5)),
    ((("author.strength", 0.6, _INF), ("tweet.is_reply", 0, 1)), (0.6, 0.5, 1.0, 0.4, -0.2, -0.3)),
    ((("viewer.like_rate_28d", 0.05, _INF),), (1.2, 0.8, 0.5, 0.3, 0.3, 0.1)),
    ((("viewer.like_rate_28d", 0.02, 0.05),), (0.5, 0.3, 0.2, 0.1, 0.1, 0.0)),
    ((("viewer.like_rate_28d", 0.05, _INF), ("tweet.likes_by_followed", 3, _INF)), (0.9, 0.8, 0.3, 0.4, 0.2, 0.0)),
    ((("viewer.click_rate_28d", 0.06, _INF),), (0.2, 0.1, 0.2, 1.0, 0.8, 0.1)),
    ((("viewer.click_rate_28d", 0.06, _INF), ("tweet.has_link_card", 1, _INF)), (0.1, 0.4, 0.2, 1.3, 0.2, 0.1)),
    ((("viewer.click_rate_28d", 0, 0.06), ("tweet.has_video", 1, _INF)), (0.4, 0.5, 0.1, 1.0, 0.2, 0.1)),
    ((("viewer.replies_28d", 20, _INF),), (0.2, 0.7, 1.1, 0.1, 0.3, 0.2)),
    ((("viewer.replies_28d", 20, _INF), ("tweet.reply_rate", 0.006, _INF)), (0.1, 0.4, 1.2, 0.3, 0.2, 0.3)),
    ((("tweet.like_rate", 0.04, _INF), ("tweet.age", 0, 12)), (1.0, 0.9, 0.3, 0.5, 0.3, -0.3)),
    ((("tweet.like_rate", 0, 0.012),), (-0.7, -0.6, -0.1, -0.4, -0.1, 0.4)),
    ((("tweet.likes_1h", 20, _INF), ("tweet.age", 0, 2)), (0.9, 1.3, 0.6, 0.7, 0.5, -0.2)),
    ((("tweet.likes_1h", None, None), ("author.author_like_rate_28d", 0.03, _INF)), (0.8, 0.7, 0.4, 0.5, 0.3, -0.2)),
    ((("tweet.topic_match", 0.5, _INF),), (0.6, 0.6, 0.5, 0.5, 0.3, -0.4)),
    ((("tweet.topic_match", 0.5, _INF), ("author.likes_90d", 0, 2)), (0.6, 0.4, 0.2, 0.7, 1.2, -0.3)),
    ((("tweet.topic_match", -1, -0.3), ("author.strength", 0, 0.3)), (-1.1, -1.0, -0.8, -0.9, -0.4, 1.2)),
    ((("tweet.age", 24, _INF),), (-0.6, -0.8, -1.0, -0.3, -0.2, 0.1)),
    ((("tweet.toxicity", 0.6, _INF), ("author.strength", None, None)), (-0.6, 0.2, 0.8, 0.2, 0.3, 1.3)),
    (
        (("viewer.hours_since_visit", 0, 3), ("tweet.author_tweets_since_visit", 6, _INF)),
        (-1.2, -1.0, -0.8, -0.8, -0.8, 0.8),
    ),
    ((("viewer.hours_since_visit", 12, _INF), ("tweet.retweets", 100, _INF)), (0.6, 1.0, 0.3, 0.8, 0.6, 0.0)),
    ((("author.mutual_follow", 1, _INF), ("author.followers", 0, 1000)), (0.8, 0.1, 1.4, 0.3, 0.4, -0.6)),
    ((("author.followers", 100_000, _INF), ("tweet.likes_by_followed", 0, 1)), (-0.7, -0.4, -0.6, -0.2, 0.3, 0.4)),
    ((("tweet.language_match", 0, 1),), (-0.6, -0.7, -1.2, -0.5, -0.4, 0.4)),
    ((("tweet.has_image", 1, _INF), ("tweet.text_quality", 0.6, _INF)), (0.6, 0.5, 0.0, 0.4, 0.3, -0.2)),
)


def _steps(x: _Columns) -> NDArray[np.float64]:
    terms = np.ones((len(x["tweet.age"]), len(_RULES)))
    for j, (conditions, _gains) in enumerate(_RULES):
        for name, low, high in conditions:
            values = x[name]
            terms[:, j] *= np.isnan(values) if low is None or high is None else (values >= low) & (values < high)
    return terms


def _heat(x: _Columns) -> Values:
    """How well the Tweet does: its own rate where it is known, the author's where that is all."""
    own = x["tweet.like_rate"]
    rate = np.where(np.isnan(own), 0.7 * x.score("author.author_like_rate_28d"), x.score("tweet.like_rate"))
    return np.asarray(0.6 * rate + 0.4 * x.score("tweet.likes_1h") + 0.5 * x.score("tweet.text_quality"), np.float32)


def _close(x: _Columns) -> Values:
    """How close the viewer is to the author."""
    return np.asarray(0.7 * x.score("author.strength", -0.9) + 0.5 * x.score("author.likes_90d", -0.6), np.float32)


def _smooth(x: _Columns) -> NDArray[np.float64]:
    heat, close = _heat(x), _close(x)
    fresh = -x.score("tweet.age")
    habit, clicking = x.score("viewer.like_rate_28d"), x.score("viewer.click_rate_28d")
    talking = 0.6 * x.score("viewer.replies_28d") + 0.4 * x.score("viewer.retweets_28d")
    stirring = 0.6 * x.score("tweet.reply_rate") + 0.4 * x.score("author.author_reply_rate_28d")
    stirring = stirring + 0.3 * x.score("tweet.toxicity")
    interest = 0.7 * x.score("tweet.topic_match") + 0.4 * x.score("tweet.topic_likes_28d")
    away = x.score("viewer.hours_since_visit")
    link = x.holds("tweet.has_link_card") + x.holds("tweet.has_video") * (1 + x.score("viewer.video_dwell_share_28d"))
    promise = 0.6 * x.score("tweet.click_rate") + 0.4 * x.score("author.author_click_rate_28d") + 0.5 * link
    return np.stack(
        [
            heat, close, fresh, habit, clicking, talking, stirring, interest, promise,
            close * fresh, heat * away, habit * heat, interest * close, clicking * promise, talking * stirring,
            np.log1p(np.exp(close + interest)),
        ],
        axis=1,
    ).astype(np.float64)  # fmt: skip


_SMOOTH_WEIGHTS = np.array(
    [  # like, retweet, reply, click, profile_click, negative_feedback
        [0.40, 0.40, 0.10, 0.20, 0.10, -0.20],  # heat
        [0.30, 0.20, 0.40, 0.20, -0.10, -0.30],  # close
        [0.25, 0.30, 0.40, 0.15, 0.10, 0.00],  # fresh
        [0.60, 0.30, 0.20, 0.10, 0.10, 0.00],  # habit
        [0.05, 0.05, 0.05, 0.50, 0.40, 0.00],  # clicking
        [0.05, 0.50, 0.60, 0.05, 0.20, 0.10],  # talking
        [0.00, 0.20, 0.40, 0.10, 0.10, 0.40],  # stirring
        [0.30, 0.30, 0.20, 0.30, 0.30, -0.40],  # interest
        [0.00, 0.10, 0.05, 0.50, 0.30, 0.00],  # promise
        [0.40, 0.30, 0.40, 0.20, -0.20, 0.00],  # close * fresh
        [0.30, 0.40, 0.10, 0.30, 0.20, 0.00],  # heat * away
        [0.40, 0.30, 0.10, 0.10, 0.10, 0.00],  # habit * heat
        [0.35, 0.25, 0.25, 0.25, -0.30, -0.30],  # interest * close
        [0.05, 0.10, 0.05, 0.40, 0.30, 0.00],  # clicking * promise
        [0.05, 0.30, 0.45, 0.05, 0.10, 0.30],  # talking * stirring
        [0.30, 0.20, 0.20, 0.20, 0.30, -0.30],  # close and interest, whichever there is more of
    ]
)


def _tastes(x: _Columns) -> NDArray[np.float64]:
    heat, close = _heat(x), _close(x)
    habit, clicking = x.score("viewer.like_rate_28d"), x.score("viewer.click_rate_28d")
    talking = 0.6 * x.score("viewer.replies_28d") + 0.4 * x.score("viewer.retweets_28d")
    match = x.score("tweet.topic_match")
    fresh = -x.score("tweet.age")
    # What the text has to do with what the viewer lately liked.
    dot = np.einsum("ij,ij->i", x["tweet.text_embedding"], x["viewer.recent_tastes"]) / 1.35
    taste = np.where(np.isnan(dot), 0.0, np.clip(dot, -3, 3))
    return np.stack(
        [
            heat, close, fresh, habit, clicking, talking, match,
            taste, taste * close, taste * match, taste * habit, match * close, clicking * match, talking * close,
        ],
        axis=1,
    ).astype(np.float64)  # fmt: skip


_TASTES_WEIGHTS = np.array(
    [  # like, retweet, reply, click, profile_click, negative_feedback
        [0.35, 0.35, 0.10, 0.20, 0.10, -0.20],  # heat
        [0.35, 0.30, 0.50, 0.20, -0.10, -0.30],  # close
        [0.10, 0.20, 0.30, 0.10, 0.10, 0.00],  # fresh
        [0.60, 0.30, 0.20, 0.10, 0.10, 0.00],  # habit
        [0.05, 0.05, 0.05, 0.60, 0.40, 0.00],  # clicking
        [0.05, 0.50, 0.60, 0.05, 0.20, 0.10],  # talking
        [0.25, 0.25, 0.15, 0.25, 0.20, -0.30],  # match
        [0.70, 0.65, 0.45, 0.70, 0.55, -0.60],  # taste
        [0.30, 0.25, 0.25, 0.20, -0.20, -0.20],  # taste * close
        [0.20, 0.20, 0.10, 0.20, 0.15, -0.20],  # taste * match
        [0.15, 0.10, 0.05, 0.05, 0.05, 0.00],  # taste * habit
        [0.25, 0.20, 0.20, 0.20, -0.20, -0.20],  # match * close
        [0.00, 0.05, 0.05, 0.25, 0.20, 0.00],  # clicking * match
        [0.05, 0.20, 0.35, 0.05, 0.10, 0.00],  # talking * close
    ]
)

# Intercepts put the heads at natural rates, averaged over seeds: likes 3.5 %, retweets 0.9 %, replies 0.8 %, clicks
# 5 %, profile clicks 0.6 %, negative feedback 0.04 %.
_LAWS: dict[str, tuple[Callable[[_Columns], NDArray[np.float64]], NDArray[np.float64], NDArray[np.float64]]] = {
    "steps": (
        _steps,
        np.array([gains for _conditions, gains in _RULES]),
        np.array([-4.82, -5.91, -6.33, -3.98, -6.12, -8.53]),
    ),
    "smooth": (_smooth, _SMOOTH_WEIGHTS, np.array([-4.21, -5.71, -5.99, -3.62, -5.82, -8.03])),
    "tastes": (_tastes, _TASTES_WEIGHTS, np.array([-4.1, -5.93, -6.09, -3.57, -5.69, -8.12])),
}
LAWS = tuple(_LAWS)
