"""Who is scored, how much, when, and who is turned away. The clock is a number that the tests set."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission import PARTIAL_ROWS_MIN, Admission, Cost, Turn
from service.errors import Cancelled, DeadlinePassed, Overloaded
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb

MS = 1_000_000
# A call takes 1 ms and 10 us for each row.
POINTS = [(0, 1.0 * MS), (1_000, 11.0 * MS)]
ROWS_RUNNING_MAX = 1_000
NONE, PARTIAL, CHRONOLOGICAL = (
    pb.DEGRADATION_NONE,
    pb.DEGRADATION_PARTIAL,
    pb.DEGRADATION_REVERSE_CHRONOLOGICAL,
)


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class Ends:
    """What a call has to be told if it ends; the semaphore counts the calls that came to wait."""

    def __init__(self) -> None:
        self.waiting = threading.Semaphore(0)
        self.callbacks: list[Callable[[], None]] = []

    def __call__(self, callback: Callable[[], None]) -> bool:
        self.callbacks.append(callback)
        self.waiting.release()
        return True


def never(_callback: Callable[[], None]) -> bool:
    raise AssertionError("the call was to get its answer at once")


def gate(clock: Callable[[], int] | None = None) -> Admission:
    return Admission(ROWS_RUNNING_MAX, POINTS, clock or Clock())


def shape(turn: Turn) -> tuple[int, int]:
    return turn.rows, turn.degradation


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


@pytest.mark.parametrize(
    ("rows", "left_ms", "expected"),
    [
        (500, 6.001, (500, NONE)),
        (500, 5.001, (400, PARTIAL)),
        (500, 2.001, (PARTIAL_ROWS_MIN, PARTIAL)),
        (500, 1.9, (0, CHRONOLOGICAL)),
        (500, 0.001, (0, CHRONOLOGICAL)),
        (50, 1.501, (50, NONE)),
        (50, 1.4, (0, CHRONOLOGICAL)),  # 40 would fit: too few
        (0, 0.001, (0, NONE)),
        (5_000, math.inf, (5_000, NONE)),  # more than may run at a time: it runs alone
    ],
)
def test_the_highest_rung_that_fits(rows: int, left_ms: float, expected: tuple[int, int]) -> None:
    """An idle gate: 1 ms + 10 us a row against the time left."""
    assert shape(gate().admit(rows, left_ms * MS, full_only=False, on_end=never)) == expected


def test_all_or_nothing_on_an_idle_server() -> None:
    """Too little time is the caller's doing."""
    with pytest.raises(DeadlinePassed, match="too short to score 500 Tweets"):
        gate().admit(500, 5.001 * MS, full_only=True, on_end=never)
    assert shape(gate().admit(500, 6.001 * MS, full_only=True, on_end=never)) == (500, NONE)


@pytest.mark.parametrize("full_only", [True, False])
def test_nobody_waits_any_more(full_only: bool) -> None:
    """A deadline that has passed leaves no rung at all."""
    with pytest.raises(DeadlinePassed, match="passed"):
        gate().admit(500, 0, full_only, on_end=never)


def test_the_queue_costs_rungs() -> None:
    """1,000 rows run, for 11 ms: what of 500 rows fits in the time after that."""
    admission = gate()
    with admission.admit(1_000, math.inf, full_only=False, on_end=never):
        assert shape(admission.admit(500, 12.9 * MS, full_only=False, on_end=never)) == (0, CHRONOLOGICAL)
        with pytest.raises(Overloaded) as refused:
            admission.admit(500, 16.9 * MS, full_only=True, on_end=never)
        assert refused.value.retry_after_ms == 11
        with pytest.raises(DeadlinePassed):  # the queue is not what is to blame
            admission.admit(500, 5.9 * MS, full_only=True, on_end=never)
    assert admission.rows == 0
    assert shape(admission.admit(500, 16.9 * MS, full_only=True, on_end=never)) == (500, NONE)


def test_rows_run_side_by_side_while_there_is_room() -> None:
    """Three calls of 300 fit in 1,000 rows; those without rows take no room."""
    admission = gate()
    for count in (1, 2, 3):
        assert shape(admission.admit(300, math.inf, full_only=False, on_end=never)) == (300, NONE)
        assert admission.rows == 300 * count
    assert shape(admission.admit(0, math.inf, full_only=False, on_end=never)) == (0, NONE)


def wait(
    callers: ThreadPoolExecutor, admission: Admission, rows: int, ends: Ends, deadline_ns: float, full_only: bool = True
) -> Future[Turn]:
    """A call in the queue."""
    turn = callers.submit(admission.admit, rows, deadline_ns, full_only, ends)
    assert ends.waiting.acquire(timeout=60)
    return turn


def test_first_come_first_served() -> None:
    """A small call does not overtake the large one before it, though it would fit; both follow when there is room."""
    admission, ends = gate(), Ends()
    with ThreadPoolExecutor(2) as callers:
        with admission.admit(600, math.inf, full_only=False, on_end=never):
            large = wait(callers, admission, 900, ends, 10_000 * MS)
            small = wait(callers, admission, 100, ends, 10_000 * MS)
            assert admission.rows == 1_600
            assert not large.done()
            assert not small.done()
        assert shape(large.result(timeout=60)) == (900, NONE)
        assert shape(small.result(timeout=60)) == (100, NONE)
        assert admission.rows == 1_000


def test_a_part_of_the_rows_waits_for_its_turn() -> None:
    """11 ms for the call ahead leave 4 for 300 of 500 rows."""
    admission, ends = gate(), Ends()
    with ThreadPoolExecutor(1) as callers:
        with admission.admit(1_000, math.inf, full_only=False, on_end=never):
            turn = wait(callers, admission, 500, ends, 15.001 * MS, full_only=False)
            assert admission.rows == 1_300
            # The turn comes before the clock goes on, whatever the machine does meanwhile.
        assert shape(turn.result(timeout=60)) == (300, PARTIAL)


def test_a_cancelled_call_leaves_the_queue() -> None:
    """The one behind it gets its turn at once where there is room now."""
    admission, ends = gate(), Ends()
    with ThreadPoolExecutor(2) as callers, admission.admit(600, math.inf, full_only=False, on_end=never):
        gone = wait(callers, admission, 900, ends, 10_000 * MS)
        behind = wait(callers, admission, 400, ends, 10_000 * MS)
        ends.callbacks[0]()
        with pytest.raises(Cancelled):
            gone.result(timeout=60)
        assert shape(behind.result(timeout=60)) == (400, NONE)
        assert admission.rows == 1_000
        ends.callbacks[1]()  # too late to matter
        assert admission.rows == 1_000


def test_a_call_that_has_ended_does_not_wait() -> None:
    """It may be gone before it joins the queue."""
    admission = gate()
    with admission.admit(1_000, math.inf, full_only=False, on_end=never):
        with pytest.raises(Cancelled):
            admission.admit(500, 10_000 * MS, full_only=True, on_end=lambda _: False)
        assert admission.rows == 1_000


def test_waiting_ends_when_it_is_too_late_to_start() -> None:
    """Half a millisecond passes with every look at the clock; the call ahead does not end as predicted."""
    ticks = itertools.count(0, MS // 2)
    admission = gate(lambda: next(ticks))
    with admission.admit(1_000, math.inf, full_only=False, on_end=never):
        assert shape(admission.admit(500, 20 * MS, full_only=False, on_end=lambda _: True)) == (0, CHRONOLOGICAL)
        with pytest.raises(Overloaded):
            admission.admit(500, 40 * MS, full_only=True, on_end=lambda _: True)
        assert admission.rows == 1_000


def test_calls_teach_what_calls_cost() -> None:
    """A server that turns out ten times as slow admits less; a call that fails teaches nothing."""
    clock = Clock()
    admission = gate(clock)
    for _ in range(100):
        with admission.admit(500, math.inf, full_only=False, on_end=never):
            clock.now_ns += 60 * MS
    assert shape(admission.admit(500, clock.now_ns + 20 * MS, full_only=False, on_end=never))[1] != NONE
    admission.start(POINTS)
    turn = admission.admit(500, math.inf, full_only=False, on_end=never)
    clock.now_ns += 10_000 * MS
    turn.__exit__(ValueError, ValueError("broken"), None)
    assert admission.rows == 0
    assert shape(admission.admit(500, clock.now_ns + 6.001 * MS, full_only=True, on_end=never)) == (500, NONE)


def test_a_server_that_was_slow_once_recovers() -> None:
    """After a stall no call seems to fit; turned away often enough, one is tried, and shows that they do."""
    clock = Clock()
    admission = gate(clock)
    with admission.admit(500, math.inf, full_only=False, on_end=never):
        clock.now_ns += 60_000 * MS

    degradations = []
    for _ in range(2_000):
        with admission.admit(500, clock.now_ns + 50 * MS, full_only=False, on_end=never) as turn:
            degradations.append(turn.degradation)
            if turn.rows:
                clock.now_ns += MS + 10_000 * turn.rows
    assert degradations[0] == CHRONOLOGICAL
    assert set(degradations[-100:]) == {NONE}
