"""How long the unlucky wait on a busy server: P6.

P6 is the 99th percentile of latency over the median latency that a call of as many Tweets has on an idle server, while
calls of mixed sizes come at LOAD of the rate that saturates it. A call that is not answered in full counts as one that
took forever.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from loadtest.measures import Measure
from loadtest.open_loop import PATIENCE_S, Generator, Outcome, arrivals

LOAD = 0.7
UNLOADED_CALLS = 12  # of each size
SATURATING_CALLS = 800
OFFERED_S = 12.0


class Repetition(NamedTuple):
    """Latencies over those on an idle server, and the rates behind them in calls per second."""

    p50: float
    p99: float
    saturating: float
    generator_cpu: float

    @staticmethod
    def of(ratios: Sequence[float], saturating: float, generator_cpu: float) -> Repetition:
        """From the latencies over those on an idle server."""
        p50, p99 = np.quantile(ratios, (0.5, 0.99), method="inverted_cdf")
        return Repetition(float(p50), float(p99), saturating, generator_cpu)


def measure(generator: Generator, tweet_counts: Sequence[int], seed: int) -> Repetition:
    """One repetition.

    Args:
        generator: With bodies of mixed sizes.
        tweet_counts: How many Tweets each of its bodies has.
        seed: Decides when calls come, and which.
    """
    rng = np.random.default_rng(seed)
    unloaded_s = unloaded(generator, tweet_counts)
    saturating = generator.saturate(_draw(generator, SATURATING_CALLS, rng))
    due_s = arrivals(LOAD * saturating, OFFERED_S, rng)
    offered = generator.offer(due_s, _draw(generator, len(due_s), rng), PATIENCE_S)
    ratios = slowdowns(offered.outcomes, tweet_counts, unloaded_s)
    return Repetition.of(ratios, saturating, offered.generator_cpu)


def unloaded(generator: Generator, tweet_counts: Sequence[int]) -> Mapping[int, float]:
    """Number of Tweets -> median seconds on an idle server."""
    medians_s = {}
    for tweets in sorted(set(tweet_counts)):
        picks = [i for i, count in enumerate(tweet_counts) if count == tweets]
        rounds = math.ceil(UNLOADED_CALLS / len(picks))
        medians_s[tweets] = statistics.median(generator.one_at_a_time((picks * rounds)[:UNLOADED_CALLS]))
    return medians_s


def slowdowns(outcomes: Sequence[Outcome], tweet_counts: Sequence[int], unloaded_s: Mapping[int, float]) -> list[float]:
    """Each call's latency over the median of its size; infinity where it was not answered in full."""
    return [o.latency_s / unloaded_s[tweet_counts[o.body]] if o.full else math.inf for o in outcomes]


def measures(repetitions: Sequence[Repetition]) -> Mapping[str, Measure]:
    """P6, the median beside it, and the rate behind them."""
    return {
        "P6": Measure.of([r.p99 for r in repetitions], "ratio"),
        "P6_median": Measure.of([r.p50 for r in repetitions], "ratio"),
        "P6_saturating": Measure.of([r.saturating for r in repetitions], "calls/s"),
        "P6_generator": Measure.of([r.generator_cpu for r in repetitions], "cores"),
    }


def _draw(generator: Generator, count: int, rng: np.random.Generator) -> list[int]:
    return [int(i) for i in rng.integers(0, len(generator.bodies), count)]
