"""What is there for answers with less in a burst: who may have it, who is charged, and when it is spent."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.admission import Turn
from service.errors import Cancelled, Overloaded, TooManyCalls
from tests.gate import CHRONOLOGICAL, MS, PARTIAL, VERSION, Clock, Ends, gate, never, shape, wait


def test_a_burst_is_answered_with_less_and_a_lasting_overload_refused() -> None:
    """The budget of 50 ms is spent by five answers of 10 ms; 3 % of the time that passes earns the next ones."""
    clock = Clock()
    admission = gate(clock)

    def degraded() -> Turn:
        left_ns = clock.now_ns + 2.5 * MS  # enough for itself, not for others
        return admission.admit(VERSION, 100, left_ns, full_only=False, on_end=never)

    running = admission.admit(VERSION, 1_000_000, math.inf, full_only=False, on_end=never)  # for 10 s
    for _ in range(5):
        with degraded() as turn:
            assert turn.degradation == CHRONOLOGICAL
            clock.now_ns += 10 * MS
    clock.now_ns += 100 * MS  # earns 3 ms, and 1.5 were earned on the way
    with degraded():
        clock.now_ns += 10 * MS  # 5.5 ms too much, of which 0.3 are earned meanwhile
    with pytest.raises(Overloaded):
        degraded()
    clock.now_ns += 170 * MS
    with pytest.raises(Overloaded):
        degraded()
    clock.now_ns += 20 * MS
    assert shape(degraded()) == (0, CHRONOLOGICAL)
    running.__exit__(None, None, None)
    # Whoever has too little time on an idle server is nobody's victim, and costs nobody anything.
    for _ in range(10):
        with admission.admit(VERSION, 500, clock.now_ns + 1, full_only=False, on_end=never) as turn:
            assert turn.degradation == CHRONOLOGICAL
            clock.now_ns += 1_000 * MS


def test_partial_answers_share_the_budget_of_a_burst() -> None:
    """Each is charged for the rows that it gets when it is let in: 10 of 5 ms. Who leaves again is not."""
    clock, ends = Clock(), Ends()
    admission = gate(clock)
    with ThreadPoolExecutor(32) as callers:
        with admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never):
            # 27.5 ms for the call that runs, 12.5 for each of 400 rows that waits.
            turns = [
                wait(callers, admission, 500, ends, (32.501 + 12.5 * count) * MS, full_only=False)
                for count in range(10)
            ]
            with pytest.raises(Overloaded):
                admission.admit(VERSION, 500, 157.501 * MS, full_only=False, on_end=never)
            ends.callbacks[-1]()  # the last one's caller gives up, and another one may have what that was to get
            with pytest.raises(Cancelled):
                turns.pop().result(timeout=60)
            turns.append(wait(callers, admission, 500, ends, 145.001 * MS, full_only=False))
        for turn in turns:
            with turn.result(timeout=60) as granted:
                assert shape(granted) == (400, PARTIAL)


def test_a_call_of_usual_size_is_refused_unread_where_it_could_get_nothing() -> None:
    """Not on an idle server, not while there is time, not while there is budget for an answer with less."""
    clock = Clock()
    admission = gate(clock)
    for _ in range(400):
        with admission.admit(VERSION, 500, math.inf, full_only=False, on_end=never):
            clock.now_ns += 6 * MS
    admission.check_unread(1)
    with admission.admit(VERSION, 100_000, math.inf, full_only=False, on_end=never):  # for 1,001 ms
        admission.check_unread(1)
        with admission.admit(VERSION, 500, clock.now_ns + 7 * MS, full_only=False, on_end=never) as turn:
            assert turn.degradation == CHRONOLOGICAL
            clock.now_ns += 200 * MS  # four times the budget
        admission.check_unread(2_009 * MS)  # 2.5 times the 801 ms that are left, and 6 for itself
        with pytest.raises(TooManyCalls) as refused:
            admission.check_unread(2_006 * MS)
        assert refused.value.retry_after_ms == 801
    admission.check_unread(1)


def test_the_impatient_do_not_use_up_what_is_there_for_a_burst() -> None:
    """Their answers cost time as well, but it is nobody's fault but their own; then comes a call that has to wait."""
    clock = Clock()
    admission = gate(clock, running_max=1)
    for _ in range(20):
        with admission.admit(VERSION, 500, clock.now_ns + 0.5 * MS, full_only=False, on_end=never) as turn:
            assert turn.degradation == CHRONOLOGICAL
            clock.now_ns += 100 * MS  # twice the budget

    with (
        admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never),
        admission.admit(VERSION, 500, clock.now_ns + 10 * MS, full_only=False, on_end=never) as crowded,
    ):
        assert crowded.degradation == CHRONOLOGICAL


def test_the_budget_grows_with_the_processors() -> None:
    """12 ms too much were spent: 3 % of the time of each of four processors earns that back in 100 ms."""
    clock = Clock()
    admission = gate(clock, running_max=4)
    for _ in range(4):
        admission.admit(VERSION, 1_000_000, math.inf, full_only=False, on_end=never)

    def degraded() -> Turn:
        return admission.admit(VERSION, 100, clock.now_ns + 2.5 * MS, full_only=False, on_end=never)

    with degraded():
        clock.now_ns += 62 * MS  # 12 ms too much; 62 ms earned 7.44 by then
    clock.now_ns += 30 * MS  # and these 3.6: 0.96 are missing
    with pytest.raises(Overloaded):
        degraded()
    clock.now_ns += 10 * MS  # 1.2
    assert shape(degraded()) == (0, CHRONOLOGICAL)


def test_calls_without_tweets_cost_no_budget() -> None:
    """They are whole answers, however long they take."""
    clock = Clock()
    admission = gate(clock)
    with admission.admit(VERSION, 1_000_000, math.inf, full_only=False, on_end=never):
        with admission.admit(VERSION, 0, math.inf, full_only=False, on_end=never):
            clock.now_ns += 1_000 * MS
        assert shape(admission.admit(VERSION, 100, clock.now_ns + 2.5 * MS, full_only=False, on_end=never)) == (
            0,
            CHRONOLOGICAL,
        )


def test_a_call_that_waited_in_vain_is_refused_where_the_budget_is_spent() -> None:
    """Though it would take less."""
    clock = Clock()
    admission = gate(clock)

    def too_late(_callback: object) -> bool:
        clock.now_ns += 75 * MS
        return True

    ahead = admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never)
    with admission.admit(VERSION, 500, 7 * MS, full_only=False, on_end=never) as turn:
        assert turn.degradation == CHRONOLOGICAL
        clock.now_ns += 200 * MS  # four times the budget
    ahead.__exit__(ValueError, ValueError("broken"), None)  # teaches nothing
    with admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never), pytest.raises(Overloaded):
        admission.admit(VERSION, 500, clock.now_ns + 80 * MS, full_only=False, on_end=too_late)


def test_a_call_that_fails_is_not_typical() -> None:
    """With the budget spent, 27.5 ms for the call ahead fit in 28, however long one that failed took."""
    clock = Clock()
    admission = gate(clock)
    failed = admission.admit(VERSION, 500, math.inf, full_only=False, on_end=never)
    clock.now_ns += 10_000 * MS
    failed.__exit__(ValueError, ValueError("broken"), None)
    ahead = admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never)
    with admission.admit(VERSION, 500, clock.now_ns + 7 * MS, full_only=False, on_end=never):
        clock.now_ns += 200 * MS  # four times the budget
    ahead.__exit__(ValueError, ValueError("broken"), None)
    with admission.admit(VERSION, 1_000, math.inf, full_only=False, on_end=never):
        admission.check_unread(28 * MS)
        with pytest.raises(TooManyCalls):
            admission.check_unread(27 * MS)


def test_a_quiet_hour_saves_up_no_more_than_a_burst() -> None:
    """One answer of four times the burst, and the next is refused."""
    clock = Clock()
    admission = gate(clock)
    clock.now_ns = 3_600_000 * MS
    with admission.admit(VERSION, 1_000_000, math.inf, full_only=False, on_end=never):
        with admission.admit(VERSION, 500, clock.now_ns + 7 * MS, full_only=False, on_end=never) as turn:
            assert turn.degradation == CHRONOLOGICAL
            clock.now_ns += 200 * MS
        with pytest.raises(Overloaded):
            admission.admit(VERSION, 500, clock.now_ns + 7 * MS, full_only=False, on_end=never)
