"""Whole arrays into repeated fields: what comes out is what went in, in the bytes that protobuf itself would write."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from service.decode import Floats
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.wire import add_floats, add_ids

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


exponents = st.integers(0, 62)
ids_alike = exponents.flatmap(lambda e: st.lists(st.integers(2**e, 2 ** (e + 1) - 1), max_size=60))
ids_of_any_kind = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 300), max_size=60)


@given((ids_alike | ids_of_any_kind).map(lambda ids: np.array(ids, np.int64)))
def test_ids_come_back(ids: NDArray[np.int64]) -> None:
    """Real ids, which are alike in length, and any others; zero, negative ones and the edges of every length."""
    section = pb.Section()

    add_ids(section, pb.Section.TWEET_IDS_FIELD_NUMBER, ids)

    assert list(section.tweet_ids) == ids.tolist()
    assert section.SerializeToString() == pb.Section(tweet_ids=ids.tolist()).SerializeToString()


def test_ids_at_the_edges_of_every_length() -> None:
    """The largest of each length and the smallest of the next."""
    for bits in range(7, 63, 7):
        for ids in ([2**bits - 1] * 2, [2**bits] * 2, [2**bits - 1, 2**bits], [0, 2**bits]):
            section = pb.Section()
            add_ids(section, pb.Section.TWEET_IDS_FIELD_NUMBER, np.array(ids))
            assert list(section.tweet_ids) == ids


def test_ids_are_appended() -> None:
    """What was there stays."""
    section = pb.Section(tweet_ids=[7])

    add_ids(section, pb.Section.TWEET_IDS_FIELD_NUMBER, np.array([8, 9]))

    assert list(section.tweet_ids) == [7, 8, 9]
