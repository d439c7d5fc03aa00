"""Random numbers by hash, and the counts made of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model_export.datasets.world_draws import bell, count, part_of, uniform

KEYS = np.arange(100_000)


def test_uniform_is_uniform() -> None:
    """Every tenth of [0, 1) gets a tenth of the numbers, within five standard deviations."""
    counts, _edges = np.histogram(uniform(3, "a", KEYS, KEYS % 7), bins=10, range=(0, 1))

    assert (np.abs(counts - 10_000) < 5 * np.sqrt(100_000 * 0.1 * 0.9)).all()


def test_bell_has_mean_0_and_variance_1() -> None:
    """Its moments are a standard normal's, its range is bounded."""
    values = bell(3, "a", KEYS)

    assert abs(values.mean()) < 0.015
    assert abs(values.std() - 1) < 0.01
    assert np.abs(values).max() < 3.5


def test_draws_differ_by_seed_name_and_every_key() -> None:
    """Changing any one of them gives numbers that have nothing to do with the first ones."""
    first = uniform(3, "a", KEYS, KEYS)
    others = [
        uniform(4, "a", KEYS, KEYS),
        uniform(3, "b", KEYS, KEYS),
        uniform(3, "a", KEYS, KEYS + 1),
        uniform(3, "a", KEYS + 1, KEYS),
        uniform(3, "a", KEYS),
    ]

    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.015


def test_draws_do_not_depend_on_their_neighbours() -> None:
    """A value is a function of its keys alone."""
    np.testing.assert_array_equal(uniform(3, "a", KEYS[::-1][:10]), uniform(3, "a", KEYS)[::-1][:10])


def test_count_is_right_on_average() -> None:
    """Rounding up as often as the fraction says keeps the mean."""
    values = count(np.full(100_000, 0.3), uniform(3, "a", KEYS))

    assert set(np.unique(values)) == {0.0, 1.0}
    assert abs(values.mean() - 0.3) < 0.01


@given(
    total=st.integers(0, 10**6),
    smaller=st.integers(0, 10**6),
    kept=st.floats(0, 90),
    days=st.integers(1, 90),
    shorter=st.integers(1, 90),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_parts_nest(total: int, smaller: int, kept: float, days: int, shorter: int, draw: float) -> None:
    """Fewer days or a smaller total never hold more; as many days as were kept hold all."""

    def part(of: int, last: int) -> float:
        return float(part_of(np.array([float(of)]), np.array([kept]), last, np.array([draw]))[0])

    assert 0 <= part(total, days) <= total
    assert part(total, min(shorter, days)) <= part(total, days)
    assert part(min(smaller, total), days) <= part(total, days)
    if days >= kept:
        assert part(total, days) == total
