"""Row numbers and negative sampling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.datasets.records import Impressions
from model_export.sampling import negative_rates, prior_corrected, row_uniform, used_by_head

MASK = 2**64 - 1


def splitmix64(x: int) -> int:
    """The published step, on Python's integers."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


ids = st.integers(-(2**63), 2**63 - 1)


@given(ids, ids, ids, st.integers(0, 2**63))
def test_row_number_is_a_chain_of_splitmix64_steps(viewer: int, tweet: int, session: int, seed: int) -> None:
    """Against exact integer arithmetic, any ids and seed."""
    state = seed
    for part in (viewer, tweet, session):
        state = splitmix64(state ^ (part & MASK))
    row = {"viewer_id": np.array([viewer]), "tweet_id": np.array([tweet]), "session": np.array([session])}

    assert row_uniform(row, seed)[0] == (state >> 11) / 2**53


def test_row_numbers_are_uniform_and_independent_between_seeds(
    make_impressions: Callable[[int, int], Impressions],
) -> None:
    """20 equal cells hold what they should, within 5 standard deviations; two seeds do not correlate."""
    impressions = make_impressions(20_000, 0)
    first, second = row_uniform(impressions.ids, 1), row_uniform(impressions.ids, 2)

    counts = np.histogram(first, 20, (0, 1))[0]
    assert np.abs(counts - 1_000).max() < 5 * np.sqrt(1_000 * 0.95)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(20_000)


def test_row_numbers_follow_the_rows(make_impressions: Callable[[int, int], Impressions]) -> None:
    """Another order or another batch of the same rows gives each its number again."""
    impressions = make_impressions(100, 0)
    order = np.random.default_rng(0).permutation(100)

    assert (row_uniform(impressions.take(order).ids, 3) == row_uniform(impressions.ids, 3)[order]).all()


def test_rates_reach_the_wanted_negatives_and_never_exceed_one() -> None:
    """Worked by hand: 10 of 1,010 want 50 of 1,000 negatives; 500 of 1,010 want more than there are; none: keep all."""
    rates = negative_rates(np.array([10, 500, 0]), 1_010, 5.0)

    assert rates.tolist() == [pytest.approx(0.05), 1.0, 1.0]


def test_every_head_keeps_its_positives_and_its_share_of_negatives() -> None:
    """The head of the smaller rate uses a part of what the other one uses."""
    labels = np.array([[1, 0], [0, 1], [0, 0], [0, 0]], np.uint8)
    used = used_by_head(labels, np.array([0.9, 0.9, 0.05, 0.3]), np.array([0.1, 0.5]))

    assert used.tolist() == [[True, False], [False, True], [True, True], [False, True]]


@given(st.floats(0.001, 0.999), st.floats(0.0001, 1))
def test_prior_correction_inverts_the_sampling_of_negatives(probability: float, rate: float) -> None:
    """In the sampled world p becomes p / (p + (1 - p) rate); corrected it is p again."""
    sampled = np.array([probability / (probability + (1 - probability) * rate)])

    assert prior_corrected(sampled, rate)[0] == pytest.approx(probability, rel=1e-9)


def test_published_rates_give_the_published_probabilities() -> None:
    """A rate of .01 / .8387 turns .5 into .0118 and .9 into .097."""
    corrected = prior_corrected(np.array([0.5, 0.9]), 0.01 / 0.8387)

    assert corrected.tolist() == [pytest.approx(0.0118, abs=1e-4), pytest.approx(0.097, abs=1e-3)]
