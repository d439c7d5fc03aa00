"""From scores to a timeline: the ICYMI module, the ranked section, the remainder.

order      by score; ties: by relevance of the raw probabilities, then newer, then larger id; the unscored are not in it
gates      enough candidates, away for long enough, not the first visit, all scored; else no ICYMI module
ICYMI      the first icymi_size of that order whose relevance reaches the floor, by score
ranked     the next ranked_size of that order, newest first
remainder  all that is left, newest first (ties by time: larger id)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.decode import Candidates, Floats, Ints
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.policy import EffectivePolicy

Rows = NDArray[np.intp]
MS_PER_HOUR = 3_600_000


class Timeline(NamedTuple):
    """Where each of N candidates stands: every row number is in exactly one of the three sections.

    Attributes:
        icymi: Row numbers by score; empty unless `decision` is SHOWN.
        ranked: Row numbers, newest first.
        remainder: Row numbers, newest first.
        decision: Whether the module is shown; if not, the first gate that failed.
        scores: float32 [N], relevance x factor.
        factors: float32 [N], what the policy multiplied the relevance by; None: by 1, all of them.
        degradation: How many of the candidates were scored.
    """

    icymi: Rows
    ranked: Rows
    remainder: Rows
    decision: pb.IcymiDecision.ValueType
    scores: Floats
    factors: Floats | None
    degradation: pb.Degradation.ValueType = pb.DEGRADATION_NONE


def build(
    candidates: Candidates,
    relevance: Floats,
    raw_relevance: Floats,
    last_visit_ms: int,
    request_time_ms: int,
    policy: EffectivePolicy,
    degradation: pb.Degradation.ValueType = pb.DEGRADATION_NONE,
) -> Timeline:
    """Arranges N >= 0 candidates.

    Args:
        candidates: What there is to show.
        relevance: [N], from calibrated probabilities; NaN, where the degradation allows it: not scored.
        raw_relevance: [N], from raw ones; breaks ties.
        last_visit_ms: 0 for a first visit, else not after `request_time_ms`.
        request_time_ms: The moment that the timeline is for.
        policy: Sizes, gates and factors.
        degradation: How many of the candidates were scored.
    """
    by_time = _newest_first(candidates.tweet_ids, candidates.created_at_ms)
    factors, scores = None, relevance
    ranks = _best_first(scores, raw_relevance, by_time)
    if policy.policy.author_diversity:
        factors = _diversity_factors(by_time[ranks], relevance, candidates, policy)
        scores = relevance * factors
        ranks = _best_first(scores, raw_relevance, by_time)

    decision = _icymi_gate(len(candidates), last_visit_ms, request_time_ms, policy)
    if decision == pb.ICYMI_DECISION_SHOWN and degradation != pb.DEGRADATION_NONE:
        decision = pb.ICYMI_DECISION_DEGRADED
    icymi = ranks[:0]
    if decision == pb.ICYMI_DECISION_SHOWN:
        icymi, ranks = _take_icymi(ranks, by_time, relevance, factors is None, policy)
        if not len(icymi):
            decision = pb.ICYMI_DECISION_BELOW_FLOOR
    size = policy.policy.ranked_size
    if degradation != pb.DEGRADATION_NONE:
        size = min(size, len(ranks) - int(np.count_nonzero(np.isnan(scores))))
    return Timeline(
        icymi=by_time[icymi],
        # Places in time, in order: newest first.
        ranked=by_time[np.sort(ranks[:size])],
        remainder=by_time[np.sort(ranks[size:])],
        decision=decision,
        scores=scores,
        factors=factors,
        degradation=degradation,
    )


def newest_first(rows: Rows, candidates: Candidates) -> Rows:
    """The rows in the order of the ranked section and the remainder."""
    return rows[_newest_first(candidates.tweet_ids[rows], candidates.created_at_ms[rows])]


def _newest_first(tweet_ids: Ints, created_at_ms: Ints) -> Rows:
    return np.lexsort((tweet_ids, created_at_ms))[::-1]


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


def _best_first(scores: Floats, raw_relevance: Floats, by_time: Rows) -> Rows:
    """Places in `by_time`, those of the best Tweets first, those of unscored ones last: numpy sorts NaN to the end.

    The sort is stable: what has equal scores and raw relevance stays in the order of `by_time`.
    """
    # Complex numbers are sorted by the real part, then by the imaginary one: one sort instead of two.
    keys = np.empty(len(scores), np.complex64)
    np.negative(scores, out=keys.real)
    np.negative(raw_relevance, out=keys.imag)
    return keys.take(by_time).argsort(kind="stable")


def _take_icymi(
    ranks: Rows, by_time: Rows, relevance: Floats, falling: bool, policy: EffectivePolicy
) -> tuple[Rows, Rows]:
    """The first of `ranks` whose relevance reaches the floor, and all others; `falling`: it falls with the rank."""
    size, floor = policy.policy.icymi_size, policy.icymi_relevance_min
    if falling:
        count = np.count_nonzero(relevance[by_time[ranks[:size]]] >= floor)
        return ranks[:count], ranks[count:]
    places = np.flatnonzero(relevance[by_time[ranks]] >= floor)[:size]
    return ranks[places], np.delete(ranks, places)


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
