"""Sums over earlier days, against loops over rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.datasets.history import PastTotals, counts, smoothed_rate

ROWS = st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 6), st.integers(0, 1000)), max_size=40)
QUERIES = st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 8)), max_size=10)


def _array(values: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


@given(rows=ROWS, queries=QUERIES, window=st.none() | st.integers(1, 4))
def test_sums_the_days_strictly_before(
    rows: list[tuple[int, int, int]], queries: list[tuple[int, int]], window: int | None
) -> None:
    """Rows and sums are what a loop over all rows finds; an unknown key has none."""
    past = PastTotals.of(
        _array([key for key, _, _ in rows]), _array([day for _, day, _ in rows]), _array([v for *_, v in rows])[:, None]
    )
    keys, days = _array([key for key, _ in queries]), _array([day for _, day in queries])
    found_rows, found_sums = past.before(keys, days, window)
    since = past.days_since(keys, days)
    for i, (key, today) in enumerate(queries):
        earliest = 0 if window is None else today - window
        seen = [value for k, day, value in rows if k == key >= 0 and earliest <= day < today]
        assert found_rows[i] == len(seen)
        assert found_sums[i, 0] == sum(seen)
        days_seen = [day for k, day, _ in rows if k == key >= 0 and day < today]
        assert since[i] == today - max(days_seen) if days_seen else np.isnan(since[i])


def test_rate_is_pulled_to_the_prior_and_absent_without_rows() -> None:
    """Worked by hand: 1 of 2 with 2 imaginary rows at 0.25 is 1.5 of 4."""
    rate = smoothed_rate(_array([1, 0]), _array([2, 0]), np.array([0.25, 0.25]), strength=2)
    assert rate[0] == pytest.approx(0.375)
    assert np.isnan(rate[1])


@given(st.lists(st.integers(-1, 5)), st.lists(st.integers(-1, 5)))
def test_counts_how_often_each_needle_is_there(haystack: list[int], needles: list[int]) -> None:
    """Like list.count."""
    assert counts(np.sort(_array(haystack)), _array(needles)).tolist() == [haystack.count(n) for n in needles]
