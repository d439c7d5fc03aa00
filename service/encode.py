"""From arrays to protobuf.

`extend(ndarray)` of protobuf 7.36's Linux wheels boxes every number: 600 us for 3,000 floats where this was written,
`extend(array.tolist())` 120 us. The wire form of a packed float field is the array's own bytes behind a tag and a
length, and the parser copies those at once: `add_floats` takes 3 us. Integers are varints on the wire, so ids take
the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from google.protobuf.message import Message

from service.align import ColumnCounts, Counts
from service.decode import Candidates, Floats
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import served_log_pb2
from service.limits import Limits
from service.model import Served
from service.scoring import Scores
from service.timeline import Rows, Timeline


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
        degradation=pb.DEGRADATION_NONE,
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
        section.tweet_ids.extend(candidates.tweet_ids[rows].tolist())
        add_floats(section, pb.Section.SCORES_FIELD_NUMBER, timeline.scores[rows])
        add_floats(section, pb.Section.PROBABILITIES_FIELD_NUMBER, scores.probabilities[rows])
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
    response.tweet_ids.extend(candidates.tweet_ids.tolist())
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


def describe_response(served: Served, limits: Limits) -> pb.DescribeModelResponse:
    """The answer to DescribeModel."""
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
    )


def _columns(counts: ColumnCounts) -> pb.FeatureCounts.Columns:
    return pb.FeatureCounts.Columns(**counts._asdict())


def add_floats(message: Message, field_number: int, values: Floats) -> None:
    """Appends an array, in C order, to a packed repeated float field."""
    content = values.astype("<f4", copy=False).tobytes()
    message.MergeFromString(b"".join((_tag(field_number), _varint(len(content)), content)))


def _tag(field_number: int) -> bytes:
    return bytes((field_number << 3 | 2,))  # 2: what follows has a length; field numbers here are below 16


def _varint(value: int) -> bytes:
    """Protobuf's integers: seven bits a byte, the lowest first, the high bit says that more follow."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
