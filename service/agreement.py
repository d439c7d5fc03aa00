"""How far two answers to one request agree: what a replay and a shadow model are judged by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.decode import Floats
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb

# How many of the best Tweets the overlap looks at: about a screen and the next.
TOP_K = 10
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two answers to one request. Figures are over the Tweets that both of them scored.

    Attributes:
        same_timeline: Whether sections, their order, heads, ICYMI decision, degradation and the unscored Tweets are
            the same.
        top_overlap: Share of the TOP_K best by score (of all, where there are fewer) that both have; ties go to the
            larger id. NaN: no Tweets.
        rank_correlation: Spearman's, of the scores; tied Tweets share their mean rank. NaN: fewer than two Tweets, or
            all of one answer are tied.
        differences: Head that both have -> float64 [Tweets], other's probability - one's.
        score_differences: float64 [Tweets], other's score - one's.
    """

    same_timeline: bool
    top_overlap: float
    rank_correlation: float
    differences: Mapping[str, Doubles]
    score_differences: Doubles

    def same(self, tolerance: float) -> bool:
        """Whether the timelines are the same, and no probability and no score is further apart than `tolerance`."""
        columns = (self.score_differences, *self.differences.values())
        return self.same_timeline and all((np.abs(column) <= tolerance).all() for column in columns)


def compare(one: pb.RankTimelineResponse, other: pb.RankTimelineResponse) -> Agreement:
    """Compares two answers to one request."""
    ids, scores, probabilities = _tweets(one)
    other_ids, other_scores, other_probabilities = _tweets(other)
    common, rows, other_rows = np.intersect1d(ids, other_ids, assume_unique=True, return_indices=True)
    both = ~(np.isnan(scores[rows]) | np.isnan(other_scores[other_rows]))
    common, rows, other_rows = common[both], rows[both], other_rows[both]
    scores, other_scores = scores[rows], other_scores[other_rows]
    heads = [(i, list(other.heads).index(head)) for i, head in enumerate(one.heads) if head in other.heads]
    return Agreement(
        same_timeline=_shape(one) == _shape(other),
        top_overlap=_top_overlap(scores, other_scores, common),
        rank_correlation=rank_correlation(scores, other_scores),
        differences={one.heads[i]: other_probabilities[other_rows, j] - probabilities[rows, i] for i, j in heads},
        score_differences=other_scores - scores,
    )


def rank_correlation(one: Doubles, other: Doubles) -> float:
    """Spearman's rank correlation of two [N], ties at their mean rank; NaN where it is not defined."""
    if len(one) < 2:
        return math.nan
    ranks, other_ranks = _ranks(one), _ranks(other)
    ranks -= ranks.mean()
    other_ranks -= other_ranks.mean()
    spread = math.sqrt((ranks @ ranks) * (other_ranks @ other_ranks))
    return float(ranks @ other_ranks) / spread if spread else math.nan


@dataclass(slots=True)
class Spread:
    """A figure over many requests; those where it is not defined (NaN) do not count."""

    count: int = 0
    sum: float = 0.0
    min: float = math.nan

    def add(self, value: float) -> None:
        """Counts one request."""
        if not math.isnan(value):
            self.count += 1
            self.sum += value
            self.min = min(value, self.min) if self.count > 1 else value

    @property
    def mean(self) -> float:
        """NaN where nothing was counted."""
        return self.sum / self.count if self.count else math.nan


@dataclass(slots=True)
class Drift:
    """Differences over many Tweets."""

    count: int = 0
    sum: float = 0.0
    absolute_sum: float = 0.0
    largest: float = 0.0

    def add(self, differences: Doubles) -> None:
        """Counts the Tweets of one request."""
        sizes = np.abs(differences)
        self.count += len(differences)
        self.sum += float(differences.sum())
        self.absolute_sum += float(sizes.sum())
        self.largest = max(self.largest, float(sizes.max(initial=0.0)))

    @property
    def mean(self) -> float:
        """With their sign; NaN where nothing was counted."""
        return self.sum / self.count if self.count else math.nan

    @property
    def mean_size(self) -> float:
        """Without their sign; NaN where nothing was counted."""
        return self.absolute_sum / self.count if self.count else math.nan


@dataclass(slots=True)
class Tally:
    """Agreements over many requests."""

    compared: int = 0
    top_overlap: Spread = field(default_factory=Spread)
    rank_correlation: Spread = field(default_factory=Spread)
    heads: dict[str, Drift] = field(default_factory=dict)
    score: Drift = field(default_factory=Drift)

    def add(self, agreement: Agreement) -> None:
        """Counts one request."""
        self.compared += 1
        self.top_overlap.add(agreement.top_overlap)
        self.rank_correlation.add(agreement.rank_correlation)
        self.score.add(agreement.score_differences)
        for head, differences in agreement.differences.items():
            self.heads.setdefault(head, Drift()).add(differences)


def _shape(response: pb.RankTimelineResponse) -> tuple[object, ...]:
    """All that two answers must have in common to show the same timeline."""
    sections = (response.icymi, response.ranked, response.remainder)
    return (
        [list(section.tweet_ids) for section in sections],
        [np.isnan(section.scores).tolist() for section in sections],
        list(response.heads),
        response.icymi_decision,
        response.degradation,
    )


def _tweets(response: pb.RankTimelineResponse) -> tuple[NDArray[np.int64], Doubles, Doubles]:
    """Ids [N], scores [N] and probabilities [N, heads] of all sections, one after the other."""
    sections = (response.icymi, response.ranked, response.remainder)
    ids = np.concatenate([np.asarray(section.tweet_ids, np.int64) for section in sections])
    scores = np.concatenate([np.asarray(section.scores, np.float64) for section in sections])
    probabilities = np.concatenate([np.asarray(section.probabilities, np.float64) for section in sections])
    return ids, scores, probabilities.reshape(len(ids), len(response.heads))


def _top_overlap(one: Doubles, other: Doubles, ids: NDArray[np.int64]) -> float:
    k = min(TOP_K, len(ids))
    if not k:
        return math.nan
    best, other_best = (np.lexsort((ids, scores))[-k:] for scores in (one, other))
    return len(np.intersect1d(best, other_best, assume_unique=True)) / k


def _ranks(values: Doubles | Floats) -> Doubles:
    """Ranks from 1, tied values at the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Doubles = (counts.cumsum() - (counts - 1) / 2)[places]
    return ranks
