"""How far two answers agree: by hand, and against scipy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from service.agreement import TOP_K, Tally, compare, rank_correlation
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb

NAN = math.nan


def answer(
    ids: Sequence[int],
    scores: Sequence[float],
    likes: Sequence[float] | None = None,
    heads: Sequence[str] = ("like",),
    ranked: int = 0,
) -> pb.RankTimelineResponse:
    """The first `ranked` Tweets are the ranked section, the others the remainder; all heads have the same values."""
    likes = scores if likes is None else likes
    probabilities = np.repeat(np.asarray(likes, np.float32), len(heads)).reshape(len(ids), len(heads))

    def section(part: slice) -> pb.Section:
        values = probabilities[part].ravel().tolist()
        return pb.Section(tweet_ids=ids[part], scores=scores[part], probabilities=values)

    return pb.RankTimelineResponse(
        heads=heads,
        ranked=section(slice(0, ranked)),
        remainder=section(slice(ranked, None)),
        icymi_decision=pb.ICYMI_DECISION_FIRST_VISIT,
        degradation=pb.DEGRADATION_NONE,
    )


def test_an_answer_agrees_with_itself() -> None:
    """Overlap and correlation 1, no difference, whatever the sections hold."""
    one = answer([3, 1, 2], [0.5, 0.25, 0.125], ranked=2)
    agreement = compare(one, one)

    assert agreement.same(0)
    assert (agreement.top_overlap, agreement.rank_correlation) == (1, 1)
    assert agreement.differences["like"].tolist() == [0, 0, 0]
    assert agreement.score_differences.tolist() == [0, 0, 0]


def test_tweets_are_matched_by_their_ids() -> None:
    """The same scores in other sections: differences 0, but not the same timeline."""
    agreement = compare(
        answer([1, 2, 3], [0.5, 0.25, 0.125], ranked=1), answer([2, 1, 3], [0.25, 0.5, 0.125], ranked=1)
    )

    assert not agreement.same(1)
    assert agreement.top_overlap == agreement.rank_correlation == 1
    assert not agreement.score_differences.any()


def test_differences_are_of_the_other_from_the_one() -> None:
    """Signed, by Tweet, in order of the ids; the tolerance is inclusive and looks at probabilities and at scores."""
    one = answer([1, 2], [1.0, 2.0], likes=[0.5, 0.25])
    agreement = compare(one, answer([1, 2], [1.0, 2.5], likes=[0.25, 0.25]))

    assert agreement.differences["like"].tolist() == [-0.25, 0]
    assert agreement.score_differences.tolist() == [0, 0.5]
    assert agreement.same(0.5)
    assert not agreement.same(0.3)
    assert not compare(one, answer([1, 2], [1.0, 2.0], likes=[0.5, 0.5])).same(0.2)


def test_overlap_by_hand() -> None:
    """Of twelve Tweets the last two are the worst here and the best there: eight of the best ten remain."""
    ids = list(range(1, 13))
    scores = [float(12 - i) for i in range(12)]
    other = [*scores[:10], 101.0, 102.0]

    assert compare(answer(ids, scores), answer(ids, other)).top_overlap == 0.8
    assert TOP_K == 10


def test_ties_at_the_edge_of_the_top_go_to_the_larger_id() -> None:
    """Of eleven equal Tweets the smallest id is left out, on both sides, whatever the order of the sections."""
    ids = list(range(1, 12))

    assert compare(answer(ids, [1.0] * 11), answer(ids[::-1], [1.0] * 11)).top_overlap == 1


def test_only_common_heads_and_common_tweets_count() -> None:
    """Another model may know other heads; what is not there on both sides makes the timelines different."""
    one = answer([1, 2, 3], [0.5, 0.25, 0.125], heads=["like", "reply"])
    other = answer([2, 3, 4], [0.5, 0.125, 1.0], heads=["click", "reply"])
    agreement = compare(one, other)

    assert set(agreement.differences) == {"reply"}
    assert agreement.differences["reply"].tolist() == [0.25, 0]
    assert not agreement.same(1)


def test_unscored_tweets_do_not_count() -> None:
    """They are no difference where both left them unscored, and a different timeline where only one did."""
    one = answer([1, 2, 3], [0.5, NAN, 0.25])

    assert compare(one, one).same(0)
    assert compare(one, one).score_differences.tolist() == [0, 0]
    assert not compare(one, answer([1, 2, 3], [0.5, 0.3, 0.25])).same(1)


@pytest.mark.parametrize("field", ["icymi_decision", "degradation"])
def test_a_decision_is_part_of_the_timeline(field: str) -> None:
    """The same Tweets, shown for another reason."""
    one, other = answer([1], [0.5]), answer([1], [0.5])
    setattr(other, field, 3)

    assert not compare(one, other).same(1)


def test_nothing_to_compare() -> None:
    """Without Tweets the timelines are the same and the figures not defined; nor is the correlation of all ties."""
    empty = compare(answer([], []), answer([], []))

    assert empty.same(0)
    assert math.isnan(empty.top_overlap)
    assert math.isnan(empty.rank_correlation)
    assert math.isnan(rank_correlation(np.ones(3), np.arange(3.0)))
    assert math.isnan(rank_correlation(np.ones(1), np.ones(1)))


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=40))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    """With many ties, and undefined in the same cases."""
    one, other = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        expected = stats.spearmanr(one, other).statistic

    np.testing.assert_allclose(rank_correlation(one, other), expected, atol=1e-12)


def test_a_tally_by_hand() -> None:
    """Means are over requests for overlap and correlation, over Tweets for differences; the undefined is left out."""
    tally = Tally()
    tally.add(compare(answer([1, 2], [1.0, 2.0], likes=[0.5, 0.5]), answer([1, 2], [2.0, 1.0], likes=[0.25, 0.625])))
    tally.add(compare(answer([], []), answer([], [])))
    tally.add(compare(answer([1, 2], [1.0, 2.0], likes=[0.5, 0.5]), answer([1, 2], [1.0, 2.0], likes=[0.5, 0.5])))

    assert tally.compared == 3
    assert (tally.rank_correlation.mean, tally.rank_correlation.min) == (0, -1)
    assert (tally.top_overlap.mean, tally.top_overlap.count) == (1, 2)
    like = tally.heads["like"]
    assert (like.count, like.mean, like.mean_size, like.largest) == (4, -0.125 / 4, 0.375 / 4, 0.25)
    assert (tally.score.mean, tally.score.mean_size, tally.score.largest) == (0, 0.5, 1)


def test_an_empty_tally_has_no_means() -> None:
    """NaN, not 0."""
    tally = Tally()

    assert all(
        math.isnan(x) for x in (tally.top_overlap.mean, tally.top_overlap.min, tally.score.mean, tally.score.mean_size)
    )
