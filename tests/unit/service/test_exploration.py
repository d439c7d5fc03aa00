"""The exploration slot: who swaps with whom, how often, and with what recorded probability."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decode import Candidates, Header, Table
from service.exploration import explore
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.timeline import Timeline

NO_COLUMNS = Table(0, Header((), (), ()), np.empty((0, 0), np.float32), (), ())


def candidates(created_at_ms: list[int]) -> Candidates:
    """Tweets 100, 101, ... with these times."""
    count = len(created_at_ms)
    return Candidates(
        tweet_ids=np.arange(100, 100 + count),
        created_at_ms=np.array(created_at_ms, np.int64),
        author_index=np.zeros(count, np.int64),
        viewer=NO_COLUMNS,
        authors=NO_COLUMNS,
        tweets=NO_COLUMNS,
    )


def timeline(icymi: list[int], ranked: list[int], remainder: list[int], scores: list[float]) -> Timeline:
    return Timeline(
        icymi=np.array(icymi, np.intp),
        ranked=np.array(ranked, np.intp),
        remainder=np.array(remainder, np.intp),
        decision=pb.ICYMI_DECISION_SHOWN,
        scores=np.array(scores, np.float32),
        factors=np.ones(len(scores), np.float32),
    )


# Seven Tweets, row 0 the newest. Row 5 is the lowest of the ranked ones; 1, 3, 6 are what is left.
CANDIDATES = candidates([700, 600, 500, 400, 300, 200, 100])
SCORES = [0.9, 0.1, 0.8, 0.2, 0.95, 0.7, 0.3]
TIMELINE = timeline([4], [0, 2, 5], [1, 3, 6], SCORES)
RAW = np.zeros(7, np.float32)


def sections(shown: Timeline) -> tuple[list[int], list[int], list[int]]:
    return shown.icymi.tolist(), shown.ranked.tolist(), shown.remainder.tolist()


def test_without_exploration_nothing_changes() -> None:
    """Epsilon 0 leaves the timeline alone; the top set was certain, the remainder impossible."""
    shown, probabilities = explore(TIMELINE, CANDIDATES, RAW, 0.0, "r")

    assert shown is TIMELINE
    assert probabilities.tolist() == [1, 0, 1, 0, 1, 1, 0]


def test_the_lowest_swaps_with_any_of_the_remainder_and_no_other() -> None:
    """With epsilon 1 all three swaps that there are come up, each with both sections newest first."""
    seen = {str(sections(explore(TIMELINE, CANDIDATES, RAW, 1.0, f"r{i}")[0])) for i in range(100)}

    assert seen == {
        "([4], [0, 1, 2], [3, 5, 6])",
        "([4], [0, 2, 3], [1, 5, 6])",
        "([4], [0, 2, 6], [1, 3, 5])",
    }


def test_probabilities_are_those_of_the_design() -> None:
    """1 for those who stay whatever happens, 1 - epsilon for the lowest, epsilon / 3 for each of the others."""
    _, probabilities = explore(TIMELINE, CANDIDATES, RAW, 0.3, "r")

    np.testing.assert_allclose(probabilities, [1, 0.1, 1, 0.1, 1, 0.7, 0.1], rtol=1e-6)
    assert probabilities.dtype == np.float32


def test_tweets_come_up_as_often_as_recorded() -> None:
    """Over 20,000 requests each Tweet stands in the top set within 4 standard deviations of what was recorded."""
    requests = 20_000
    counts: Counter[int] = Counter()
    for i in range(requests):
        shown, probabilities = explore(TIMELINE, CANDIDATES, RAW, 0.3, f"request-{i}")
        counts.update([*shown.icymi.tolist(), *shown.ranked.tolist()])

    for row, p in enumerate(probabilities.tolist()):
        assert abs(counts[row] - requests * p) <= 4 * np.sqrt(requests * p * (1 - p)) + 1e-3


def test_the_same_request_gets_the_same_timeline() -> None:
    """A retry, on whatever replica, sees the Tweet that the first try saw."""
    first = [sections(explore(TIMELINE, CANDIDATES, RAW, 0.5, f"r{i}")[0]) for i in range(20)]
    again = [sections(explore(TIMELINE, CANDIDATES, RAW, 0.5, f"r{i}")[0]) for i in range(20)]

    assert first == again


@pytest.mark.parametrize(
    ("raw", "created_at_ms", "lowest"),
    [([0.2, 0.1, 0], [30, 20, 10], 1), ([0, 0, 0], [30, 20, 10], 1), ([0, 0, 0], [20, 20, 10], 0)],
    ids=["raw", "older", "smaller-id"],
)
def test_ties_for_the_lowest_fall_as_in_the_order(raw: list[float], created_at_ms: list[int], lowest: int) -> None:
    """Of two ranked Tweets of one score it is the one of the smaller raw relevance, the older, the smaller id."""
    tied = timeline([], [0, 1], [2], [0.5, 0.5, 0.1])
    shown, probabilities = explore(tied, candidates(created_at_ms), np.array(raw, np.float32), 1.0, "r")

    assert probabilities[lowest] == 0
    assert shown.remainder.tolist() == [lowest]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (timeline([], [], [], []), []),
        (timeline([], [0, 1], [], [2, 1]), [1, 1]),
        (timeline([0], [], [1], [2, 1]), [1, 0]),
    ],
    ids=["nothing", "no-remainder", "nothing-ranked"],
)
def test_where_there_is_nobody_to_swap_nothing_is_explored(shown: Timeline, expected: list[float]) -> None:
    """The module of the very best gives nothing up, and an empty remainder has nothing to give."""
    explored, probabilities = explore(shown, candidates([10, 20][: len(expected)]), RAW, 1.0, "r")

    assert explored is shown
    assert probabilities.tolist() == expected


@given(st.data())
def test_no_tweet_is_lost_and_probabilities_fill_the_slots(data: st.DataObject) -> None:
    """For any timeline: every row in one section, sizes kept, ICYMI untouched, probabilities sum to the top set."""
    count = data.draw(st.integers(0, 12))
    rows = data.draw(st.permutations(range(count)))
    first, second = sorted((data.draw(st.integers(0, count)), data.draw(st.integers(0, count))))
    given_ = candidates(data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)))
    order = sorted(rows, key=lambda row: (-int(given_.created_at_ms[row]), -row))
    before = timeline(
        rows[:first],
        [row for row in order if row in rows[first:second]],
        [row for row in order if row in rows[second:]],
        data.draw(st.lists(st.floats(-1, 1, width=32), min_size=count, max_size=count)),
    )
    epsilon = data.draw(st.floats(0, 1))
    after, probabilities = explore(before, given_, np.zeros(count, np.float32), epsilon, data.draw(st.text()))

    assert sorted([*after.icymi, *after.ranked, *after.remainder]) == list(range(count))
    assert after.icymi.tolist() == before.icymi.tolist()
    assert len(after.ranked) == len(before.ranked)
    assert len(set(after.ranked.tolist()) - set(before.ranked.tolist())) <= 1
    for section in (after.ranked, after.remainder):
        assert section.tolist() == [row for row in order if row in section]
    np.testing.assert_allclose(probabilities.sum(), second, rtol=1e-5)


def test_raw_relevance_goes_before_age() -> None:
    """Of two with the lowest score the one of less raw relevance gives its slot, though the other is older."""
    tied = timeline([], [0, 1], [2], [0.5, 0.5, 0.1])
    raw = np.array([0.1, 0.2, 0], np.float32)
    _, probabilities = explore(tied, candidates([30, 20, 10]), raw, 1.0, "r")

    assert probabilities.tolist() == [0, 1, 1]
