"""From arrays to protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from service.align import ColumnCounts, Counts
from service.decode import Candidates, Floats
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import served_log_pb2
from service.limits import Limits
from service.model import LoadResult, Model, Served
from service.scoring import Scores
from service.timeline import Rows, Timeline
from service.wire import add_floats, add_ids


class Contributions(NamedTuple):
    """What each group of features adds to the relevance of T Tweets; float32 [T] each."""

    viewer: Floats
    authors: Floats
    tweets: Floats


def rank_response(
    request_id: str,
    candidates: Candidates,
    timeline: Timeline,
    scores: Scores,
    counts: Counts,
    served: Served,
    stages_ns: Mapping[str, int],
) -> pb.RankTimelineResponse:
    """The answer to RankTimeline, without an explanation."""
    response = pb.RankTimelineResponse(
        request_id=request_id,
        icymi_decision=timeline.decision,
        degradation=timeline.degradation,
        heads=served.model.schema.head_names,
        served_by=pb.ServedBy(
            model_version=served.model.version, policy_version=served.policy.version, arms=served.arms
        ),
        timings=pb.Timings(**{f"{stage}_us": ns // 1_000 for stage, ns in stages_ns.items()}),
        features=pb.FeatureCounts(
            viewer=_columns(counts.viewer), authors=_columns(counts.authors), tweets=_columns(counts.tweets)
        ),
    )
    for section, rows in (
        (response.icymi, timeline.icymi),
        (response.ranked, timeline.ranked),
        (response.remainder, timeline.remainder),
    ):
        section.SetInParent()  # an empty section is there too, in JSON and for clients that know null
        add_ids(section, pb.Section.TWEET_IDS_FIELD_NUMBER, candidates.tweet_ids[rows])
        add_floats(section, pb.Section.SCORES_FIELD_NUMBER, timeline.scores[rows])
        add_floats(section, pb.Section.PROBABILITIES_FIELD_NUMBER, scores.probabilities.take(rows, axis=0))
    return response


def add_explanation(
    response: pb.RankTimelineResponse, rows: Rows, scores: Scores, timeline: Timeline, contributions: Contributions
) -> None:
    """Adds why the Tweets in `rows` (icymi, then ranked) are where they are."""
    explanation = response.explanation
    explanation.SetInParent()
    add_floats(explanation, pb.Explanation.RAW_PROBABILITIES_FIELD_NUMBER, scores.raw[rows])
    add_floats(explanation, pb.Explanation.POLICY_FACTORS_FIELD_NUMBER, timeline.factors[rows])
    add_floats(explanation, pb.Explanation.VIEWER_FIELD_NUMBER, contributions.viewer)
    add_floats(explanation, pb.Explanation.AUTHORS_FIELD_NUMBER, contributions.authors)
    add_floats(explanation, pb.Explanation.TWEETS_FIELD_NUMBER, contributions.tweets)


def score_response(
    request_id: str, candidates: Candidates, scores: Scores, relevance: Floats, raw: bool, served: Served
) -> pb.ScoreTweetsResponse:
    """The answer to ScoreTweets; `raw`: with the probabilities before calibration."""
    response = pb.ScoreTweetsResponse(
        request_id=request_id, heads=served.model.schema.head_names, model_version=served.model.version
    )
    add_ids(response, pb.ScoreTweetsResponse.TWEET_IDS_FIELD_NUMBER, candidates.tweet_ids)
    add_floats(response, pb.ScoreTweetsResponse.PROBABILITIES_FIELD_NUMBER, scores.probabilities)
    if raw:
        add_floats(response, pb.ScoreTweetsResponse.RAW_PROBABILITIES_FIELD_NUMBER, scores.raw)
    add_floats(response, pb.ScoreTweetsResponse.SCORES_FIELD_NUMBER, relevance)
    return response


def served_record(
    timeline: Timeline,
    inclusion_probabilities: Floats | None,
    *,
    viewer_id: int,
    served_at_ms: int,
    response: bytes,
    request: bytes,
) -> served_log_pb2.ServedRecord:
    """A timeline as the served log has it.

    Args:
        timeline: Of N candidates.
        inclusion_probabilities: [N]; None: nothing was explored, so what is in icymi or ranked was certain to be.
        viewer_id: Whose it is.
        served_at_ms: The server's time when the request came, Unix ms.
        response: The RankTimelineResponse as sent.
        request: The RankTimelineRequest as received; empty where it is not to be in the log.
    """
    record = served_log_pb2.ServedRecord(
        viewer_id=viewer_id, served_at_ms=served_at_ms, response=response, request=request
    )
    rows = np.concatenate((timeline.icymi, timeline.ranked, timeline.remainder))
    if inclusion_probabilities is None:
        probabilities = np.zeros(len(rows), np.float32)
        probabilities[: len(rows) - len(timeline.remainder)] = 1
    else:
        probabilities = inclusion_probabilities[rows]
    add_floats(record, served_log_pb2.ServedRecord.INCLUSION_PROBABILITIES_FIELD_NUMBER, probabilities)
    return record


def describe_response(
    served: Served, limits: Limits, models: Mapping[str, Model], loads: Mapping[str, LoadResult]
) -> pb.DescribeModelResponse:
    """The answer to DescribeModel; `models` by label, `loads` by version."""
    schema = served.model.schema
    weights = served.policy.policy.head_weights
    return pb.DescribeModelResponse(
        model_version=served.model.version,
        features=[
            pb.Feature(name=f.name, group=f.group, kind=f.kind, unit=f.unit, vocabulary=f.vocabulary, width=f.width)
            for f in schema.features
        ],
        heads=[pb.Head(name=h.name, weight=weights[h.name], sign=h.sign) for h in schema.heads],
        policy_toml=served.policy.toml,
        limits=pb.Limits(**{name: getattr(limits, name) for name in pb.Limits.DESCRIPTOR.fields_by_name}),
        serving={label: model.version for label, model in models.items()},
        loads=[pb.ModelLoad(version=v, faults=load.faults, at_ms=load.at_ms) for v, load in loads.items()],
    )


def _columns(counts: ColumnCounts) -> pb.FeatureCounts.Columns:
    return pb.FeatureCounts.Columns(**counts._asdict())
