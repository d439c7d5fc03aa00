"""A gate in front of a model, its clock a number that tests set, and calls that wait at it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from service.admission import Admission, Turn
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb

MS = 1_000_000
# A call takes 1 ms and 10 us for each row.
POINTS = [(0, 1.0 * MS), (1_000, 11.0 * MS)]
VERSION = "7"
NONE, PARTIAL, CHRONOLOGICAL = (
    pb.DEGRADATION_NONE,
    pb.DEGRADATION_PARTIAL,
    pb.DEGRADATION_REVERSE_CHRONOLOGICAL,
)


# What `with` tells a call's turn when its block fails.
ERROR = (ValueError, ValueError("broken"), None)


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


def gate(clock: Callable[[], int] | None = None, running_max: int = 1) -> Admission:
    admission = Admission(running_max, clock or Clock())
    admission.start({VERSION: POINTS})
    return admission


def shape(turn: Turn) -> tuple[int, int]:
    return turn.rows, turn.degradation


def wait(
    callers: ThreadPoolExecutor, admission: Admission, rows: int, ends: Ends, deadline_ns: float, full_only: bool = True
) -> Future[Turn]:
    """A call in the queue."""
    turn = callers.submit(admission.admit, VERSION, rows, deadline_ns, full_only, ends)
    assert ends.waiting.acquire(timeout=60)
    return turn
