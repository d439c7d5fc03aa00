"""Calls at the times of a Poisson process, whether the server keeps up or not.

Users do not wait for each other: what arrives does not slow down because answers do. So a call's latency counts from
when it was due, not from when a generator behind its schedule got round to it.
"""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb

RANK_TIMELINE = "/timelines.ranking.v1.TimelineRankingService/RankTimeline"
# Bodies share the flow control window of their connection; a few of those keep a large one from holding up the others.
CHANNELS = 4
# In flight where the server is to be busy all the time, and no call is to be turned away.
SATURATING_CALLS = 4
# Longer than anything takes that is to be measured and not cut off.
PATIENCE_S = 30.0
# Python hands its lock from thread to thread that often at the latest; its default of 5 ms would count as latency.
SWITCH_INTERVAL_S = 0.0002


class Outcome(NamedTuple):
    """What became of a call.

    Attributes:
        body: Which of the bodies it had.
        latency_s: Seconds from when it was due to its end.
        code: Its status.
        degradation: Of the answer; UNSPECIFIED where there is none.
    """

    body: int
    latency_s: float
    code: grpc.StatusCode
    degradation: pb.Degradation.ValueType

    @property
    def full(self) -> bool:
        """Whether every Tweet was scored."""
        return self.degradation == pb.DEGRADATION_NONE


class Offered(NamedTuple):
    """A load, and what became of it.

    Attributes:
        outcomes: In the order of their ends.
        seconds: For how long calls came.
        generator_cpu: Share of a core that the generator used, 0 to 1.
    """

    outcomes: list[Outcome]
    seconds: float
    generator_cpu: float


class Generator:
    """Sends calls to one server, and times them."""

    def __init__(self, calls: Sequence[grpc.UnaryUnaryMultiCallable[bytes, bytes]], bodies: Sequence[bytes]) -> None:
        """Takes RankTimeline on any number of channels, and the requests to send."""
        self._calls = calls
        self.bodies = bodies

    def one_at_a_time(self, picks: Sequence[int]) -> list[float]:
        """Seconds of each call, where no other is under way; raises ValueError if one is not answered in full."""
        latencies_s = []
        for pick in picks:
            begun_s = time.perf_counter()
            outcome = _finish(pick, self._send(0, pick, PATIENCE_S), begun_s)
            _check_full(outcome)
            latencies_s.append(outcome.latency_s)
        return latencies_s

    def saturate(self, picks: Sequence[int]) -> float:
        """Calls per second that the server answers in full with SATURATING_CALLS always under way."""
        done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        begun_s = time.perf_counter()
        for sent, pick in enumerate(picks):
            if sent >= SATURATING_CALLS:
                _check_full(done.get(timeout=PATIENCE_S))
            self._send_to(done, sent, pick, PATIENCE_S, time.perf_counter())
        for _ in range(min(SATURATING_CALLS, len(picks))):
            _check_full(done.get(timeout=PATIENCE_S))
        return len(picks) / (time.perf_counter() - begun_s)

    def offer(self, due_s: NDArray[np.float64], picks: Sequence[int], timeout_s: float) -> Offered:
        """Sends a call at each of the times, and waits for all to end.

        Args:
            due_s: Float64 [calls], seconds from now, ascending.
            picks: Which body each call has.
            timeout_s: How long a call's caller waits.
        """
        done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        for sent, (due, pick) in enumerate(zip(due_s.tolist(), picks, strict=True)):
            ahead_s = begun_s + due - time.perf_counter()
            if ahead_s > 0:
                time.sleep(ahead_s)
            self._send_to(done, sent, pick, timeout_s, begun_s + due)
        seconds, cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
        outcomes = [done.get(timeout=PATIENCE_S + timeout_s) for _ in picks]
        return Offered(outcomes, seconds, cpu_s / seconds)

    def _send(self, sent: int, pick: int, timeout_s: float) -> grpc._CallFuture[bytes]:
        return self._calls[sent % len(self._calls)].future(self.bodies[pick], timeout=timeout_s)

    def _send_to(self, done: queue.SimpleQueue[Outcome], sent: int, pick: int, timeout_s: float, due_s: float) -> None:
        call = self._send(sent, pick, timeout_s)
        call.add_done_callback(lambda _: done.put(_finish(pick, call, due_s)))


def _finish(pick: int, call: grpc._CallFuture[bytes], due_s: float) -> Outcome:
    code = call.code()  # waits for the end
    latency_s = time.perf_counter() - due_s
    if code is not grpc.StatusCode.OK:
        return Outcome(pick, latency_s, code, pb.DEGRADATION_UNSPECIFIED)
    return Outcome(pick, latency_s, code, pb.RankTimelineResponse.FromString(call.result()).degradation)


def _check_full(outcome: Outcome) -> None:
    if not outcome.full:
        raise ValueError(f"a call ended with {outcome.code.name}, {pb.Degradation.Name(outcome.degradation)}")


@contextmanager
def generator(target: str, bodies: Sequence[bytes]) -> Iterator[Generator]:
    """A generator of calls to HOST:PORT, on connections of its own."""
    interval_s = sys.getswitchinterval()
    with ExitStack() as stack:
        stack.callback(sys.setswitchinterval, interval_s)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        options = [("grpc.use_local_subchannel_pool", 1)]  # without it, channels to one target share a connection
        channels = [stack.enter_context(grpc.insecure_channel(target, options)) for _ in range(CHANNELS)]
        calls: list[grpc.UnaryUnaryMultiCallable[bytes, bytes]] = [c.unary_unary(RANK_TIMELINE) for c in channels]
        for channel in channels:
            grpc.channel_ready_future(channel).result(timeout=PATIENCE_S)
        yield Generator(calls, bodies)


def arrivals(rate: float, seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Float64 [any], ascending: the times within `seconds` of a Poisson process of so many events per second."""
    return np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))
