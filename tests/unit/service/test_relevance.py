"""The weighted sum over heads, worked out by hand, and the same for a row whatever stands beside it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.decode import Floats
from service.relevance import relevance


def test_weighted_sum() -> None:
    """1 x 0.5 + 2 x 0.25 - 3 x 0.125 = 0.625, and a Tweet of nothing but the unwanted is below zero."""
    probabilities = np.array([[0.5, 0.25, 0.125], [0, 0, 1]], np.float32)

    result = relevance(probabilities, np.array([1.0, 2.0, -3.0]))

    assert result.tolist() == [0.625, -3.0]
    assert result.dtype == np.float32


def test_no_tweets() -> None:
    """Nothing comes of nothing."""
    assert relevance(np.empty((0, 3), np.float32), np.ones(3)).shape == (0,)


@settings(max_examples=50)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 300), st.integers(1, 9)), elements=st.floats(0, 1, width=32)),
    st.integers(0, 2**32 - 1),
)
def test_a_row_does_not_depend_on_its_neighbours(probabilities: Floats, seed: int) -> None:
    """Bit for bit: alone, among others, at another place."""
    rng = np.random.default_rng(seed)
    weights = np.asarray(rng.normal(0, 30, probabilities.shape[1]))
    shuffle = rng.permutation(len(probabilities))

    together = relevance(probabilities, weights)

    assert together[shuffle].tolist() == relevance(probabilities[shuffle], weights).tolist()
    assert together.tolist() == [relevance(row[np.newaxis], weights)[0] for row in probabilities]
