from __future__ import annotations

import pytest

from loadtest.bench import Costs, check_answer, measures
from loadtest.measures import Measure
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb


def test_the_ratio_is_taken_within_each_repetition() -> None:
    """A slow repetition is slow on both sides: medians of the parts would give 400 / 110."""
    costs = [Costs(server=500, session=100, echo=200), Costs(1_000, 200, 400), Costs(330, 0, 110)]

    found = measures("P1", costs)

    assert found["P1"] == Measure(value=2.0, min=2.0, max=3.0, unit="ratio")
    assert found["P1_us"] == Measure(value=400, min=330, max=800, unit="us")
    assert found["P1_server_us"].value == 500
    assert found["P1_session_us"].value == 100
    assert found["P1_echo_us"].value == 200


def answer(
    *sections: list[int], degradation: pb.Degradation.ValueType = pb.DEGRADATION_NONE
) -> pb.RankTimelineResponse:
    icymi, ranked, remainder = (pb.Section(tweet_ids=ids) for ids in sections)
    return pb.RankTimelineResponse(icymi=icymi, ranked=ranked, remainder=remainder, degradation=degradation)


REQUEST = pb.RankTimelineRequest(request_id="r", candidates=pb.Candidates(tweet_ids=[3, 1, 2]))


def test_an_answer_with_every_tweet_once_is_good() -> None:
    """In whatever section."""
    check_answer(REQUEST, answer([2], [1], [3]))


@pytest.mark.parametrize(
    "response",
    [
        answer([2], [1], []),
        answer([2], [1], [3, 3]),
        answer([2], [1], [4]),
        answer([2], [1], [3], degradation=pb.DEGRADATION_PARTIAL),
    ],
    ids=["one missing", "one twice", "one of others", "not all scored"],
)
def test_an_answer_that_is_not_the_full_ranking_stops_the_measurement(response: pb.RankTimelineResponse) -> None:
    """What is cheap because it is wrong is not measured."""
    with pytest.raises(ValueError, match=r"^r: "):
        check_answer(REQUEST, response)
