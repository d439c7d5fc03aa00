"""Whole arrays into repeated fields: what comes out is what went in, in the bytes that protobuf itself would write."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.decode import Floats
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1.served_log_pb2 import ServedRecord
from service.wire import add_floats, field, packed, packed_ids

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


ids_of_any_kind = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 300), max_size=60)


@given(ids_of_any_kind)
def test_ids_in_the_bytes_of_protobuf(ids: list[int]) -> None:
    """Zero, negative ones, ids of every length; a field put together from them is the message's own."""
    content = packed_ids(np.array(ids, np.int64))

    assert content == b"" or field(1, content) == pb.Section(tweet_ids=ids).SerializeToString()
    assert list(pb.Section.FromString(field(1, content)).tweet_ids) == ids


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=float32s), st.binary(min_size=1, max_size=300))
def test_fields_make_a_message(floats: Floats, content: bytes) -> None:
    """Lengths of one byte and of two."""
    assert field(2, packed(floats)) == pb.Section(scores=floats.tolist()).SerializeToString()
    assert field(5, content) == ServedRecord(request=content).SerializeToString()


def test_varints_go_through_as_they_are() -> None:
    """Rows of bytes, picked in another order."""
    varints = np.array([[0xAC, 2], [0xAD, 2], [0xAE, 2]], np.uint8)

    section = pb.Section.FromString(field(1, packed(varints.take([2, 0], axis=0))))

    assert list(section.tweet_ids) == [302, 300]
