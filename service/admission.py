"""Admission: which calls are scored, how much of each, and which are turned away. Knows rows and time only.

A call is worth starting if it will end before its caller stops waiting. How long it takes is a + b x rows, fitted to
the calls of late; how long until its turn is what the calls ahead of it take. The highest rung that fits is taken:

    all rows                  DEGRADATION_NONE; the only one for callers that want all or nothing
    the newest k of them      DEGRADATION_PARTIAL, k >= PARTIAL_ROWS_MIN
    none                      DEGRADATION_REVERSE_CHRONOLOGICAL, without a turn: it takes no model

First come, first served: as many rows are worked on at a time as `rows_running_max`, the others wait.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType

from service.errors import Cancelled, DeadlinePassed, Overloaded
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb

# Fewer would cost nearly as much as these: the fixed part of a call.
PARTIAL_ROWS_MIN = 100
# What an observation's weight is multiplied by with every later one: the last 50 make up nearly two thirds.
FORGETTING = 0.98
# A call is taken to last as long as predicted and this many mean deviations on top, like TCP's retransmission timer.
DEVIATIONS = 2
RETRY_AFTER_MS_MIN = 1
# Before anything is known of the cost, every call is welcome.
NO_COST = ((0, 0.0), (1, 0.0))


class Cost:
    """Nanoseconds of a call by its rows, a + b x rows: least squares that forget.

    The points that it starts with keep the weight of one observation each: they hold the line where calls of late all
    had the same number of rows.
    """

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        """Begins with `points`: rows and nanoseconds, of two different numbers of rows at least."""
        self.start(points)

    def start(self, points: Sequence[tuple[int, float]]) -> None:
        """Forgets all but these."""
        self._points = [(rows, float(ns)) for rows, ns in points]
        # Weighted sums over observations: 1, rows, rows^2, ns, rows x ns.
        self._n = self._r = self._rr = self._t = self._rt = 0.0
        self._deviation_ns = 0.0
        self._fit()

    def predict_ns(self, rows: int) -> float:
        """What to expect of a call."""
        return self._a + self._b * rows

    def longest_ns(self, rows: int) -> float:
        """What a call should not exceed."""
        return self._a + self._b * rows + DEVIATIONS * self._deviation_ns

    def rows_within(self, ns: float, rows_max: int) -> int:
        """The most rows, up to `rows_max`, that should not exceed `ns`; 0 or less: not even one."""
        spare_ns = ns - self.longest_ns(0)
        if spare_ns < 0:
            return 0
        return rows_max if self._b * rows_max <= spare_ns else int(spare_ns / self._b)

    def observe(self, rows: int, ns: float) -> None:
        """Learns from a call that ended."""
        error_ns = abs(ns - self.predict_ns(rows))
        self._deviation_ns += (1 - FORGETTING) * (error_ns - self._deviation_ns)
        self._n = self._n * FORGETTING + 1
        self._r = self._r * FORGETTING + rows
        self._rr = self._rr * FORGETTING + rows * rows
        self._t = self._t * FORGETTING + ns
        self._rt = self._rt * FORGETTING + rows * ns
        self._fit()

    def doubt(self) -> None:
        """Expects a little less. A cost that turned every call away would otherwise never be measured again."""
        self._points = [(rows, ns * FORGETTING) for rows, ns in self._points]
        self._t *= FORGETTING
        self._rt *= FORGETTING
        self._deviation_ns *= FORGETTING
        self._fit()

    def _fit(self) -> None:
        n, r, rr, t, rt = self._n, self._r, self._rr, self._t, self._rt
        for rows, ns in self._points:
            n, r, rr, t, rt = n + 1, r + rows, rr + rows * rows, t + ns, rt + rows * ns
        slope = (n * rt - r * t) / (n * rr - r * r)
        intercept = (t - slope * r) / n
        if slope < 0:  # more rows never take less
            slope, intercept = 0.0, t / n
        elif intercept < 0:
            slope, intercept = rt / rr, 0.0
        self._a, self._b = intercept, slope


class _Waiter:
    """A call in the queue. Guarded by the lock of its Admission."""

    __slots__ = ("cancelled", "changed", "rows", "started")

    def __init__(self, rows: int, lock: threading.Lock) -> None:
        self.rows = rows
        self.started = False
        self.cancelled = False
        self.changed = threading.Condition(lock)


class Turn:
    """A call's leave to work, until its `with` block ends.

    Attributes:
        rows: How many of its rows to score, the newest ones.
        degradation: What that makes of the answer.
    """

    __slots__ = ("_admission", "_began_ns", "degradation", "rows")

    def __init__(self, admission: Admission, rows: int, degradation: pb.Degradation.ValueType, began_ns: int) -> None:
        self.rows = rows
        self.degradation = degradation
        self._admission = admission
        self._began_ns = began_ns

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.rows:
            self._admission._end(self.rows, self._began_ns, failed=kind is not None)


class Admission:
    """The gate in front of the model. Shared by all threads."""

    def __init__(
        self,
        rows_running_max: int,
        points: Sequence[tuple[int, float]] = NO_COST,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """Makes an empty gate.

        Args:
            rows_running_max: Rows worked on at a time; a single call may have more.
            points: Where the cost starts, see Cost.
            clock: Nanoseconds of a clock that never goes back.
        """
        self._rows_running_max = rows_running_max
        self._clock = clock
        # Guards all below, waiters included. Held for a few additions and comparisons; conditions let go of it.
        self._lock = threading.Lock()
        self._cost = Cost(points)
        self._running_calls = 0
        self._running_rows = 0
        self._waiting: deque[_Waiter] = deque()
        self._waiting_rows = 0

    @property
    def rows(self) -> int:
        """Rows that are worked on or wait for it."""
        return self._running_rows + self._waiting_rows

    @property
    def retry_after_ms(self) -> int:
        """When the calls that are here now should be through."""
        with self._lock:
            return _retry_after_ms(self._wait_ns())

    def start(self, points: Sequence[tuple[int, float]]) -> None:
        """Begins to learn the cost anew: another model serves."""
        with self._lock:
            self._cost.start(points)

    def admit(
        self, rows: int, deadline_ns: float, full_only: bool, on_end: Callable[[Callable[[], None]], bool]
    ) -> Turn:
        """Waits for a call's turn, for as long as waiting makes sense.

        Args:
            rows: That the call would score.
            deadline_ns: When its caller stops waiting, by the clock.
            full_only: Whether the caller wants all rows scored, or nothing.
            on_end: Takes what to call when the call ends before its turn, from any thread; False: it has ended.

        Raises:
            DeadlinePassed: The time left would not do for what the caller wants even if nobody else were there.
            Overloaded: It would, were it not for the calls ahead.
            Cancelled: The caller gave up while the call waited.
        """
        with self._lock:
            now_ns = self._clock()
            if now_ns >= deadline_ns:
                raise DeadlinePassed("the deadline passed before the Tweets could be scored")
            if not rows:
                return Turn(self, 0, pb.DEGRADATION_NONE, now_ns)
            at_once = not self._waiting and self._fits(rows)
            wait_ns = 0.0 if at_once else self._wait_ns()
            granted = self._choose(rows, deadline_ns - now_ns, wait_ns, full_only)
            if granted and at_once:
                return self._begin(granted, rows, now_ns)
            if granted:
                waiter = _Waiter(granted, self._lock)
                self._waiting.append(waiter)
                self._waiting_rows += granted
        if not granted:
            return Turn(self, 0, pb.DEGRADATION_REVERSE_CHRONOLOGICAL, now_ns)
        # Not under the lock: `on_end` may call back at once, or hold a lock that a caller of `_cancel` holds.
        if not on_end(lambda: self._cancel(waiter)):
            self._cancel(waiter)
        return self._wait(waiter, rows, deadline_ns, full_only)

    def _choose(self, rows: int, left_ns: float, wait_ns: float, full_only: bool) -> int:
        """How many rows to score, 0 for none; raises where the caller would not have that."""
        affordable = self._cost.rows_within(left_ns - wait_ns, rows)
        if affordable == rows or (affordable >= PARTIAL_ROWS_MIN and not full_only):
            return affordable
        cost_alone = self._cost.rows_within(left_ns, rows) < (rows if full_only else min(rows, PARTIAL_ROWS_MIN))
        if cost_alone:
            self._cost.doubt()
        if full_only and cost_alone:
            raise DeadlinePassed(f"the time left is too short to score {rows} Tweets")
        if full_only:
            raise _overloaded(wait_ns)
        return 0

    def _wait(self, waiter: _Waiter, rows: int, deadline_ns: float, full_only: bool) -> Turn:
        with self._lock:
            start_by_ns = deadline_ns - self._cost.longest_ns(waiter.rows)
            while not (waiter.started or waiter.cancelled) and (left_ns := start_by_ns - self._clock()) > 0:
                waiter.changed.wait(min(left_ns / 1e9, threading.TIMEOUT_MAX))
            now_ns = self._clock()
            if waiter.started:
                return self._turn(waiter.rows, rows, now_ns)
            if waiter.cancelled:
                raise Cancelled("the caller gave up")
            self._leave(waiter)
            if full_only:
                raise _overloaded(self._wait_ns())
            return Turn(self, 0, pb.DEGRADATION_REVERSE_CHRONOLOGICAL, now_ns)

    def _begin(self, granted: int, rows: int, now_ns: int) -> Turn:
        self._running_calls += 1
        self._running_rows += granted
        return self._turn(granted, rows, now_ns)

    def _turn(self, granted: int, rows: int, now_ns: int) -> Turn:
        return Turn(self, granted, pb.DEGRADATION_NONE if granted == rows else pb.DEGRADATION_PARTIAL, now_ns)

    def _end(self, rows: int, began_ns: int, failed: bool) -> None:
        with self._lock:
            if not failed:
                self._cost.observe(rows, self._clock() - began_ns)
            self._running_calls -= 1
            self._running_rows -= rows
            self._start_waiting()

    def _cancel(self, waiter: _Waiter) -> None:
        with self._lock:
            if waiter in self._waiting:
                waiter.cancelled = True
                waiter.changed.notify()
                self._leave(waiter)

    def _leave(self, waiter: _Waiter) -> None:
        """Takes a call out of the queue; those behind it may fit now."""
        self._waiting.remove(waiter)
        self._waiting_rows -= waiter.rows
        self._start_waiting()

    def _start_waiting(self) -> None:
        """Gives the calls at the head of the queue their turn, as far as there is room."""
        while self._waiting and self._fits(self._waiting[0].rows):
            waiter = self._waiting.popleft()
            self._waiting_rows -= waiter.rows
            self._running_calls += 1
            self._running_rows += waiter.rows
            waiter.started = True
            waiter.changed.notify()

    def _fits(self, rows: int) -> bool:
        return not self._running_calls or self._running_rows + rows <= self._rows_running_max

    def _wait_ns(self) -> float:
        """How long the calls ahead take: as many at a time as now, each as long as calls beside others do."""
        calls = self._running_calls + len(self._waiting)
        total_ns = self._cost.predict_ns(0) * calls + (self._cost.predict_ns(self.rows) - self._cost.predict_ns(0))
        return total_ns / max(1, self._running_calls)


def _overloaded(wait_ns: float) -> Overloaded:
    return Overloaded("the calls ahead leave no time for this one", _retry_after_ms(wait_ns))


def _retry_after_ms(wait_ns: float) -> int:
    return max(RETRY_AFTER_MS_MIN, round(wait_ns / 1e6))
