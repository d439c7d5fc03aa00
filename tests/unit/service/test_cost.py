"""What a call is expected to cost, against numpy's fit and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cost import Cost

MS = 1_000_000
# A call takes 1 ms and 10 us for each row.
POINTS = [(0, 1.0 * MS), (1_000, 11.0 * MS)]


def test_two_points_make_a_line() -> None:
    """The start is exact, between the points and beyond."""
    cost = Cost(POINTS)

    assert [cost.predict_ns(rows) for rows in (0, 500, 2_000)] == pytest.approx([MS, 6 * MS, 21 * MS])
    assert cost.longest_ns(500) == cost.predict_ns(500)


def test_the_cost_is_that_of_calls_of_late() -> None:
    """After many calls of another line the start hardly counts; numpy's weighted fit says the same."""
    cost = Cost(POINTS)
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 2_000, 400)
    ns = 3 * MS + 2_000.0 * rows + rng.normal(0, 10_000, 400)
    for r, t in zip(rows.tolist(), ns.tolist(), strict=True):
        cost.observe(r, t)

    weights = np.concatenate(([1, 1], 0.98 ** np.arange(399, -1, -1)))
    x, y = np.concatenate(([0, 1_000], rows)), np.concatenate(([1.0 * MS, 11.0 * MS], ns))
    slope, intercept = np.polyfit(x, y, 1, w=np.sqrt(weights))
    assert cost.predict_ns(0) == pytest.approx(intercept, rel=1e-6)
    assert cost.predict_ns(1_000) - cost.predict_ns(0) == pytest.approx(1_000 * slope, rel=1e-6)


def test_calls_of_one_size_are_enough() -> None:
    """The line goes to where the calls are; the start keeps it from turning around them."""
    cost = Cost(POINTS)
    for _ in range(500):
        cost.observe(500, 12.0 * MS)

    assert cost.predict_ns(500) == pytest.approx(12 * MS, rel=0.02)
    assert cost.predict_ns(1_000) > cost.predict_ns(500) > cost.predict_ns(0) >= 0


def test_a_spread_widens_what_to_reckon_with() -> None:
    """Twice the mean deviation on top; 6 ms were predicted, 4 and 8 came in turns."""
    cost = Cost(POINTS)
    for _ in range(300):
        cost.observe(500, 4.0 * MS)
        cost.observe(500, 8.0 * MS)

    assert cost.predict_ns(500) == pytest.approx(6 * MS, rel=0.05)
    assert cost.longest_ns(500) == pytest.approx(10 * MS, rel=0.05)


@given(st.lists(st.tuples(st.integers(1, 5_000), st.floats(0, 1e10)), max_size=50), st.floats(0, 1e10))
def test_a_cost_is_never_negative_nor_falls_with_rows(seen: list[tuple[int, float]], ns: float) -> None:
    """Whatever was observed; and the rows that fit a time do fit it, one more would not."""
    cost = Cost(POINTS)
    for rows, taken_ns in seen:
        cost.observe(rows, taken_ns)

    assert 0 <= cost.predict_ns(0) <= cost.predict_ns(100) <= cost.predict_ns(5_000)
    rows = cost.rows_within(ns, 5_000)
    assert 0 <= rows <= 5_000
    slack_ns = 1 + 1e-9 * ns
    if rows:
        assert cost.longest_ns(rows) <= ns + slack_ns
    if rows < 5_000:
        assert cost.longest_ns(rows + 1) >= ns - slack_ns


def test_hopeless_calls_do_not_teach_what_calls_cost() -> None:
    """Each makes the others doubt; those that are scored, all of one size, put it right, for other sizes as well."""
    cost = Cost(POINTS)
    for _ in range(500):
        cost.doubt()
        for _ in range(20):
            cost.observe(500, 6.0 * MS)

    for rows in (500, 1_500, 5_000):
        assert cost.predict_ns(rows) == pytest.approx(MS + 10_000 * rows, rel=0.1)
