"""What a person wants to see of a ranked timeline, joined from the request and its answer.

`render_text` and `render_html` draw it; nothing here knows how.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb

SectionName = Literal["icymi", "ranked", "remainder"]

SECTION_TITLES: dict[SectionName, str] = {
    "icymi": "In case you missed it",
    "ranked": "Top Tweets",
    "remainder": "Everything else",
}

_ICYMI_DECISIONS: dict[pb.IcymiDecision.ValueType, str] = {
    pb.ICYMI_DECISION_UNSPECIFIED: "unknown",
    pb.ICYMI_DECISION_SHOWN: "shown",
    pb.ICYMI_DECISION_FIRST_VISIT: "not shown: first visit",
    pb.ICYMI_DECISION_TOO_FEW_CANDIDATES: "not shown: too few candidates",
    pb.ICYMI_DECISION_TOO_RECENT: "not shown: last visit too recent",
    pb.ICYMI_DECISION_BELOW_FLOOR: "not shown: no Tweet above the relevance floor",
    pb.ICYMI_DECISION_DEGRADED: "not shown: not every candidate was scored",
}

_DEGRADATIONS: dict[pb.Degradation.ValueType, str] = {
    pb.DEGRADATION_UNSPECIFIED: "unknown",
    pb.DEGRADATION_NONE: "none: every candidate scored",
    pb.DEGRADATION_PARTIAL: "partial: only the newest candidates scored",
    pb.DEGRADATION_REVERSE_CHRONOLOGICAL: "reverse-chronological: no candidate scored",
}

# A scalar column of this name that is 1 says what a Tweet is; "is" before "has", then its categories.
_TRAIT_PREFIXES = ("is_", "has_")


@dataclass(frozen=True, slots=True)
class TweetView:
    """One Tweet of the timeline.

    Attributes:
        tweet_id, author_id: As sent.
        age_ms: Request time minus creation time; negative for a Tweet from the future.
        traits: What it is: names of its `is_*` and `has_*` columns that are 1, then its categories.
        score: What the timeline was built by; NaN = not scored.
        probabilities: Calibrated, in the order of `TimelineView.heads`; NaN = not scored.
        section: Where the ranking put it.
        place: Its place in that section, from 1.
        time_place: Its place among all candidates, newest first, from 1.
        contributions: What each of the schema's GROUPS adds to its relevance; empty: the answer does not explain it.
    """

    tweet_id: int
    author_id: int
    age_ms: int
    traits: tuple[str, ...]
    score: float
    probabilities: tuple[float, ...]
    section: SectionName
    place: int
    time_place: int
    contributions: tuple[float, ...] = ()

    @property
    def scored(self) -> bool:
        """Whether the model saw it."""
        return not math.isnan(self.score)


@dataclass(frozen=True)
class TimelineView:
    """A ranked timeline with the facts around it.

    Attributes:
        sections: The Tweets of each section in the order to show them in.
        heads: Names of the kinds of engagement, words separated by spaces.
        author_count: Different authors among the candidates.
        icymi, degradation: What the server decided, in words.
        features: Columns of all three tables that the model found, did not get, and does not know.
        stages_us: Stage -> microseconds in the server, in the order of the request path.
        round_trip_us: The whole call as the caller saw it.
    """

    request_id: str
    viewer_id: int
    model_version: str
    policy_version: str
    arms: dict[str, str]
    sections: dict[SectionName, list[TweetView]]
    heads: tuple[str, ...]
    author_count: int
    icymi: str
    degradation: str
    features: dict[str, int]
    stages_us: dict[str, int]
    round_trip_us: int

    @property
    def tweets(self) -> list[TweetView]:
        """All candidates, section after section."""
        return [tweet for section in self.sections.values() for tweet in section]

    @property
    def explained(self) -> bool:
        """Whether the answer says what each group of features adds."""
        return any(tweet.contributions for tweet in self.tweets)

    def newest_first(self) -> list[TweetView]:
        """All candidates as a reverse-chronological timeline shows them."""
        return sorted(self.tweets, key=lambda tweet: tweet.time_place)


def timeline_view(
    request: pb.RankTimelineRequest, response: pb.RankTimelineResponse, now_ms: int, round_trip_us: int
) -> TimelineView:
    """Joins an answer with what was asked.

    Args:
        request: As sent.
        response: The server's answer to it.
        now_ms: The moment that ages count from where the request names none, Unix ms.
        round_trip_us: How long the call took, as the caller saw it.

    Raises:
        KeyError: The answer holds a Tweet that was not sent.
    """
    candidates = request.candidates
    tweet_ids, created_at_ms = np.asarray(candidates.tweet_ids), np.asarray(candidates.created_at_ms)
    row_of = {int(tweet_id): row for row, tweet_id in enumerate(tweet_ids)}
    time_place = np.empty(len(tweet_ids), np.int64)
    time_place[np.lexsort((-tweet_ids, -created_at_ms))] = np.arange(1, len(tweet_ids) + 1)
    traits = tweet_traits(candidates.tweets, len(tweet_ids))
    request_time_ms = request.request_time_ms or now_ms
    explanation = response.explanation
    # Of the Tweets of icymi and ranked, in that order.
    explained = zip(explanation.viewer, explanation.authors, explanation.tweets, strict=True)
    shown = (*response.icymi.tweet_ids, *response.ranked.tweet_ids) if explanation.tweets else ()
    contributions = dict(zip(shown, explained, strict=True))

    def section(name: SectionName, part: pb.Section) -> list[TweetView]:
        probabilities = np.asarray(part.probabilities).reshape(len(part.tweet_ids), len(response.heads))
        tweets = []
        for i, tweet_id in enumerate(part.tweet_ids):
            row = row_of[tweet_id]
            tweet = TweetView(
                tweet_id=tweet_id,
                author_id=candidates.author_ids[candidates.author_index[row]],
                age_ms=request_time_ms - int(created_at_ms[row]),
                traits=traits[row],
                score=part.scores[i],
                probabilities=tuple(probabilities[i].tolist()),
                section=name,
                place=i + 1,
                time_place=int(time_place[row]),
                contributions=contributions.get(tweet_id, ()),
            )
            tweets.append(tweet)
        return tweets

    served_by, columns = response.served_by, response.features
    tables = (columns.viewer, columns.authors, columns.tweets)
    return TimelineView(
        request_id=response.request_id,
        viewer_id=request.viewer_id,
        model_version=served_by.model_version,
        policy_version=served_by.policy_version,
        arms=dict(served_by.arms),
        sections={
            "icymi": section("icymi", response.icymi),
            "ranked": section("ranked", response.ranked),
            "remainder": section("remainder", response.remainder),
        },
        heads=tuple(head.replace("_", " ") for head in response.heads),
        author_count=len(set(candidates.author_index)),
        icymi=_ICYMI_DECISIONS[response.icymi_decision],
        degradation=_DEGRADATIONS[response.degradation],
        features={state: sum(getattr(table, state) for table in tables) for state in ("present", "absent", "unknown")},
        stages_us={
            field.name.removesuffix("_us"): getattr(response.timings, field.name)
            for field in pb.Timings.DESCRIPTOR.fields
        },
        round_trip_us=round_trip_us,
    )


def tweet_traits(table: pb.FeatureTable, rows: int) -> list[tuple[str, ...]]:
    """What each Tweet is, read from the names of its own columns: flags that are 1, then categories."""
    traits: list[list[str]] = [[] for _ in range(rows)]
    scalars = _scalars(table, rows)
    for prefix in _TRAIT_PREFIXES:
        for j, column in enumerate(table.columns):
            if column.startswith(prefix):
                for row in np.flatnonzero(scalars[:, j] == 1).tolist():
                    traits[row].append(column.removeprefix(prefix).replace("_", " "))
    for categorical in table.categorical:
        for row, index in enumerate(categorical.indices):
            if index < len(categorical.vocabulary):
                traits[row].append(categorical.vocabulary[index])
    return [tuple(words) for words in traits]


def _scalars(table: pb.FeatureTable, rows: int) -> NDArray[np.float32]:
    """The table's scalars [rows, columns], whichever form they were sent in; NaN = absent."""
    if not table.sparse_row_lengths:
        return np.asarray(table.values, np.float32).reshape(rows, len(table.columns))
    scalars = np.full((rows, len(table.columns)), np.nan, np.float32)
    row_of_value = np.repeat(np.arange(rows), np.asarray(table.sparse_row_lengths))
    scalars[row_of_value, np.asarray(table.sparse_column_indices)] = np.asarray(table.sparse_values)
    return scalars


def age_words(age_ms: int) -> str:
    """An age in its largest unit, such as "5m" or "2d"; "in 5m" for the future."""
    seconds = abs(age_ms) // 1000
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")):
        if seconds >= size:
            words = f"{seconds // size}{unit}"
            return f"in {words}" if age_ms < 0 else words
    return "now"


def probability_words(probability: float) -> str:
    """A probability as a percentage with two or three significant digits; a dash where it is not scored."""
    percent = 100 * probability
    if math.isnan(percent):
        return "–"
    if percent < 0.005:
        return "<0.01%"
    return f"{percent:.2f}%" if percent < 9.995 else f"{percent:.1f}%"


def score_words(score: float) -> str:
    """A score; a dash where the Tweet was not scored."""
    return "–" if math.isnan(score) else f"{score:.4f}"


def contribution_words(contribution: float) -> str:
    """What something adds to a relevance, with its sign."""
    return f"{contribution:+.4f}"


def milliseconds_words(microseconds: int) -> str:
    """A duration in milliseconds, without the unit."""
    return f"{microseconds / 1000:.2f}"
