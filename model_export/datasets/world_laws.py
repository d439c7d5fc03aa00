"""How viewers of the simulated world engage: three laws, each a fixed function of what a request carries.

A law turns the tables of a request (after values went missing) into terms, the same for all heads; a head's logit is
its intercept plus a weighted sum of the terms. Nature adds independent Gaussian noise to it that no request carries:

    true = sigmoid(logit + noise)        reachable = E[true | what the request carries]

A seed never changes a law. Terms are scaled to a spread of about 1, and what is absent counts as average unless a term
says otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_export.datasets.world_schema import SCHEMA
from service.schema import Group

Values = NDArray[np.float32]
Tables = dict[Group, Values]

_QUADRATURE_NODES, _QUADRATURE_WEIGHTS = np.polynomial.hermite.hermgauss(12)

_LOGIT_MAX = 1.0  # nobody engages for sure: odds saturate, 1 / odds = 1 / (odds of the sum) + 1 / (highest odds)

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
    columns = _Columns(tables)
    if law == "steps":
        terms, gains = _rules(columns), [gains for _rule, gains in _RULES]
    else:
        products = {"smooth": _SMOOTH, "tastes": _TASTES}[law]
        terms, gains = _products(columns, products), [gains for _term, gains in products]
    unlimited = terms @ np.array(gains) + np.array(_INTERCEPTS[law])
    return np.asarray(-np.logaddexp(-unlimited, -_LOGIT_MAX))


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

    def score(self, name: str, absent: float) -> Values:
        """A column as a standard score within +-3, on the scale that _SCALES gives; `absent` where it is absent."""
        offset, centre, spread = _SCALES[name]
        values = self[name] if offset is None else np.log(self[name] + np.float32(offset))
        scores = np.clip((values - centre) / spread, -3, 3)
        return np.where(np.isnan(scores), np.float32(absent), scores).astype(np.float32)


# Standard scores: (x - centre) / spread, or (log(x + offset) - centre) / spread where an offset stands.
_SCALES: dict[str, tuple[float | None, float, float]] = {
    "tweet.age": (0.1, 1.3, 1.44),
    "tweet.author_tweets_since_visit": (1, 1.6, 0.85),
    "tweet.like_rate": (0.005, -3.55, 0.57),
    "tweet.retweet_rate": (0.002, -4.9, 0.6),
    "tweet.reply_rate": (0.002, -5.1, 0.63),
    "tweet.click_rate": (0.01, -2.95, 0.42),
    "tweet.likes_1h": (1, 1.4, 2.0),
    "tweet.replies_1h": (1, 0.75, 1.5),
    "tweet.likes_by_followed": (1, 0.84, 0.84),
    "tweet.text_quality": (None, 0.51, 0.23),
    "tweet.toxicity": (0.02, -2.3, 1.35),
    "tweet.spam": (0.02, -2.66, 1.33),
    "tweet.link_domain_click_rate_28d": (0.01, -2.7, 0.69),
    "tweet.video_completion_rate": (None, 0.54, 0.18),
    "tweet.topic_match": (None, 0.18, 0.46),
    "tweet.topic_likes_28d": (1, 2.5, 1.26),
    "tweet.topic_trend": (None, 1.3, 0.6),
    "author.strength": (None, 0.46, 0.28),
    "author.likes_90d": (1, 0.9, 0.83),
    "author.clicks_28d": (1, 0.43, 0.6),
    "author.dwell_mean_28d": (1, 1.57, 0.43),
    "author.days_since_like": (1, 3.2, 1.0),
    "author.common_follows": (1, 1.27, 0.65),
    "author.author_like_rate_28d": (0.001, -3.84, 0.63),
    "author.author_reply_rate_28d": (0.001, -5.26, 0.58),
    "author.author_click_rate_28d": (0.001, -3.25, 0.42),
    "author.follower_growth_7d": (0.001, -4.47, 0.83),
    "viewer.like_rate_28d": (0.003, -3.52, 0.85),
    "viewer.likes_7d": (1, 2.2, 1.2),
    "viewer.retweets_28d": (1, 2.24, 1.2),
    "viewer.replies_28d": (1, 2.24, 1.2),
    "viewer.click_rate_28d": (0.003, -3.12, 0.73),
    "viewer.clicks_28d": (1, 4.1, 1.26),
    "viewer.session_length_28d": (1, 5.27, 0.7),
    "viewer.notifications_opened_7d": (1, 1.93, 1.02),
    "viewer.hours_since_visit": (0.5, 2.3, 1.2),
}

# What stands behind an engagement: (feature, weight, score where it is absent). Sums have a spread of about 1.
_LATENTS: dict[str, tuple[tuple[str, float, float], ...]] = {
    "heat": (
        ("tweet.like_rate", 0.5, 0.0),
        ("tweet.retweet_rate", 0.25, 0.0),
        ("tweet.likes_1h", 0.35, 0.0),
        ("tweet.likes_by_followed", 0.25, 0.0),
        ("tweet.text_quality", 0.35, 0.0),
        ("tweet.spam", -0.25, 0.0),
        ("author.author_like_rate_28d", 0.4, 0.0),
        ("author.follower_growth_7d", 0.25, 0.0),
    ),
    "closeness": (
        ("author.strength", 0.45, -0.7),
        ("author.likes_90d", 0.3, -0.5),
        ("author.clicks_28d", 0.25, -0.4),
        ("author.dwell_mean_28d", 0.25, -0.2),
        ("author.days_since_like", -0.25, 0.3),
        ("author.common_follows", 0.3, 0.0),
    ),
    "freshness": (("tweet.age", -0.8, 0.0), ("tweet.author_tweets_since_visit", -0.4, 0.0)),
    "generosity": (
        ("viewer.like_rate_28d", 0.7, 0.0),
        ("viewer.likes_7d", 0.3, 0.0),
        ("viewer.retweets_28d", 0.25, 0.0),
        ("viewer.notifications_opened_7d", 0.25, 0.0),
    ),
    "curiosity": (
        ("viewer.click_rate_28d", 0.75, 0.0),
        ("viewer.clicks_28d", 0.35, 0.0),
        ("viewer.session_length_28d", 0.55, 0.0),
    ),
    "sociability": (
        ("viewer.replies_28d", 0.6, 0.0),
        ("viewer.retweets_28d", 0.4, 0.0),
        ("viewer.notifications_opened_7d", 0.3, 0.0),
    ),
    "stir": (
        ("tweet.reply_rate", 0.75, 0.0),
        ("tweet.replies_1h", 0.45, 0.0),
        ("tweet.toxicity", 0.55, 0.0),
        ("author.author_reply_rate_28d", 0.65, 0.0),
    ),
    "interest": (
        ("tweet.topic_match", 0.95, 0.0),
        ("tweet.topic_likes_28d", 0.5, 0.0),
        ("tweet.topic_trend", 0.4, 0.0),
    ),
    "promise": (
        ("tweet.click_rate", 0.7, 0.0),
        ("author.author_click_rate_28d", 0.6, 0.0),
        ("tweet.link_domain_click_rate_28d", 0.8, 0.0),
        ("tweet.video_completion_rate", 0.8, 0.0),
        ("tweet.text_quality", 0.4, 0.0),
    ),
    "away": (("viewer.hours_since_visit", 1.0, 0.5),),
}

# Rules of the law `steps`: conditions that must all hold, and what each head's logit gains then, in the order of the
# heads: like, retweet, reply, click, profile_click, negative_feedback. What is absent is neither below nor above.
_RULES: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("author.likes_90d >= 2", (0.7, 0.6, 0.4, 0.6, 0.5, -0.7)),
    ("author.likes_90d >= 8 and tweet.age < 6", (0.9, 0.9, 0.7, 0.8, 0.9, -0.7)),
    ("author.strength absent", (-0.7, -0.7, -0.8, -0.6, 1.2, 1.0)),
    ("author.strength >= 0.6 and tweet.is_reply < 1", (0.6, 0.5, 1.0, 0.5, -0.5, -0.6)),
    ("viewer.like_rate_28d >= 0.05", (1.2, 0.8, 0.5, 0.4, 0.7, 0.1)),
    ("viewer.like_rate_28d >= 0.02 and viewer.like_rate_28d < 0.05", (0.5, 0.3, 0.2, 0.1, 0.2, 0.0)),
    ("viewer.like_rate_28d >= 0.05 and tweet.likes_by_followed >= 3", (0.9, 0.8, 0.3, 0.5, 0.5, 0.0)),
    ("viewer.click_rate_28d >= 0.06", (0.2, 0.1, 0.2, 1.3, 1.8, 0.1)),
    ("viewer.click_rate_28d >= 0.06 and tweet.has_link_card >= 1", (0.1, 0.4, 0.2, 1.6, 0.5, 0.1)),
    ("viewer.click_rate_28d < 0.06 and tweet.has_video >= 1", (0.4, 0.5, 0.1, 1.3, 0.5, 0.1)),
    ("viewer.replies_28d >= 20", (0.2, 0.7, 1.1, 0.1, 0.7, 0.4)),
    ("viewer.replies_28d >= 20 and tweet.reply_rate >= 0.006", (0.1, 0.4, 1.2, 0.4, 0.5, 0.6)),
    ("tweet.like_rate >= 0.04 and tweet.age < 12", (1.0, 0.9, 0.3, 0.6, 0.7, -0.6)),
    ("tweet.like_rate < 0.012", (-0.7, -0.6, -0.1, -0.5, -0.2, 0.7)),
    ("tweet.likes_1h >= 20 and tweet.age < 2", (0.9, 1.3, 0.6, 0.9, 1.2, -0.4)),
    ("tweet.likes_1h absent and author.author_like_rate_28d >= 0.03", (0.8, 0.7, 0.4, 0.6, 0.7, -0.4)),
    ("tweet.topic_match >= 0.5", (0.6, 0.6, 0.5, 0.6, 0.7, -0.7)),
    ("tweet.topic_match >= 0.5 and author.likes_90d < 2", (0.6, 0.4, 0.2, 0.9, 2.8, -0.6)),
    ("tweet.topic_match < -0.3 and author.strength < 0.3", (-1.1, -1.0, -0.8, -1.1, -0.9, 2.2)),
    ("tweet.age >= 24", (-0.6, -0.8, -1.0, -0.4, -0.5, 0.1)),
    ("tweet.toxicity >= 0.6 and author.strength absent", (-0.6, 0.2, 0.8, 0.3, 0.7, 2.4)),
    ("viewer.hours_since_visit < 3 and tweet.author_tweets_since_visit >= 6", (-1.2, -1.0, -0.8, -1.0, -1.8, 1.4)),
    ("viewer.hours_since_visit >= 12 and tweet.retweets >= 100", (0.6, 1.0, 0.3, 1.0, 1.4, 0.0)),
    ("author.mutual_follow >= 1 and author.followers < 1000", (0.8, 0.1, 1.4, 0.4, 0.9, -1.1)),
    ("author.followers >= 100_000 and tweet.likes_by_followed < 1", (-0.7, -0.4, -0.6, -0.2, 0.7, 0.7)),
    ("tweet.language_match < 1", (-0.6, -0.7, -1.2, -0.6, -0.9, 0.7)),
    ("tweet.has_image >= 1 and tweet.text_quality >= 0.6", (0.6, 0.5, 0.0, 0.5, 0.7, -0.4)),
)


def _rules(x: _Columns) -> NDArray[np.float64]:
    return np.stack([np.all([_holds(x, c) for c in rule.split(" and ")], axis=0) for rule, _gains in _RULES], axis=1)


def _holds(x: _Columns, condition: str) -> NDArray[np.bool_]:
    name, relation, *value = condition.split()
    if relation == "absent":
        return np.isnan(x[name])
    compare = {">=": np.greater_equal, "<": np.less}[relation]
    return np.asarray(compare(x[name], np.float32(value[0])))


def _latent(x: _Columns, name: str) -> Values:
    total = np.zeros(len(x["tweet.age"]), np.float32)
    for feature, weight, absent in _LATENTS[name]:
        total += np.float32(weight) * x.score(feature, absent)
    return total


def _taste(x: _Columns) -> Values:
    """How near the text lies to what the viewer lately liked: their product in the space of embeddings."""
    products = np.einsum("ij,ij->i", x["tweet.text_embedding"], x["viewer.recent_tastes"]) / np.float32(_TASTE_SPREAD)
    return np.where(np.isnan(products), np.float32(0), np.clip(products, -3, 3))


_TASTE_SPREAD = 1.5

# Terms of the laws `smooth` and `tastes`: products of latents, and what a head's logit gains by each, in the order of
# the heads: like, retweet, reply, click, profile_click, negative_feedback.
_Products = tuple[tuple[str, tuple[float, ...]], ...]

_SMOOTH: _Products = (
    ("heat", (0.35, 0.30, 0.10, 0.15, 0.10, -0.20)),
    ("closeness", (0.30, 0.20, 0.30, 0.15, -0.30, -0.30)),
    ("freshness", (0.20, 0.20, 0.25, 0.15, 0.10, 0.00)),
    ("generosity", (0.45, 0.25, 0.10, 0.10, 0.10, 0.00)),
    ("curiosity", (0.00, 0.00, 0.00, 0.50, 0.55, 0.00)),
    ("sociability", (0.00, 0.35, 0.45, 0.00, 0.25, 0.10)),
    ("stir", (0.00, 0.15, 0.25, 0.05, 0.00, 0.40)),
    ("interest", (0.30, 0.30, 0.20, 0.30, 0.35, -0.40)),
    ("promise", (0.00, 0.10, 0.00, 0.45, 0.40, 0.00)),
    ("closeness * interest", (0.45, 0.35, 0.30, 0.40, -0.50, -0.30)),
    ("closeness * freshness", (0.35, 0.20, 0.35, 0.20, -0.25, 0.00)),
    ("generosity * heat", (0.45, 0.30, 0.10, 0.15, 0.25, 0.00)),
    ("heat * away", (0.35, 0.35, 0.10, 0.30, 0.25, 0.00)),
    ("curiosity * promise", (0.05, 0.10, 0.00, 0.50, 0.55, 0.00)),
    ("sociability * stir", (0.05, 0.25, 0.40, 0.05, 0.10, 0.40)),
)
_TASTES: _Products = (
    ("taste", (0.60, 0.55, 0.50, 0.65, 0.70, -0.80)),
    ("heat", (0.20, 0.20, 0.10, 0.15, 0.10, -0.30)),
    ("closeness", (0.25, 0.20, 0.25, 0.15, -0.30, -0.50)),
    ("generosity", (0.35, 0.20, 0.10, 0.10, 0.10, 0.00)),
    ("curiosity", (0.00, 0.00, 0.00, 0.45, 0.50, 0.00)),
    ("sociability", (0.00, 0.30, 0.35, 0.00, 0.25, 0.15)),
    ("interest", (0.15, 0.15, 0.10, 0.15, 0.25, -0.50)),
    ("taste * closeness", (0.35, 0.25, 0.25, 0.30, -0.40, -0.40)),
    ("taste * generosity", (0.25, 0.10, 0.05, 0.10, 0.10, 0.00)),
    ("taste * curiosity", (0.05, 0.05, 0.05, 0.30, 0.35, 0.00)),
    ("taste * heat", (0.20, 0.20, 0.10, 0.15, 0.25, -0.30)),
    ("closeness * interest", (0.20, 0.15, 0.15, 0.20, -0.25, -0.30)),
    ("sociability * closeness", (0.00, 0.15, 0.20, 0.00, 0.10, 0.00)),
)


def _products(x: _Columns, law: _Products) -> NDArray[np.float64]:
    latents = {name: _latent(x, name) for name in _LATENTS} | {"taste": _taste(x)}
    return np.stack([np.prod([latents[name] for name in term.split(" * ")], axis=0) for term, _gains in law], axis=1)


# What each head's logit is where no term adds to it. They put the heads at natural rates, averaged over seeds: likes
# 3.5 %, retweets 0.9 %, replies 0.8 %, clicks 5 %, profile clicks 0.6 %, negative feedback 0.04 %.
_INTERCEPTS = {
    "steps": (-4.88, -6.0, -6.42, -4.47, -8.13, -9.42),
    "smooth": (-4.19, -5.9, -6.1, -3.67, -6.48, -8.37),
    "tastes": (-4.21, -6.08, -6.18, -3.73, -6.47, -8.63),
}
LAWS = tuple(_INTERCEPTS)
