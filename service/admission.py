"""Admission: which calls are scored, how much of each, and which are turned away. Knows rows and time only.

A call is worth starting if it will end before its caller stops waiting. How long it takes is a + b x rows, fitted to
the calls of late, for each model; how long until its turn is what the calls due before it take. The highest rung that
fits is taken:

    all rows                  DEGRADATION_NONE; the only one for callers that want all or nothing
    the newest k of them      DEGRADATION_PARTIAL, k >= PARTIAL_ROWS_MIN
    none                      DEGRADATION_REVERSE_CHRONOLOGICAL, without a turn: it takes no model

Rungs below the first cost work as well. Where it is the other calls that leave no time, they share a budget of
DEGRADED_SHARE: a burst is answered with less, a lasting overload is refused, and what is served stays whole.

Turns go to the call that is due first: OVERTAKING times its own cost after it came. So calls of one size take their
turns as they come, and a small one need not wait for the large one before it; that one lets it pass between parts, too.
docs/decisions/0056 has the figures.
"""

from __future__ import annotations

import bisect
import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from service.cost import FORGETTING, Cost
from service.errors import Cancelled, DeadlinePassed, Overloaded, TooManyCalls
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb

# Fewer would cost nearly as much as these: the fixed part of a call.
PARTIAL_ROWS_MIN = 100
RETRY_AFTER_MS_MIN = 1
OVERTAKING = 16
# A wait is taken to last that many times what the calls ahead take by themselves: while they run others come, and are
# read, answered with less or refused, on the same processors.
WAIT_FACTOR = 2.5
# The share of the processors' time that answers with less than all scores may take because of other calls, and how much
# they may take at once after a while without.
DEGRADED_SHARE = 0.03
DEGRADED_BURST_NS = 50_000_000.0
# Calls are alone as long as no more than this share of those of late met another one.
MET_SHARE_MAX = 0.05
# Before anything is known of the cost, every call is welcome.
NO_COST = ((0, 0.0), (1, 0.0))


class Turn:
    """A call's leave to work, until its `with` block ends.

    Attributes:
        rows: How many of its rows to score, the newest ones.
        degradation: What that makes of the answer.
        alone: Whether calls of late had the server to themselves, so that there is nobody to let pass.
        crowded: Whether it is because of other calls that it takes no rows.
        charged_ns: What it took of the budget when it was let in.
    """

    # But for those above guarded by the lock of its Admission.
    changed: threading.Condition  # of one that has to wait, once it does
    __slots__ = (
        "_admission",
        "alone",
        "began_ns",
        "cancelled",
        "changed",
        "charged_ns",
        "cost",
        "crowded",
        "degradation",
        "due_ns",
        "left_ns",
        "rows",
        "running",
        "worked_ns",
    )

    def __init__(
        self, admission: Admission, cost: Cost, rows: int, degradation: pb.Degradation.ValueType, due_ns: float
    ) -> None:
        self.rows = rows
        self.degradation = degradation
        self.alone = admission._met_share < MET_SHARE_MAX
        self._admission = admission
        self.cost = cost
        self.due_ns = due_ns
        self.left_ns = cost.predict_ns(rows)
        self.worked_ns = 0
        self.began_ns = 0
        self.running = False
        self.cancelled = False
        self.crowded = False
        self.charged_ns = 0.0

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission._end(self, failed=kind is not None)

    def pause(self) -> None:
        """Lets calls that are due before this one go first."""
        self._admission._pause(self)


class Admission:
    """The gate in front of the model. Shared by all threads."""

    def __init__(self, running_max: int, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """Makes an empty gate that knows no model's cost yet.

        Args:
            running_max: Calls worked on at a time.
            clock: Nanoseconds of a clock that never goes back.
        """
        self._running_max = running_max
        self._clock = clock
        # Guards all below, turns included. Held for a few additions and comparisons; conditions let go of it.
        self._lock = threading.Lock()
        self._costs: dict[str, Cost] = {}
        self._met_share = 0.0  # of the calls of late, how many met another one
        self._typical_ns = 0.0  # what calls of late took, whatever their size
        self._running: set[Turn] = set()
        self._waiting: list[Turn] = []  # by when they are due
        self._rows = 0
        # What degraded answers may still take, and when that was reckoned.
        self._budget_ns = DEGRADED_BURST_NS
        self._budget_at_ns = clock()

    @property
    def rows(self) -> int:
        """Rows that are worked on or wait for it."""
        return self._rows

    @property
    def retry_after_ms(self) -> int:
        """When the calls that are here now should be through."""
        with self._lock:
            return _retry_after_ms(self._wait_ns(math.inf))

    def start(self, points: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        """From now on these models serve.

        Args:
            points: Version -> rows and nanoseconds of runs when it was loaded, see Cost: where its cost starts, unless
                it is known by now. Beside a version that serves it starts with what calls to that one cost: runs at
                low priority, between calls, took many times as long as they will.
        """
        with self._lock:
            serving = next(iter(self._costs.values()), None)
            if serving is not None:
                points = {v: [(rows, serving.predict_ns(rows)) for rows, _ in runs] for v, runs in points.items()}
            self._costs = {version: self._costs.get(version) or Cost(runs) for version, runs in points.items()}

    def check_unread(self, left_ns: float) -> None:
        """Turns a call away whose size is not known yet, where one of usual size could get nothing but a refusal.

        Args:
            left_ns: Until its caller stops waiting.

        Raises:
            TooManyCalls: The calls ahead leave no time for it, and no answer with less is to be had.
        """
        with self._lock:
            wait_ns = self._wait_ns(self._clock() + OVERTAKING * self._typical_ns)
            if wait_ns and WAIT_FACTOR * wait_ns + self._typical_ns > left_ns and not self._may_degrade():
                raise TooManyCalls("the calls ahead leave no time for this one", _retry_after_ms(wait_ns))

    def admit(
        self, version: str, rows: int, deadline_ns: float, full_only: bool, on_end: Callable[[Callable[[], None]], bool]
    ) -> Turn:
        """Waits for a call's turn, for as long as waiting makes sense.

        Args:
            version: Of the model that is to score them.
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
            cost = self._costs.get(version) or Cost(NO_COST)
            if not rows:
                return self._begin(Turn(self, cost, 0, pb.DEGRADATION_NONE, now_ns))
            self._met_share += (1 - FORGETTING) * (bool(self._running or self._waiting) - self._met_share)
            at_once = not self._waiting and len(self._running) < self._running_max
            due_ns = now_ns + OVERTAKING * cost.predict_ns(rows)
            wait_ns = 0.0 if at_once else self._wait_ns(due_ns)
            turn = self._choose(cost, rows, due_ns, deadline_ns - now_ns, wait_ns, full_only)
            if at_once or not turn.rows:
                return self._begin(turn)
            self._enqueue(turn)
        # Not under the lock: `on_end` may call back at once, or hold a lock that a caller of `_cancel` holds.
        if not on_end(lambda: self._cancel(turn)):
            self._cancel(turn)
        return self._wait(turn, deadline_ns, full_only)

    def _choose(self, cost: Cost, rows: int, due_ns: float, left_ns: float, wait_ns: float, full_only: bool) -> Turn:
        """How many rows to score; raises where the caller would not have that, or others are served before."""
        affordable = cost.rows_within(left_ns - WAIT_FACTOR * wait_ns, rows)
        if affordable == rows:
            return Turn(self, cost, rows, pb.DEGRADATION_NONE, due_ns)
        alone = cost.rows_within(left_ns, rows)
        if alone < (rows if full_only else min(rows, PARTIAL_ROWS_MIN)):
            cost.doubt()
            if full_only:
                raise DeadlinePassed(f"the time left is too short to score {rows} Tweets")
        if full_only or (alone > affordable and not self._may_degrade()):
            raise _overloaded(wait_ns)
        if affordable < PARTIAL_ROWS_MIN:
            turn = Turn(self, cost, 0, pb.DEGRADATION_REVERSE_CHRONOLOGICAL, due_ns)
            turn.crowded = alone > affordable
            return turn
        turn = Turn(self, cost, affordable, pb.DEGRADATION_PARTIAL, due_ns)
        if alone > affordable:
            # Now, not when it ends: the calls that come until then are to know.
            turn.charged_ns = cost.predict_ns(affordable)
            self._budget_ns -= turn.charged_ns
        return turn

    def _may_degrade(self) -> bool:
        """Whether there is budget for an answer with less than all scores."""
        now_ns = self._clock()
        earned_ns = DEGRADED_SHARE * self._running_max * (now_ns - self._budget_at_ns)
        self._budget_ns = min(self._budget_ns + earned_ns, DEGRADED_BURST_NS)
        self._budget_at_ns = now_ns
        return self._budget_ns > 0

    def _wait(self, turn: Turn, deadline_ns: float, full_only: bool) -> Turn:
        with self._lock:
            start_by_ns = deadline_ns - turn.cost.longest_ns(turn.rows)
            while not (turn.running or turn.cancelled) and (left_ns := start_by_ns - self._clock()) > 0:
                turn.changed.wait(min(left_ns / 1e9, threading.TIMEOUT_MAX))
            if turn.running:
                return turn
            if turn.cancelled:
                raise Cancelled("the caller gave up")
            self._give_up(turn)
            if full_only or not self._may_degrade():
                raise _overloaded(self._wait_ns(math.inf))
            late = Turn(self, turn.cost, 0, pb.DEGRADATION_REVERSE_CHRONOLOGICAL, turn.due_ns)
            late.crowded = True
            return self._begin(late)

    def _begin(self, turn: Turn) -> Turn:
        turn.began_ns = self._clock()
        turn.running = True
        if turn.rows:
            self._rows += turn.rows
            self._running.add(turn)
        return turn

    def _stop(self, turn: Turn) -> None:
        ran_ns = self._clock() - turn.began_ns
        turn.worked_ns += ran_ns
        turn.left_ns = max(0.0, turn.left_ns - ran_ns)
        turn.running = False
        if turn.rows:
            self._rows -= turn.rows
            self._running.remove(turn)

    def _end(self, turn: Turn, failed: bool) -> None:
        with self._lock:
            self._stop(turn)
            if not turn.rows:
                if turn.crowded:
                    self._budget_ns -= turn.worked_ns
                return
            if not failed:
                turn.cost.observe(turn.rows, turn.worked_ns)
                self._typical_ns += (1 - FORGETTING) * (turn.worked_ns - self._typical_ns)
            self._start_waiting()

    def _pause(self, turn: Turn) -> None:
        with self._lock:
            if not self._waiting or self._waiting[0].due_ns >= turn.due_ns:
                return
            self._stop(turn)
            self._enqueue(turn)
            self._start_waiting()
            while not turn.running:
                turn.changed.wait()

    def _cancel(self, turn: Turn) -> None:
        with self._lock:
            # A call that has begun is seen through, pauses included.
            if turn in self._waiting and not turn.worked_ns:
                turn.cancelled = True
                turn.changed.notify()
                self._give_up(turn)

    def _enqueue(self, turn: Turn) -> None:
        turn.changed = threading.Condition(self._lock)
        self._rows += turn.rows
        bisect.insort(self._waiting, turn, key=_due_ns)

    def _leave(self, turn: Turn) -> None:
        """Takes a call out of the queue."""
        self._waiting.remove(turn)
        self._rows -= turn.rows

    def _give_up(self, turn: Turn) -> None:
        """Takes a call out of the queue that never began; what it was charged for it did not get."""
        self._leave(turn)
        self._budget_ns += turn.charged_ns

    def _start_waiting(self) -> None:
        """Gives the calls at the head of the queue their turn, as far as there is room."""
        while self._waiting and len(self._running) < self._running_max:
            turn = self._waiting[0]
            self._leave(turn)
            self._begin(turn)
            turn.changed.notify()

    def _wait_ns(self, due_ns: float) -> float:
        """How long a call that is due then would wait: for the rest of those that run, and for those due before it."""
        now_ns = self._clock()
        running_ns = sum(max(0.0, turn.left_ns - (now_ns - turn.began_ns)) for turn in self._running)
        ahead = itertools.takewhile(lambda turn: turn.due_ns <= due_ns, self._waiting)
        return (running_ns + sum(turn.left_ns for turn in ahead)) / self._running_max


def _due_ns(turn: Turn) -> float:
    return turn.due_ns


def _overloaded(wait_ns: float) -> Overloaded:
    return Overloaded("the calls ahead leave no time for this one", _retry_after_ms(wait_ns))


def _retry_after_ms(wait_ns: float) -> int:
    return max(RETRY_AFTER_MS_MIN, round(wait_ns / 1e6))
