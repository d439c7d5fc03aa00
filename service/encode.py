"""From arrays to protobuf."""

from __future__ import annotations

import functools
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
from service.wire import add_floats, field, packed, packed_ids

_SECTIONS = (
    pb.RankTimelineResponse.ICYMI_FIELD_NUMBER,
    pb.RankTimelineResponse.RANKED_FIELD_NUMBER,
    pb.RankTimelineResponse.REMAINDER_FIELD_NUMBER,
)
# Stage -> where its time stands.
_TIMINGS = {name.removesuffix("_us"): name for name in pb.Timings.DESCRIPTOR.fields_by_name}


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
    explanation: pb.Explanation | None,
) -> bytes:
    """The serialised answer to RankTimeline."""
    response = pb.RankTimelineResponse(
        request_id=request_id,
        icymi_decision=timeline.decision,
        degradation=timeline.degradation,
        timings=pb.Timings(**{_TIMINGS[stage]: ns // 1_000 for stage, ns in stages_ns.items()}),
        explanation=explanation,
    )
    sections = zip(_SECTIONS, (timeline.icymi, timeline.ranked, timeline.remainder), strict=True)
    # An empty section is there too, in JSON and for clients that know null.
    parts = [field(number, _section(rows, candidates, timeline.scores, scores)) for number, rows in sections]
    return b"".join((response.SerializeToString(), served.fields, _features(counts), *parts))


def _section(rows: Rows, candidates: Candidates, relevance_scores: Floats, scores: Scores) -> bytes:
    """A serialised Section of these rows."""
    if not len(rows):
        return b""
    varints = candidates.tweet_id_varints
    ids = packed_ids(candidates.tweet_ids[rows]) if varints is None else packed(varints.take(rows, axis=0))
    return b"".join(
        (
            field(pb.Section.TWEET_IDS_FIELD_NUMBER, ids),
            field(pb.Section.SCORES_FIELD_NUMBER, packed(relevance_scores.take(rows))),
            field(pb.Section.PROBABILITIES_FIELD_NUMBER, packed(scores.probabilities.take(rows, axis=0))),
        )
    )


def explanation_of(rows: Rows, scores: Scores, timeline: Timeline, contributions: Contributions) -> pb.Explanation:
    """Why the Tweets in `rows` (icymi, then ranked) are where they are."""
    explanation = pb.Explanation()
    factors = np.ones(len(rows), np.float32) if timeline.factors is None else timeline.factors[rows]
    add_floats(explanation, pb.Explanation.RAW_PROBABILITIES_FIELD_NUMBER, scores.raw[rows])
    add_floats(explanation, pb.Explanation.POLICY_FACTORS_FIELD_NUMBER, factors)
    add_floats(explanation, pb.Explanation.VIEWER_FIELD_NUMBER, contributions.viewer)
    add_floats(explanation, pb.Explanation.AUTHORS_FIELD_NUMBER, contributions.authors)
    add_floats(explanation, pb.Explanation.TWEETS_FIELD_NUMBER, contributions.tweets)
    return explanation


def score_response(
    request_id: str, candidates: Candidates, scores: Scores, relevance: Floats, raw: bool, served: Served
) -> bytes:
    """The serialised answer to ScoreTweets; `raw`: with the probabilities before calibration."""
    response = pb.ScoreTweetsResponse(
        request_id=request_id, heads=served.model.schema.head_names, model_version=served.model.version
    )
    fields = [
        response.SerializeToString(),
        field(pb.ScoreTweetsResponse.TWEET_IDS_FIELD_NUMBER, packed_ids(candidates.tweet_ids)),
        field(pb.ScoreTweetsResponse.PROBABILITIES_FIELD_NUMBER, packed(scores.probabilities)),
        field(pb.ScoreTweetsResponse.SCORES_FIELD_NUMBER, packed(relevance)),
    ]
    if raw:
        fields.append(field(pb.ScoreTweetsResponse.RAW_PROBABILITIES_FIELD_NUMBER, packed(scores.raw)))
    return b"".join(fields)


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


@functools.lru_cache(maxsize=256)
def _features(counts: Counts) -> bytes:
    """What became of the columns, as a field of a response; most callers always send the same ones."""
    features = pb.FeatureCounts(
        viewer=_columns(counts.viewer), authors=_columns(counts.authors), tweets=_columns(counts.tweets)
    )
    return pb.RankTimelineResponse(features=features).SerializeToString()


def _columns(counts: ColumnCounts) -> pb.FeatureCounts.Columns:
    return pb.FeatureCounts.Columns(**counts._asdict())
