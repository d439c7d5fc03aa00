"""From arrays to protobuf: what becomes of a served timeline in the log."""

from __future__ import annotations

import numpy as np

from service.encode import served_record
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1.served_log_pb2 import ServedRecord
from service.timeline import Timeline

# Rows 3 and then 0, 4 on top; 2 and 1 beneath.
TIMELINE = Timeline(
    icymi=np.array([3]),
    ranked=np.array([0, 4]),
    remainder=np.array([2, 1]),
    decision=pb.ICYMI_DECISION_SHOWN,
    scores=np.zeros(5, np.float32),
    factors=np.ones(5, np.float32),
)


def test_a_record_follows_the_sections() -> None:
    """Inclusion probabilities stand in the order of icymi, ranked, remainder; bytes stay what they are."""
    probabilities = np.array([0.75, 0.125, 0.0625, 1, 0.5], np.float32)
    record = served_record(TIMELINE, probabilities, viewer_id=7, served_at_ms=99, response=b"a", request=b"b")

    assert record == ServedRecord(
        viewer_id=7,
        served_at_ms=99,
        response=b"a",
        request=b"b",
        inclusion_probabilities=[1, 0.75, 0.5, 0.0625, 0.125],
    )


def test_without_exploration_places_were_certain() -> None:
    """1 for icymi and ranked, 0 for the remainder."""
    record = served_record(TIMELINE, None, viewer_id=7, served_at_ms=99, response=b"", request=b"")

    assert list(record.inclusion_probabilities) == [1, 1, 1, 0, 0]
