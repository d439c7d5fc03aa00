"""How much good work is left when more calls come than can be answered: P5.

Goodput is the rate of answers with every Tweet scored within a fixed deadline, DEADLINE_MEDIANS times the median
latency of an idle server; callers wait no longer than that. P5 is the goodput at twice the rate that saturates the
server, over that at the rate itself.
"""

from __future__ import annotations

import itertools
import statistics
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import grpc
import numpy as np

from loadtest.measures import Measure
from loadtest.open_loop import PATIENCE_S, RANK_TIMELINE, Generator, Offered, arrivals
from loadtest.pinned import PinnedProcess

DEADLINE_MEDIANS = 10
UNLOADED_CALLS = 64
SATURATING_CALLS = 640
OFFERED_S = 4.0
REFUSED_CALLS = 200


class Saturation(NamedTuple):
    """What a server can do.

    Attributes:
        rate: Calls per second.
        deadline_s: Of every call from now on.
    """

    rate: float
    deadline_s: float


class Repetition(NamedTuple):
    """Calls per second, and microseconds of the server's CPU per call."""

    saturating: float
    goodput: float
    goodput_at_twice: float
    served_us: float
    refused_us: float
    generator_cpu: float


def find_saturation(generator: Generator) -> Saturation:
    """Measures it on calls of one size."""
    picks = _in_turn(generator, UNLOADED_CALLS)
    deadline_s = DEADLINE_MEDIANS * statistics.median(generator.one_at_a_time(picks))
    return Saturation(generator.saturate(_in_turn(generator, SATURATING_CALLS)), deadline_s)


def offer(
    generator: Generator, saturation: Saturation, times: float, rng: np.random.Generator, seconds: float = OFFERED_S
) -> Offered:
    """Offers so many times the saturating rate."""
    due_s = arrivals(times * saturation.rate, seconds, rng)
    return generator.offer(due_s, _in_turn(generator, len(due_s)), saturation.deadline_s)


def goodput(offered: Offered, deadline_s: float) -> float:
    """Answers per second that have all Tweets scored and came in time."""
    return sum(o.full and o.latency_s <= deadline_s for o in offered.outcomes) / offered.seconds


def measure(generator: Generator, server: PinnedProcess, target: str, places: int, seed: int) -> Repetition:
    """One repetition.

    Args:
        generator: With the standard load's bodies.
        server: What the calls go to.
        target: Its HOST:PORT.
        places: How many calls it works on at a time.
        seed: Decides when calls come.
    """
    rng = np.random.default_rng(seed)
    saturation = find_saturation(generator)
    at_once = offer(generator, saturation, 1, rng)
    at_twice = offer(generator, saturation, 2, rng)
    before_ns = server.cpu_ns()
    generator.one_at_a_time(_in_turn(generator, UNLOADED_CALLS))
    served_ns = server.cpu_ns() - before_ns
    return Repetition(
        saturation.rate,
        goodput(at_once, saturation.deadline_s),
        goodput(at_twice, saturation.deadline_s),
        served_ns / UNLOADED_CALLS / 1e3,
        refusal_us(generator.bodies, server, target, places),
        max(at_once.generator_cpu, at_twice.generator_cpu),
    )


def refusal_us(bodies: Sequence[bytes], server: PinnedProcess, target: str, places: int) -> float:
    """Microseconds of the server's CPU for a call that comes when all places are taken, by calls without a body."""
    over = threading.Event()

    def no_body() -> Iterator[bytes]:
        over.wait()
        yield from ()

    with grpc.insecure_channel(target) as holding, grpc.insecure_channel(target) as refused:
        hold: grpc.StreamUnaryMultiCallable[bytes, bytes] = holding.stream_unary(RANK_TIMELINE)
        rank: grpc.UnaryUnaryMultiCallable[bytes, bytes] = refused.unary_unary(RANK_TIMELINE)
        held = [hold.future(no_body()) for _ in range(places)]
        try:
            while _code(rank, bodies[0]) is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                pass
            before_ns = server.cpu_ns()
            codes = {_code(rank, body) for body in itertools.islice(itertools.cycle(bodies), REFUSED_CALLS)}
            spent_ns = server.cpu_ns() - before_ns
        finally:
            over.set()
            for call in held:
                call.cancel()
            while _code(rank, bodies[0]) is grpc.StatusCode.RESOURCE_EXHAUSTED:  # until the places are free again
                pass
    if codes != {grpc.StatusCode.RESOURCE_EXHAUSTED}:
        raise ValueError(f"calls to a full server ended with {sorted(code.name for code in codes)}")
    return spent_ns / REFUSED_CALLS / 1e3


def measures(repetitions: Sequence[Repetition]) -> Mapping[str, Measure]:
    """P5, what a refusal costs, and the rates behind them."""
    return {
        "P5": Measure.of([r.goodput_at_twice / r.goodput for r in repetitions], "ratio"),
        "P5_refusal_cost": Measure.of([r.refused_us / r.served_us for r in repetitions], "ratio"),
        "P5_saturating": Measure.of([r.saturating for r in repetitions], "calls/s"),
        "P5_goodput": Measure.of([r.goodput for r in repetitions], "calls/s"),
        "P5_goodput_2x": Measure.of([r.goodput_at_twice for r in repetitions], "calls/s"),
        "P5_generator": Measure.of([r.generator_cpu for r in repetitions], "cores"),
    }


def _code(rank: grpc.UnaryUnaryMultiCallable[bytes, bytes], body: bytes) -> grpc.StatusCode:
    return rank.future(body, timeout=PATIENCE_S).code()


def _in_turn(generator: Generator, count: int) -> list[int]:
    return [i % len(generator.bodies) for i in range(count)]
