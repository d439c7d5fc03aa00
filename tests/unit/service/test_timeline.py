"""The rules by which scores become a timeline, on cases worked out by hand and against a slow reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service import timeline
from service.decode import Candidates, Floats, Header, Table
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.policy import EffectivePolicy, Policy, effective
from service.timeline import Timeline
from tests import toy

HOUR_MS = 3_600_000
NOW_MS = 1_750_000_000_000
DAY_AGO_MS = NOW_MS - 24 * HOUR_MS
NO_FEATURES = Table(0, Header((), (), ()), np.empty((0, 0), np.float32), (), ())


def policy(**values: Any) -> EffectivePolicy:
    """Small sizes and a floor of 0.5, unless said otherwise."""
    defaults = {"ranked_size": 3, "icymi_size": 2, "icymi_candidates_min": 5, "icymi_relevance_min": 0.5}
    return effective(Policy(**{**defaults, **values}), toy.SCHEMA, icymi_relevance_min=99.0)


def tweets(
    created_at_ms: Sequence[int], ids: Sequence[int] | None = None, authors: Sequence[int] | None = None
) -> Candidates:
    n = len(created_at_ms)
    return Candidates(
        tweet_ids=np.array(range(1, n + 1) if ids is None else ids, np.int64),
        created_at_ms=np.array(created_at_ms, np.int64),
        author_index=np.array(range(n) if authors is None else authors, np.int64),
        viewer=NO_FEATURES,
        authors=NO_FEATURES,
        tweets=NO_FEATURES,
    )


def build(
    candidates: Candidates,
    relevance: Sequence[float],
    raw: Sequence[float] | None = None,
    last_visit_ms: int = DAY_AGO_MS,
    **values: Any,
) -> Timeline:
    raw_relevance = np.array(relevance if raw is None else raw, np.float32)
    return timeline.build(
        candidates, np.array(relevance, np.float32), raw_relevance, last_visit_ms, NOW_MS, policy(**values)
    )


def build_partly(candidates: Candidates, relevance: Sequence[float], **values: Any) -> Timeline:
    """Where the relevance is NaN, the Tweet was not scored."""
    relevances = np.array(relevance, np.float32)
    return timeline.build(
        candidates, relevances, relevances, DAY_AGO_MS, NOW_MS, policy(**values), pb.DEGRADATION_PARTIAL
    )


def factors_of(built: Timeline) -> Floats:
    assert built.factors is not None
    return built.factors


def sections(built: Timeline) -> tuple[list[int], list[int], list[int]]:
    return built.icymi.tolist(), built.ranked.tolist(), built.remainder.tolist()


def test_what_is_not_scored_is_in_the_remainder() -> None:
    """Below the worst that is: the ranked section may stay short, and there is no ICYMI module."""
    nan = float("nan")
    built = build_partly(tweets([10, 20, 30, 40, 50, 60, 70]), [nan, nan, 0.1, -0.5, nan, 0.9, 0.4])
    assert sections(built) == ([], [6, 5, 2], [4, 3, 1, 0])
    assert (built.decision, built.degradation) == (pb.ICYMI_DECISION_DEGRADED, pb.DEGRADATION_PARTIAL)
    assert np.isnan(built.scores).tolist() == [True, True, False, False, True, False, False]

    short = build_partly(tweets([10, 20, 30, 40, 50]), [nan, 0.2, nan, 0.2, nan])  # with a tie
    assert sections(short) == ([], [3, 1], [4, 2, 0])
    few = build_partly(tweets([10, 20]), [nan, 0.2])
    assert few.decision == pb.ICYMI_DECISION_TOO_FEW_CANDIDATES


def test_what_is_not_scored_takes_no_authors_place() -> None:
    """One author: the second best of the scored gets the second factor, 0.5, whoever else there is."""
    nan = float("nan")
    built = build_partly(
        tweets([10, 20, 30, 40], authors=[0, 0, 0, 0]),
        [nan, 0.8, nan, 0.4],
        author_diversity=True,
        author_diversity_decay=0.5,
        author_diversity_floor=0.0,
    )
    np.testing.assert_array_equal(built.scores, np.array([nan, 0.8, nan, 0.2], np.float32))


def test_three_sections() -> None:
    """The best two are missed Tweets, best first; the next three and the rest run newest first."""
    built = build(tweets([10, 20, 30, 40, 50, 60, 70]), [0.9, 0.2, 0.7, 0.4, 0.6, 0.1, 1.0])

    assert sections(built) == ([6, 0], [4, 3, 2], [5, 1])
    assert built.decision == pb.ICYMI_DECISION_SHOWN
    assert built.scores.tolist() == np.array([0.9, 0.2, 0.7, 0.4, 0.6, 0.1, 1.0], np.float32).tolist()
    assert built.factors is None


def test_first_visit() -> None:
    """Nobody missed anything before the first visit."""
    built = build(tweets([10, 20, 30, 40, 50]), [0.9] * 5, last_visit_ms=0)

    assert built.decision == pb.ICYMI_DECISION_FIRST_VISIT
    assert sections(built) == ([], [4, 3, 2], [1, 0])


def test_no_candidates() -> None:
    """Three empty sections."""
    built = build(tweets([]), [])

    assert built.decision == pb.ICYMI_DECISION_TOO_FEW_CANDIDATES
    assert sections(built) == ([], [], [])


def test_one_tweet() -> None:
    """It is the ranked section."""
    assert sections(build(tweets([10]), [0.1])) == ([], [0], [])


def test_all_tweets_of_one_author() -> None:
    """Without diversity an author may fill the timeline."""
    built = build(tweets([10, 20, 30, 40, 50], authors=[0] * 5), [0.9, 0.8, 0.7, 0.6, 0.5])

    assert sections(built) == ([0, 1], [4, 3, 2], [])


def test_equal_scores_fall_to_raw_scores_then_time_then_id() -> None:
    """Calibration may tie Tweets that the model tells apart; after that the newer, then the larger id."""
    built = build(
        tweets([10, 10, 20, 5, 5], ids=[7, 8, 3, 4, 5]),
        [0.6] * 5,
        raw=[0.3, 0.3, 0.3, 0.3, 0.4],
        icymi_size=5,
    )

    assert sections(built) == ([4, 2, 1, 0, 3], [], [])


def test_equal_times_fall_to_the_larger_id() -> None:
    """Within the ranked section and the remainder."""
    built = build(tweets([10] * 6, ids=[4, 9, 2, 8, 1, 3]), [0.9, 0.9, 0.9, 0.1, 0.1, 0.1], last_visit_ms=0)

    assert sections(built) == ([], [1, 0, 2], [3, 5, 4])


def test_tweets_from_the_future_and_from_before_the_last_visit_are_kept() -> None:
    """They stand where their time puts them."""
    built = build(
        tweets([NOW_MS + HOUR_MS, DAY_AGO_MS - HOUR_MS, NOW_MS - HOUR_MS]), [0.1, 0.9, 0.5], last_visit_ms=DAY_AGO_MS
    )

    assert sections(built) == ([], [0, 2, 1], [])


def test_refresh_seconds_later() -> None:
    """Whoever was just here has missed nothing."""
    built = build(tweets([10, 20, 30, 40, 50]), [0.9] * 5, last_visit_ms=NOW_MS - 5_000)

    assert built.decision == pb.ICYMI_DECISION_TOO_RECENT


@pytest.mark.parametrize(
    ("away_ms", "decision"),
    [(12 * HOUR_MS, pb.ICYMI_DECISION_SHOWN), (12 * HOUR_MS - 1, pb.ICYMI_DECISION_TOO_RECENT)],
)
def test_away_for_just_long_enough(away_ms: int, decision: int) -> None:
    """The gate's edge is inside."""
    assert build(tweets([1, 2, 3, 4, 5]), [0.9] * 5, last_visit_ms=NOW_MS - away_ms).decision == decision


@pytest.mark.parametrize(
    ("count", "decision"), [(5, pb.ICYMI_DECISION_SHOWN), (4, pb.ICYMI_DECISION_TOO_FEW_CANDIDATES)]
)
def test_just_enough_candidates(count: int, decision: int) -> None:
    """The gate's edge is inside."""
    assert build(tweets(range(count)), [0.9] * count).decision == decision


def test_the_first_gate_that_fails_is_named() -> None:
    """Candidates, then the visit, then the floor."""
    few, enough = tweets([1]), tweets([1, 2, 3, 4, 5])

    assert build(few, [0], last_visit_ms=0).decision == pb.ICYMI_DECISION_TOO_FEW_CANDIDATES
    assert build(enough, [0] * 5, last_visit_ms=0).decision == pb.ICYMI_DECISION_FIRST_VISIT
    assert build(enough, [0] * 5, last_visit_ms=NOW_MS).decision == pb.ICYMI_DECISION_TOO_RECENT
    assert build(enough, [0] * 5).decision == pb.ICYMI_DECISION_BELOW_FLOOR


def test_only_what_reaches_the_floor_was_missed() -> None:
    """The floor itself reaches it; the module may be shorter than its size."""
    built = build(tweets([10, 20, 30, 40, 50]), [0.5, 0.49, 0.4, 0.3, 0.2])

    assert sections(built) == ([0], [3, 2, 1], [4])


def test_diversity_by_hand() -> None:
    """Factors 1, 0.625, 0.4375 down an author's Tweets from the best; another author overtakes the second."""
    built = build(
        tweets([10, 20, 30, 40], authors=[0, 0, 1, 0]),
        [1.0, 0.8, 0.6, 0.4],
        author_diversity=True,
        icymi_candidates_min=1,
        icymi_size=4,
        icymi_relevance_min=0.0,
    )

    np.testing.assert_allclose(factors_of(built), [1, 0.625, 1, 0.4375])
    np.testing.assert_allclose(built.scores, [1, 0.5, 0.6, 0.175])
    assert built.icymi.tolist() == [0, 2, 1, 3]


def test_diversity_leaves_what_is_not_positive() -> None:
    """A factor below 1 would lift a negative score."""
    built = build(tweets([10, 20, 30], authors=[0, 0, 0]), [0.4, 0.0, -0.4], author_diversity=True)

    assert factors_of(built).tolist() == [1, 1, 1]


def test_the_floor_is_for_relevance_and_the_order_for_scores() -> None:
    """A Tweet good enough by itself stays eligible when its author has a better one; scores say who comes first."""
    built = build(
        tweets([10, 20, 30, 40, 50], authors=[0, 0, 1, 2, 3]),
        [0.9, 0.8, 0.55, 0.3, 0.2],
        author_diversity=True,
        icymi_size=3,
    )

    assert built.icymi.tolist() == [0, 2, 1]  # scores 0.9, 0.55, 0.8 x 0.625 = 0.5


@dataclass(frozen=True)
class Tweet:
    """A candidate of the slow reference."""

    row: int
    id: int
    created_ms: int
    author: int
    relevance: float
    raw: float


def slow_build(tweets: list[Tweet], last_visit_ms: int, now_ms: int, policy: Policy) -> tuple[Any, ...]:
    """The rules as they read, one Tweet at a time: sections as row numbers, decision, scores."""
    floor = np.float32(policy.icymi_relevance_min or 0)
    scores = {t.row: t.relevance for t in tweets}
    if policy.author_diversity:
        seen: dict[int, int] = {}
        for t in sorted(tweets, key=lambda t: (t.relevance, t.raw, t.created_ms, t.id), reverse=True):
            k = seen.get(t.author, 0)
            seen[t.author] = k + 1
            if t.relevance > 0:
                low = policy.author_diversity_floor
                factor = np.float32((1 - low) * policy.author_diversity_decay**k + low)
                scores[t.row] = float(np.float32(t.relevance) * factor)
    waiting = sorted(tweets, key=lambda t: (scores[t.row], t.raw, t.created_ms, t.id), reverse=True)
    icymi: list[Tweet] = []
    if len(tweets) < policy.icymi_candidates_min:
        decision = "TOO_FEW_CANDIDATES"
    elif last_visit_ms == 0:
        decision = "FIRST_VISIT"
    elif now_ms - last_visit_ms < policy.icymi_away_hours_min * HOUR_MS:
        decision = "TOO_RECENT"
    else:
        icymi = [t for t in waiting if t.relevance >= floor][: policy.icymi_size]
        decision = "SHOWN" if icymi else "BELOW_FLOOR"
    waiting = [t for t in waiting if t not in icymi]
    ranked, rest = waiting[: policy.ranked_size], waiting[policy.ranked_size :]
    by_time = [sorted(part, key=lambda t: (t.created_ms, t.id), reverse=True) for part in (ranked, rest)]
    rows = [[t.row for t in part] for part in (icymi, *by_time)]
    return (*rows, f"ICYMI_DECISION_{decision}", [scores[t.row] for t in tweets])


few_values = st.sampled_from([-0.5, 0.0, 0.25, 0.5, 0.75])
float32s = st.floats(-2, 2, width=32)


@st.composite
def drawn_tweets(draw: st.DrawFn) -> list[Tweet]:
    """Up to 12 Tweets, often alike in score, time and author."""
    ids = draw(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 20), max_size=12, unique=True))
    return [
        Tweet(
            row,
            tweet_id,
            draw(st.integers(0, 3) | st.integers(-(2**63), 2**63 - 1)),
            draw(st.integers(0, 3)),
            draw(few_values | float32s),
            draw(few_values),
        )
        for row, tweet_id in enumerate(ids)
    ]


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Small sizes, any gate."""
    return Policy(
        ranked_size=draw(st.integers(1, 5)),
        icymi_size=draw(st.integers(1, 4)),
        icymi_candidates_min=draw(st.integers(0, 6)),
        icymi_away_hours_min=draw(st.sampled_from([0.0, 0.5, 12.0])),
        icymi_relevance_min=draw(few_values | float32s),
        author_diversity=draw(st.booleans()),
        author_diversity_decay=draw(st.sampled_from([0.0, 0.5, 1.0])),
        author_diversity_floor=draw(st.sampled_from([0.0, 0.25, 1.0])),
    )


@settings(max_examples=500)
@given(
    drawn_tweets(),
    st.sampled_from([0, NOW_MS, NOW_MS - HOUR_MS // 2, NOW_MS - 12 * HOUR_MS, NOW_MS - 12 * HOUR_MS + 1]),
    policies(),
)
@example([], 0, Policy(icymi_candidates_min=0, icymi_relevance_min=0.0))
def test_agrees_with_the_slow_reference(drawn: list[Tweet], last_visit_ms: int, drawn_policy: Policy) -> None:
    """Every section, every order, every score; and so each Tweet stands in exactly one section."""
    built = timeline.build(
        tweets([t.created_ms for t in drawn], [t.id for t in drawn], [t.author for t in drawn]),
        np.array([t.relevance for t in drawn], np.float32),
        np.array([t.raw for t in drawn], np.float32),
        last_visit_ms,
        NOW_MS,
        effective(drawn_policy, toy.SCHEMA, 0.0),
    )

    found = (*sections(built), pb.IcymiDecision.Name(built.decision), built.scores.tolist())
    assert found == slow_build(drawn, last_visit_ms, NOW_MS, drawn_policy)
