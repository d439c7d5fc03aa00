"""From scores to a timeline: the ICYMI module, the ranked section, the remainder.

order      by score; ties: by relevance of the raw probabilities, then newer, then larger id; the unscored are not in it
gates      enough candidates, away for long enough, not the first visit, all scored; else no ICYMI module
ICYMI      the first icymi_size of that order whose relevance reaches the floor, by score
ranked     the next ranked_size of that order, newest first
remainder  all that is left, newest first (ties by time: larger id)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decode import Candidates, Floats
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.policy import EffectivePolicy

Rows = NDArray[np.intp]
MS_PER_HOUR = 3_600_000


@dataclass(frozen=True, slots=True)
class Timeline:
    """Where each of N candidates stands: every row number is in exactly one of the three sections.

    Attributes:
        icymi: Row numbers by score; empty unless `decision` is SHOWN.
        ranked: Row numbers, newest first.
        remainder: Row numbers, newest first.
        decision: Whether the module is shown; if not, the first gate that failed.
        scores: float32 [N], relevance x factor.
        factors: float32 [N], what the policy multiplied the relevance by.
        degradation: How many of the candidates were scored.
    """

    icymi: Rows
    ranked: Rows
    remainder: Rows
    decision: pb.IcymiDecision.ValueType
    scores: Floats
    factors: Floats
    degradation: pb.Degradation.ValueType = pb.DEGRADATION_NONE


def build(
    candidates: Candidates,
    relevance: Floats,
    raw_relevance: Callable[[], Floats],
    last_visit_ms: int,
    request_time_ms: int,
    policy: EffectivePolicy,
    degradation: pb.Degradation.ValueType = pb.DEGRADATION_NONE,
) -> Timeline:
    """Arranges N >= 0 candidates.

    Args:
        candidates: What there is to show.
        relevance: [N], from calibrated probabilities; NaN, where the degradation allows it: not scored.
        raw_relevance: Gives [N], from raw ones; asked for only where there are ties to break.
        last_visit_ms: 0 for a first visit, else not after `request_time_ms`.
        request_time_ms: The moment that the timeline is for.
        policy: Sizes, gates and factors.
        degradation: How many of the candidates were scored.
    """
    unscored = 0 if degradation == pb.DEGRADATION_NONE else int(np.isnan(relevance).sum())
    factors = np.ones_like(relevance)
    scores = relevance
    order = _best_first(scores, raw_relevance, candidates, unscored)
    if policy.policy.author_diversity:
        factors = _diversity_factors(order, relevance, candidates, policy)
        scores = relevance * factors
        order = _best_first(scores, raw_relevance, candidates, unscored)

    order, left_out = order[: len(order) - unscored], order[len(order) - unscored :]

    decision = _icymi_gate(len(candidates), last_visit_ms, request_time_ms, policy)
    if decision == pb.ICYMI_DECISION_SHOWN and degradation != pb.DEGRADATION_NONE:
        decision = pb.ICYMI_DECISION_DEGRADED
    icymi = order[:0]
    if decision == pb.ICYMI_DECISION_SHOWN:
        places = np.flatnonzero(relevance[order] >= policy.icymi_relevance_min)[: policy.policy.icymi_size]
        others = np.ones(len(order), np.bool_)
        others[places] = False
        icymi, order = order[places], order[others]
        if not len(icymi):
            decision = pb.ICYMI_DECISION_BELOW_FLOOR
    size = policy.policy.ranked_size
    return Timeline(
        icymi=icymi,
        ranked=newest_first(order[:size], candidates),
        remainder=newest_first(np.concatenate((order[size:], left_out)), candidates),
        decision=decision,
        scores=scores,
        factors=factors,
        degradation=degradation,
    )


def newest_first(rows: Rows, candidates: Candidates) -> Rows:
    """The rows in the order of the ranked section and the remainder."""
    return rows[_largest_first(candidates.created_at_ms[rows], lambda: (candidates.tweet_ids[rows],))]


def _icymi_gate(
    count: int, last_visit_ms: int, request_time_ms: int, policy: EffectivePolicy
) -> pb.IcymiDecision.ValueType:
    """The first gate that fails, before any Tweet is looked at. A first visit has no time away to speak of."""
    if count < policy.policy.icymi_candidates_min:
        return pb.ICYMI_DECISION_TOO_FEW_CANDIDATES
    if last_visit_ms == 0:
        return pb.ICYMI_DECISION_FIRST_VISIT
    if request_time_ms - last_visit_ms < policy.policy.icymi_away_hours_min * MS_PER_HOUR:
        return pb.ICYMI_DECISION_TOO_RECENT
    return pb.ICYMI_DECISION_SHOWN


def _best_first(scores: Floats, raw_relevance: Callable[[], Floats], candidates: Candidates, unscored: int) -> Rows:
    order = _largest_first(scores, lambda: (candidates.tweet_ids, candidates.created_at_ms, raw_relevance()))
    return np.roll(order, -unscored) if unscored else order  # numpy takes NaN for the largest; here it comes last


def _largest_first(values: NDArray[Any], tie_breakers: Callable[[], tuple[NDArray[Any], ...]]) -> Rows:
    """Indices by value, the largest first; among equal ones by the tie breakers, of which the last counts most."""
    order = np.argsort(values)[::-1]
    ordered = values[order]
    if (ordered[1:] == ordered[:-1]).any():  # seldom: sorting by all keys costs as much as all the rest
        return np.lexsort((*tie_breakers(), values))[::-1]
    return order


def _diversity_factors(order: Rows, relevance: Floats, candidates: Candidates, policy: EffectivePolicy) -> Floats:
    """(1 - floor) x decay^k + floor for the k-th best Tweet of an author, k from 0; float32 [N].

    Where the relevance is not positive the factor is 1: it would push such a Tweet up.
    """
    authors = candidates.author_index[order]
    by_author = np.argsort(authors, kind="stable")
    grouped = authors[by_author]
    starts = np.searchsorted(grouped, grouped)  # for each Tweet the place of its author's best
    nth = np.empty_like(by_author)
    nth[order[by_author]] = np.arange(len(order)) - starts
    floor = policy.policy.author_diversity_floor
    factors = (1 - floor) * policy.policy.author_diversity_decay**nth + floor
    return np.where(relevance > 0, factors, 1.0).astype(np.float32)
