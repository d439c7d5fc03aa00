"""Requests and answers, small enough to read, for tests of what people see of a timeline."""

from __future__ import annotations

import math

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb

NOW_MS = 1_700_000_000_000
MINUTE_MS = 60_000


def request() -> pb.RankTimelineRequest:
    """Tweets 11 to 14, ages 5 minutes, 3 hours, 2 days and one minute ahead, by authors 900 and 901 (11 and 14)."""
    nan = math.nan
    return pb.RankTimelineRequest(
        request_id="r-1",
        viewer_id=77,
        request_time_ms=NOW_MS,
        candidates=pb.Candidates(
            tweet_ids=[11, 12, 13, 14],
            created_at_ms=[
                NOW_MS - 5 * MINUTE_MS,
                NOW_MS - 180 * MINUTE_MS,
                NOW_MS - 2880 * MINUTE_MS,
                NOW_MS + MINUTE_MS,
            ],
            author_index=[1, 0, 0, 1],
            author_ids=[900, 901, 902],
            tweets=pb.FeatureTable(
                columns=["likes", "has_link_card", "is_reply"],
                values=[1, 1, 1, 1, nan, 0, 0, 0, 1, nan, nan, nan],
                categorical=[pb.CategoricalColumn(name="language", vocabulary=["en", "ja"], indices=[0, 1, 2, 2])],
            ),
        ),
    )


def explained() -> pb.RankTimelineResponse:
    """The same with an explanation of Tweets 13 and 11."""
    answer = response()
    answer.explanation.CopyFrom(pb.Explanation(viewer=[0.25, 0], authors=[1.125, 0.5], tweets=[-0.125, 0.03125]))
    return answer


def response() -> pb.RankTimelineResponse:
    """Tweet 13 in ICYMI, 11 ranked, 14 (not scored) and 12 in the remainder."""
    nan = math.nan
    return pb.RankTimelineResponse(
        request_id="r-1",
        icymi=pb.Section(tweet_ids=[13], scores=[1.25], probabilities=[0.5, 0.25]),
        ranked=pb.Section(tweet_ids=[11], scores=[0.5], probabilities=[0.125, 0.0]),
        remainder=pb.Section(tweet_ids=[14, 12], scores=[nan, -0.25], probabilities=[nan, nan, 0.03125, 0.00048828125]),
        icymi_decision=pb.ICYMI_DECISION_SHOWN,
        degradation=pb.DEGRADATION_PARTIAL,
        heads=["like", "negative_feedback"],
        served_by=pb.ServedBy(model_version="abc123", policy_version="def456", arms={"ranker": "b"}),
        timings=pb.Timings(decode_us=100, queue_us=0, align_us=20, score_us=700, combine_us=30, build_us=150),
        features=pb.FeatureCounts(
            viewer=pb.FeatureCounts.Columns(present=1, absent=2),
            tweets=pb.FeatureCounts.Columns(present=4, unknown=3),
        ),
    )
