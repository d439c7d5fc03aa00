"""From arrays to protobuf: floats go in by their wire form, and come out as they were."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.decode import Floats
from service.encode import add_floats, served_record
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1.served_log_pb2 import ServedRecord
from service.timeline import Timeline

float32s = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=300), elements=float32s))
def test_floats_come_back_bit_for_bit(values: Floats) -> None:
    """Any length, any shape, any float: what protobuf's own parser makes of it is what protobuf's own extend makes."""
    section = pb.Section()

    add_floats(section, pb.Section.PROBABILITIES_FIELD_NUMBER, values)

    np.testing.assert_array_equal(np.asarray(section.probabilities, dtype=np.float32), values.ravel())
    assert section.SerializeToString() == pb.Section(probabilities=values.ravel().tolist()).SerializeToString()


def test_floats_that_are_not_contiguous() -> None:
    """A transposed array goes in by its rows."""
    section = pb.Section()

    add_floats(section, pb.Section.SCORES_FIELD_NUMBER, np.array([[1, 2], [3, 4]], np.float32).T)

    assert list(section.scores) == [1, 3, 2, 4]


def test_floats_are_appended() -> None:
    """What was there stays."""
    section = pb.Section(scores=[0.5])

    add_floats(section, pb.Section.SCORES_FIELD_NUMBER, np.array([1, 2], np.float32))

    assert list(section.scores) == [0.5, 1, 2]


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
