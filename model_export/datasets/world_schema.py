"""What a request of the simulated world carries: the default schema.

64 Tweet, 32 author and 24 viewer scalars, and categoricals and one text embedding on top. "Author" rows hold the
author and the viewer's relationship with them. Counts end in their window: `_15m`, `_1h`, `_1d`, `_7d`, `_28d`, `_90d`.
"""

from __future__ import annotations

from service.schema import Feature, Group, Head, Kind, Schema

EMBEDDING_WIDTH = 16

TOPICS = (
    "news", "politics", "football", "basketball", "music", "film", "gaming", "technology",
    "science", "business", "food", "travel", "fashion", "comics", "humor", "family",
)  # fmt: skip
LANGUAGES = ("en", "ja", "es", "pt", "ar", "fr", "tr", "id")
ORIGINS = ("search", "contacts", "recommended", "profile_visit", "retweet", "imported")
DEVICES = ("ios", "android", "web", "tablet", "lite")

# name, unit; a unit of "bool" makes the feature binary.
_TWEET = (
    ("age", "hours"),
    ("posted_hour", "hours"),
    ("length", "characters"),
    ("words", "count"),
    ("hashtags", "count"),
    ("mentions", "count"),
    ("emojis", "count"),
    ("line_breaks", "count"),
    ("capitals_share", "ratio"),
    ("readability", "school years"),
    ("has_question", "bool"),
    ("has_image", "bool"),
    ("has_video", "bool"),
    ("has_link_card", "bool"),
    ("has_poll", "bool"),
    ("is_quote", "bool"),
    ("is_reply", "bool"),
    ("is_retweet", "bool"),
    ("is_thread", "bool"),
    ("images", "count"),
    ("image_aspect_ratio", "ratio"),
    ("video_length", "seconds"),
    ("video_completion_rate", "ratio"),
    ("link_domain_tweets_7d", "count"),
    ("link_domain_click_rate_28d", "ratio"),
    ("original_age", "hours"),
    ("original_author_followers", "count"),
    ("original_author_followed", "bool"),
    ("sentiment", "score in [-1, 1]"),
    ("toxicity", "probability"),
    ("spam", "probability"),
    ("text_quality", "score in [0, 1]"),
    ("impressions", "count"),
    ("likes", "count"),
    ("retweets", "count"),
    ("replies", "count"),
    ("quotes", "count"),
    ("clicks", "count"),
    ("profile_clicks", "count"),
    ("negative_feedbacks", "count"),
    ("impressions_1h", "count"),
    ("likes_1h", "count"),
    ("retweets_1h", "count"),
    ("replies_1h", "count"),
    ("clicks_1h", "count"),
    ("impressions_15m", "count"),
    ("likes_15m", "count"),
    ("retweets_15m", "count"),
    ("like_rate", "ratio"),
    ("retweet_rate", "ratio"),
    ("reply_rate", "ratio"),
    ("click_rate", "ratio"),
    ("negative_feedback_rate", "ratio"),
    ("likes_share_1h", "ratio"),
    ("likes_by_followed", "count"),
    ("retweets_by_followed", "count"),
    ("replies_by_followed", "count"),
    ("likes_by_verified", "count"),
    ("topic_match", "cosine"),
    ("topic_confidence", "probability"),
    ("topic_trend", "ratio"),
    ("topic_likes_28d", "count"),
    ("author_tweets_since_visit", "count"),
    ("language_match", "bool"),
)

_AUTHOR = (
    ("impressions_7d", "count"),
    ("impressions_28d", "count"),
    ("likes_7d", "count"),
    ("likes_28d", "count"),
    ("likes_90d", "count"),
    ("retweets_28d", "count"),
    ("replies_7d", "count"),
    ("replies_28d", "count"),
    ("clicks_7d", "count"),
    ("clicks_28d", "count"),
    ("profile_clicks_28d", "count"),
    ("negative_feedbacks_90d", "count"),
    ("like_rate_28d", "ratio"),
    ("dwell_mean_28d", "seconds"),
    ("days_since_like", "days"),
    ("likes_back_28d", "count"),
    ("replies_back_28d", "count"),
    ("direct_messages_28d", "count"),
    ("strength", "score in [0, 1]"),
    ("days_since_follow", "days"),
    ("mutual_follow", "bool"),
    ("common_follows", "count"),
    ("followers", "count"),
    ("following", "count"),
    ("account_age", "days"),
    ("verified", "bool"),
    ("tweets_7d", "count"),
    ("author_like_rate_28d", "ratio"),
    ("author_retweet_rate_28d", "ratio"),
    ("author_reply_rate_28d", "ratio"),
    ("author_click_rate_28d", "ratio"),
    ("follower_growth_7d", "ratio"),
)

_VIEWER = (
    ("sessions_1d", "count"),
    ("sessions_7d", "count"),
    ("sessions_28d", "count"),
    ("impressions_7d", "count"),
    ("likes_1d", "count"),
    ("likes_7d", "count"),
    ("likes_28d", "count"),
    ("retweets_28d", "count"),
    ("replies_28d", "count"),
    ("clicks_7d", "count"),
    ("clicks_28d", "count"),
    ("negative_feedbacks_28d", "count"),
    ("like_rate_28d", "ratio"),
    ("click_rate_28d", "ratio"),
    ("session_length_28d", "seconds"),
    ("video_dwell_share_28d", "ratio"),
    ("notifications_opened_7d", "count"),
    ("account_age", "days"),
    ("following", "count"),
    ("followers", "count"),
    ("hours_since_visit", "hours"),
    ("hour", "hours"),
    ("is_weekend", "bool"),
    ("topic_breadth_28d", "count"),
)


def _scalars(group: Group, features: tuple[tuple[str, str], ...]) -> tuple[Feature, ...]:
    def kind(unit: str) -> Kind:
        return "binary" if unit == "bool" else "continuous"

    return tuple(Feature(name, group, kind(unit), "" if unit == "bool" else unit) for name, unit in features)


SCHEMA = Schema(
    features=(
        *_scalars("tweet", _TWEET),
        Feature("language", "tweet", "categorical", vocabulary=LANGUAGES),
        Feature("topic", "tweet", "categorical", vocabulary=TOPICS),
        Feature("text_embedding", "tweet", "vector", width=EMBEDDING_WIDTH),
        *_scalars("author", _AUTHOR),
        Feature("origin", "author", "categorical", vocabulary=ORIGINS),
        *_scalars("viewer", _VIEWER),
        Feature("device", "viewer", "categorical", vocabulary=DEVICES),
        Feature("language", "viewer", "categorical", vocabulary=LANGUAGES),
        Feature("recent_tastes", "viewer", "vector", width=EMBEDDING_WIDTH),
    ),
    # Weights: a reply or a retweet is worth many likes, and a complaint costs more than all of them.
    heads=(
        Head("like", 1.0, 1),
        Head("retweet", 4.0, 1),
        Head("reply", 5.0, 1),
        Head("click", 0.5, 1),
        Head("profile_click", 3.0, 1),
        Head("negative_feedback", 40.0, -1),
    ),
)
