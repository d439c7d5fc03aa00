"""Latencies to the microsecond, in memory that does not grow with their number."""

from __future__ import annotations

import math

import numpy as np

STEP = 1.01  # from one bucket to the next: what a quantile may be off by
MICROSECONDS_MAX = 100_000_000


class LatencyHistogram:
    """Counts latencies from 1 us to 100 s in buckets one per cent apart; what lies beyond counts in the outermost."""

    def __init__(self) -> None:
        self._counts = np.zeros(_bucket(MICROSECONDS_MAX) + 1, np.int64)
        self.max_us = 0.0

    def __len__(self) -> int:
        return int(self._counts.sum())

    def record(self, microseconds: float) -> None:
        """Counts one latency."""
        self._counts[_bucket(min(max(microseconds, 1.0), MICROSECONDS_MAX))] += 1
        self.max_us = max(self.max_us, microseconds)

    def quantile_us(self, q: float) -> float:
        """A value that the share `q` of the latencies does not exceed by more than STEP; NaN where there are none."""
        cumulative = self._counts.cumsum()
        if not cumulative[-1]:
            return math.nan
        bucket = int(np.searchsorted(cumulative, max(math.ceil(q * cumulative[-1]), 1)))
        return float(STEP ** (bucket + 0.5))

    def add(self, other: LatencyHistogram) -> None:
        """Counts what another one counted."""
        self._counts += other._counts
        self.max_us = max(self.max_us, other.max_us)


def _bucket(microseconds: float) -> int:
    return int(math.log(microseconds) / math.log(STEP))
