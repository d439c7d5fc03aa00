"""Exploration: now and then a Tweet that did not make it into the top set takes the slot of the lowest that did.

What the model never shows it never learns about. With the probability of every Tweet's place on record, an analysis
can weigh each Tweet by 1 / probability and so ask what another ranking would have done.
"""

from __future__ import annotations

import numpy as np

from service.decode import Candidates, Floats
from service.stable_hash import uniform
from service.timeline import Timeline, newest_first

_WHETHER_SALT = "timeline-ranker/exploration"
_WHICH_SALT = "timeline-ranker/exploration-slot"


def explore(
    timeline: Timeline, candidates: Candidates, raw_relevance: Floats, epsilon: float, request_id: str
) -> tuple[Timeline, Floats]:
    """Gives the slot of the lowest Tweet of the ranked section to one of the M of the remainder, if the dice say so.

    Args:
        timeline: Of N candidates, all of them scored.
        candidates: What it was built from.
        raw_relevance: [N], from raw probabilities; breaks ties for the lowest, as it did for the order.
        epsilon: How probable it is, 0 to 1. Which of the M is uniform.
        request_id: Seeds both draws: the same request gets the same timeline.

    Returns:
        The timeline, in the order it is shown, and float32 [N]: how probable each candidate's place in icymi or
        ranked was. That is 1 for those who kept theirs whatever the dice said, 1 - epsilon for the lowest and
        epsilon / M for the M; 1 and 0 where there is nobody to swap.
    """
    ranked, remainder = timeline.ranked, timeline.remainder
    probabilities = np.zeros(len(candidates), np.float32)
    probabilities[timeline.icymi] = 1
    probabilities[ranked] = 1
    if not epsilon or not len(ranked) or not len(remainder):
        return timeline, probabilities

    keys = (candidates.tweet_ids, candidates.created_at_ms, raw_relevance, timeline.scores)
    lowest = np.lexsort([key[ranked] for key in keys])[0]
    probabilities[ranked[lowest]] = 1 - epsilon
    probabilities[remainder] = epsilon / len(remainder)
    if uniform(_WHETHER_SALT, request_id) >= epsilon:
        return timeline, probabilities

    chosen = int(uniform(_WHICH_SALT, request_id) * len(remainder))
    ranked, remainder = ranked.copy(), remainder.copy()
    ranked[lowest], remainder[chosen] = remainder[chosen], ranked[lowest]
    swapped = timeline._replace(ranked=newest_first(ranked, candidates), remainder=newest_first(remainder, candidates))
    return swapped, probabilities
