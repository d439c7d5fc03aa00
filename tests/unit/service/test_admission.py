"""Who is scored, how much, when, and who is turned away. The clock is a number that the tests set."""

from __future__ import annotations

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.admission import PARTIAL_ROWS_MIN, Admission
from service.errors import Cancelled, DeadlinePassed, Overloaded
from tests.gate import CHRONOLOGICAL, ERROR, MS, NONE, PARTIAL, POINTS, VERSION, Clock, Ends, gate, never, shape, wait


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
    assert shape(gate().admit(VERSION, rows, left_ms * MS, full_only=False, on_end=never)) == expected


def test_all_or_nothing_on_an_idle_server() -> None:
    """Too little time is the caller's doing."""
    with pytest.raises(DeadlinePassed, match="too short to score 500 Tweets"):
        gate().admit(VERSION, 500, 5.001 * MS, full_only=True, on_end=never)
    assert shape(gate().admit(VERSION, 500, 6.001 * MS, full_only=True, on_end=never)) == (500, NONE)


@pytest.mark.parametrize("full_only", [True, False])
def test_nobody_waits_any_more(full_only: bool) -> None:
    """A deadline that has passed leaves no rung at all."""
    with pytest.raises(DeadlinePassed, match="passed"):
        gate().admit(VERSION, 500, 0, full_only, on_end=never)


def test_the_queue_costs_rungs() -> None:
    """1,000 rows run, for 11 ms, which count 2.5 times: what of 500 rows fits in the time after that."""
    admission = gate()
    with admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never):
        assert shape(admission.admit(VERSION, 500, 29.4 * MS, full_only=False, on_end=never)) == (0, CHRONOLOGICAL)
        with pytest.raises(Overloaded) as refused:
            admission.admit(VERSION, 500, 33.4 * MS, full_only=True, on_end=never)
        assert refused.value.retry_after_ms == 11
        with pytest.raises(DeadlinePassed):  # the queue is not what is to blame
            admission.admit(VERSION, 500, 5.9 * MS, full_only=True, on_end=never)
    assert admission.rows == 0
    assert shape(admission.admit(VERSION, 500, 33.4 * MS, full_only=True, on_end=never)) == (500, NONE)


def test_as_many_calls_run_as_may() -> None:
    """Three of three; those without rows take no room."""
    admission = gate(running_max=3)
    for count in (1, 2, 3):
        assert shape(admission.admit(VERSION, 300, math.inf, full_only=False, on_end=never)) == (300, NONE)
        assert admission.rows == 300 * count
    assert shape(admission.admit(VERSION, 0, math.inf, full_only=False, on_end=never)) == (0, NONE)


def test_what_has_run_is_not_waited_for_again() -> None:
    """10 of 11 ms are over: 1 ms counts 2.5 times, and 6 ms of one's own fit in 8.6."""
    clock, ends = Clock(), Ends()
    admission = gate(clock)
    with ThreadPoolExecutor(1) as callers:
        with admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never):
            clock.now_ns = 10 * MS
            with pytest.raises(Overloaded):
                admission.admit(VERSION, 500, 18.4 * MS, full_only=True, on_end=never)
            turn = wait(callers, admission, 500, ends, 18.6 * MS)
        assert shape(turn.result(timeout=60)) == (500, NONE)


def test_every_model_has_a_cost_of_its_own() -> None:
    """Learned apart, kept while the model serves, and forgotten with it."""
    clock = Clock()
    admission = Admission(1, clock)
    admission.start({"1": POINTS, "2": POINTS})

    def teach(version: str, ms: int) -> None:
        for _ in range(400):
            with admission.admit(version, 500, math.inf, full_only=True, on_end=never):
                clock.now_ns += ms * MS

    def fits(version: str, left_ms: float) -> bool:
        try:
            admission.admit(version, 500, clock.now_ns + left_ms * MS, full_only=True, on_end=never).__exit__(*ERROR)
        except DeadlinePassed:
            return False
        return True

    teach("1", 60)
    assert (fits("1", 50), fits("2", 6.1)) == (False, True)
    admission.start({"1": POINTS, "3": POINTS})
    assert not fits("1", 50)
    teach("3", 6)
    assert (fits("1", 50), fits("3", 15)) == (False, True)
    admission.start({"3": POINTS})
    admission.start({"1": POINTS})
    assert fits("1", 10)


def test_a_new_version_starts_with_what_calls_to_the_serving_one_cost() -> None:
    """Its own runs, when it was loaded between calls and at low priority, took twenty times as long as they will."""
    clock = Clock()
    admission = gate(clock)
    for _ in range(400):
        with admission.admit(VERSION, 500, math.inf, full_only=True, on_end=never):
            clock.now_ns += 8 * MS
    admission.start({"8": [(rows, 20 * ns) for rows, ns in POINTS]})

    assert shape(admission.admit("8", 500, clock.now_ns + 8.5 * MS, full_only=False, on_end=never)) == (500, NONE)


def test_calls_of_one_size_come_first_come_first_served() -> None:
    """And run one after the other."""
    admission, ends = gate(), Ends()
    with ThreadPoolExecutor(3) as callers:
        running = admission.admit(VERSION, 600, math.inf, full_only=False, on_end=never)
        waiting = [wait(callers, admission, 300, ends, 10_000 * MS) for _ in range(3)]
        assert admission.rows == 1_500
        for place, turn in enumerate(waiting):
            assert not turn.done()
            running.__exit__(None, None, None)
            running = turn.result(timeout=60)
            assert admission.rows == 300 * (3 - place)


@pytest.mark.parametrize(("ahead_ms", "overtakes"), [(143, True), (145, False)])
def test_a_small_call_overtakes_a_large_one_that_has_not_waited_for_long(ahead_ms: float, overtakes: bool) -> None:
    """1,000 rows cost 11 ms, 100 cost 2: the small one may come 16 x 9 = 144 ms later."""
    clock, ends = Clock(), Ends()
    admission = gate(clock)
    with ThreadPoolExecutor(2) as callers:
        with admission.admit(VERSION, 600, math.inf, full_only=False, on_end=never):
            large = wait(callers, admission, 1_000, ends, 10_000 * MS)
            clock.now_ns = int(ahead_ms * MS)
            small = wait(callers, admission, 100, ends, 10_000 * MS)
        first, second = (small, large) if overtakes else (large, small)
        with first.result(timeout=60):
            assert not second.done()
        second.result(timeout=60).__exit__(None, None, None)


def test_calls_are_alone_until_they_meet_others() -> None:
    """The third that comes while the first runs, 1 - 0.98^3 = 0.0588; after the fourth it takes 22 by themselves."""
    admission = gate(running_max=10)

    def alone() -> bool:
        with admission.admit(VERSION, 100, math.inf, full_only=False, on_end=never) as turn:
            return turn.alone

    assert alone()
    with admission.admit(VERSION, 100, math.inf, full_only=False, on_end=never):
        assert [alone() for _ in range(4)] == [True, True, False, False]
    assert [alone() for _ in range(25)] == [False] * 21 + [True] * 4


def test_a_large_call_lets_a_small_one_pass_between_its_parts() -> None:
    """It goes on when that one ends, and what it is seen to cost is its own time only."""
    clock, ends = Clock(), Ends()
    admission = gate(clock)
    with ThreadPoolExecutor(2) as callers:
        large = admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never)
        large.pause()  # for nobody
        clock.now_ns += 4 * MS
        small = wait(callers, admission, 100, ends, 10_000 * MS)
        paused = callers.submit(large.pause)
        with small.result(timeout=60):
            assert not paused.done()
            assert admission.rows == 1_100
            ends.callbacks[0]()  # too late to matter
            clock.now_ns += 1_000 * MS
        paused.result(timeout=60)
        clock.now_ns += 7 * MS
        large.__exit__(None, None, None)
    assert admission.rows == 0
    # 2 ms were predicted for the small one and 1,000 taken: the large one's 11 ms must not be 1,011.
    with pytest.raises(DeadlinePassed):
        admission.admit(VERSION, 100, clock.now_ns + 100 * MS, full_only=True, on_end=never)


def test_a_part_of_the_rows_waits_for_its_turn() -> None:
    """27.5 ms for the call ahead leave 4 for 300 of 500 rows."""
    admission, ends = gate(), Ends()
    with ThreadPoolExecutor(1) as callers:
        with admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never):
            turn = wait(callers, admission, 500, ends, 31.501 * MS, full_only=False)
            assert admission.rows == 1_300
            # The turn comes before the clock goes on, whatever the machine does meanwhile.
        assert shape(turn.result(timeout=60)) == (300, PARTIAL)


def test_a_cancelled_call_leaves_the_queue() -> None:
    """It is not waited for any more."""
    admission, ends = gate(), Ends()
    with ThreadPoolExecutor(2) as callers:
        with admission.admit(VERSION, 600, math.inf, full_only=False, on_end=never):
            gone = wait(callers, admission, 900, ends, 10_000 * MS)
            behind = wait(callers, admission, 900, ends, 10_000 * MS)
            ends.callbacks[0]()
            with pytest.raises(Cancelled):
                gone.result(timeout=60)
            assert admission.rows == 1_500
        assert shape(behind.result(timeout=60)) == (900, NONE)
        ends.callbacks[1]()  # too late to matter
        assert admission.rows == 900


def test_a_call_that_has_ended_does_not_wait() -> None:
    """It may be gone before it joins the queue."""
    admission = gate()
    with admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never):
        with pytest.raises(Cancelled):
            admission.admit(VERSION, 500, 10_000 * MS, full_only=True, on_end=lambda _: False)
        assert admission.rows == 1_000


def test_waiting_ends_when_it_is_too_late_to_start() -> None:
    """Half a millisecond passes with every look at the clock; the call ahead does not end as predicted."""
    ticks = itertools.count(0, MS // 2)
    admission = gate(lambda: next(ticks))
    with admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never):
        assert shape(admission.admit(VERSION, 500, 40 * MS, full_only=False, on_end=lambda _: True)) == (
            0,
            CHRONOLOGICAL,
        )
        with pytest.raises(Overloaded):
            admission.admit(VERSION, 500, 80 * MS, full_only=True, on_end=lambda _: True)
        assert admission.rows == 1_000


def test_calls_teach_what_calls_cost() -> None:
    """A server that turns out ten times as slow admits less; a call that fails teaches nothing."""
    clock = Clock()
    admission = gate(clock)
    for _ in range(100):
        with admission.admit(VERSION, 500, math.inf, full_only=False, on_end=never):
            clock.now_ns += 60 * MS
    assert shape(admission.admit(VERSION, 500, clock.now_ns + 20 * MS, full_only=False, on_end=never))[1] != NONE
    admission.start({})
    admission.start({VERSION: POINTS})
    turn = admission.admit(VERSION, 500, math.inf, full_only=False, on_end=never)
    clock.now_ns += 10_000 * MS
    turn.__exit__(*ERROR)
    assert admission.rows == 0
    assert shape(admission.admit(VERSION, 500, clock.now_ns + 6.001 * MS, full_only=True, on_end=never)) == (500, NONE)


def test_a_server_that_was_slow_once_recovers() -> None:
    """After a stall no call seems to fit; turned away often enough, one is tried, and shows that they do."""
    clock = Clock()
    admission = gate(clock)
    with admission.admit(VERSION, 500, math.inf, full_only=False, on_end=never):
        clock.now_ns += 60_000 * MS

    degradations = []
    for _ in range(2_000):
        with admission.admit(VERSION, 500, clock.now_ns + 50 * MS, full_only=False, on_end=never) as turn:
            degradations.append(turn.degradation)
            if turn.rows:
                clock.now_ns += MS + 10_000 * turn.rows
    assert degradations[0] == CHRONOLOGICAL
    assert set(degradations[-100:]) == {NONE}


def test_several_processors_share_the_wait() -> None:
    """Two calls of 11 ms on two processors are 11 ms of waiting, not 22: 27.5 and 6 of one's own."""
    admission, ends = gate(running_max=2), Ends()
    with ThreadPoolExecutor(1) as callers:
        first = admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never)
        with admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never):
            assert admission.retry_after_ms == 11
            turn = wait(callers, admission, 500, ends, 33.6 * MS)
            first.__exit__(None, None, None)
        assert shape(turn.result(timeout=60)) == (500, NONE)


def test_a_paused_call_is_not_cancelled() -> None:
    """A call that waited, began, and lets another pass is seen through although its caller gives up."""
    clock, ends = Clock(), Ends()
    admission = gate(clock)
    with ThreadPoolExecutor(3) as callers:
        ahead = admission.admit(VERSION, 100, math.inf, full_only=False, on_end=never)
        waiting = wait(callers, admission, 1_000, ends, 10_000 * MS)
        ahead.__exit__(None, None, None)
        large = waiting.result(timeout=60)
        clock.now_ns += 4 * MS
        small = wait(callers, admission, 100, ends, 10_000 * MS)
        paused = threading.Thread(target=large.pause, daemon=True)
        paused.start()
        with small.result(timeout=60):
            ends.callbacks[0]()  # the large one's caller
            assert admission.rows == 1_100
        paused.join(60)
        assert not paused.is_alive()
        large.__exit__(None, None, None)
    assert admission.rows == 0


def test_when_to_come_back_counts_those_that_wait() -> None:
    """11 ms run, 11 wait; a small call overtakes the one that waits, and is not made to wait for it."""
    admission, ends = gate(), Ends()
    with ThreadPoolExecutor(2) as callers:
        with admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never):
            large = wait(callers, admission, 1_000, ends, 10_000 * MS)
            assert admission.retry_after_ms == 22
            small = wait(callers, admission, 100, ends, (2.5 * 11 + 2.1) * MS)  # not 2.5 x 22 + 2
        small.result(timeout=60).__exit__(None, None, None)
        large.result(timeout=60).__exit__(None, None, None)


def test_a_call_that_waited_in_vain_is_told_when_to_come_back() -> None:
    """The call ahead should be through by then, 11 ms wait behind; a spent budget leaves no answer with less."""
    clock, ends = Clock(), Ends()
    admission = gate(clock)

    def too_late(_callback: object) -> bool:
        clock.now_ns += 75 * MS
        return True

    with ThreadPoolExecutor(1) as callers:
        with admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never):
            behind = wait(callers, admission, 1_000, ends, math.inf)
            with pytest.raises(Overloaded) as refused:
                admission.admit(VERSION, 500, 80 * MS, full_only=True, on_end=too_late)
            assert refused.value.retry_after_ms == 11
        behind.result(timeout=60).__exit__(None, None, None)
