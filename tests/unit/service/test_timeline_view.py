from __future__ import annotations

import math

import pytest

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.timeline_view import age_words, probability_words, score_words, timeline_view, tweet_traits
from tests import timelines


def test_joins_each_tweet_of_the_answer_with_what_the_request_said_of_it() -> None:
    """Ids, author, age, section and places all meet in one view."""
    view = timeline_view(timelines.request(), timelines.response(), now_ms=0, round_trip_us=5)

    (best,) = view.sections["icymi"]
    assert (best.tweet_id, best.author_id, best.age_ms) == (13, 900, 2880 * timelines.MINUTE_MS)
    assert (best.score, best.probabilities) == (1.25, (0.5, 0.25))
    assert (best.section, best.place, best.time_place) == ("icymi", 1, 4)
    unscored, last = view.sections["remainder"]
    assert (unscored.tweet_id, unscored.scored, unscored.age_ms) == (14, False, -timelines.MINUTE_MS)
    assert (last.tweet_id, last.scored, last.place) == (12, True, 2)
    assert [tweet.tweet_id for tweet in view.newest_first()] == [14, 11, 12, 13]


def test_counts_authors_that_have_tweets_and_columns_of_all_tables() -> None:
    """An author row that nobody points to is no author of the timeline."""
    view = timeline_view(timelines.request(), timelines.response(), now_ms=0, round_trip_us=5)

    assert view.author_count == 2
    assert view.features == {"present": 5, "absent": 2, "unknown": 3}
    assert list(view.stages_us.items()) == [
        ("decode", 100), ("queue", 0), ("align", 20), ("score", 700), ("combine", 30), ("build", 150),
    ]  # fmt: skip


def test_of_tweets_made_at_once_the_larger_id_is_the_newer() -> None:
    """The same tie-break as the server's sections."""
    request = timelines.request()
    request.candidates.created_at_ms[:] = [5, 5, 5, 5]

    view = timeline_view(request, timelines.response(), now_ms=0, round_trip_us=5)

    assert [tweet.tweet_id for tweet in view.newest_first()] == [14, 13, 12, 11]


def test_ages_count_from_the_callers_clock_where_the_request_names_no_time() -> None:
    """Request time 0 means now."""
    request = timelines.request()
    request.request_time_ms = 0

    view = timeline_view(request, timelines.response(), now_ms=timelines.NOW_MS + 7, round_trip_us=5)

    assert view.sections["icymi"][0].age_ms == 2880 * timelines.MINUTE_MS + 7


@pytest.mark.parametrize("decision", pb.IcymiDecision.values())
def test_every_icymi_decision_has_words(decision: pb.IcymiDecision.ValueType) -> None:
    """A decision added to the API needs words here."""
    response = timelines.response()
    response.icymi_decision = decision

    assert timeline_view(timelines.request(), response, now_ms=0, round_trip_us=5).icymi


@pytest.mark.parametrize("degradation", pb.Degradation.values())
def test_every_degradation_has_words(degradation: pb.Degradation.ValueType) -> None:
    """A rung added to the API needs words here."""
    response = timelines.response()
    response.degradation = degradation

    assert timeline_view(timelines.request(), response, now_ms=0, round_trip_us=5).degradation


def test_traits_are_flags_that_are_one_and_categories_that_are_there() -> None:
    """`is_*` before `has_*` before categories; counts, zeros and absent values say nothing."""
    assert tweet_traits(timelines.request().candidates.tweets, 4) == [
        ("reply", "link card", "en"),
        ("ja",),
        ("reply",),
        (),
    ]


def test_traits_are_the_same_from_a_sparse_table() -> None:
    """The form of the request does not show."""
    table = pb.FeatureTable(
        columns=["likes", "has_link_card", "is_reply"],
        sparse_row_lengths=[3, 0, 1, 2],
        sparse_column_indices=[2, 0, 1, 2, 1, 0],
        sparse_values=[1, 9, 1, 1, 0, 1],
    )

    assert tweet_traits(table, 4) == [("reply", "link card"), (), ("reply",), ()]


def test_a_table_without_columns_or_rows_says_nothing() -> None:
    """Both are legal requests."""
    assert tweet_traits(pb.FeatureTable(), 2) == [(), ()]
    assert tweet_traits(pb.FeatureTable(columns=["is_reply"]), 0) == []


@pytest.mark.parametrize(
    ("age_ms", "words"),
    [
        (0, "now"), (999, "now"), (1_000, "1s"), (59_999, "59s"), (60_000, "1m"), (3_599_999, "59m"), (3_600_000, "1h"),
        (86_399_999, "23h"), (86_400_000, "1d"), (-999, "now"), (-90_000, "in 1m"),
    ],
)  # fmt: skip
def test_an_age_is_told_in_its_largest_whole_unit(age_ms: int, words: str) -> None:
    """Rounded down, so that nothing looks older than it is."""
    assert age_words(age_ms) == words


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (0.0, "<0.01%"), (0.00004, "<0.01%"), (0.00006, "0.01%"), (0.0321, "3.21%"), (0.09994, "9.99%"),
        (0.09996, "10.0%"), (1.0, "100.0%"), (math.nan, "–"),
    ],
)  # fmt: skip
def test_a_probability_is_told_as_a_percentage(probability: float, words: str) -> None:
    """Never more than six signs, and never 0 where there is some."""
    assert probability_words(probability) == words


def test_a_score_that_is_not_there_is_a_dash() -> None:
    """Not scored is not zero."""
    assert (score_words(math.nan), score_words(0.0), score_words(-1.5)) == ("–", "0.0000", "-1.5000")
