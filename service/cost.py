"""What a call costs by its rows, learned from the calls of late."""

from __future__ import annotations

from collections.abc import Sequence

# What an observation's weight is multiplied by with every later one: the last 50 make up nearly two thirds.
FORGETTING = 0.98
# A call is taken to last as long as predicted and this many mean deviations on top, like TCP's retransmission timer.
DEVIATIONS = 2


class Cost:
    """Nanoseconds of a call by its rows, a + b x rows: least squares that forget.

    The points that it starts with keep the weight of one observation each: they hold the line where calls of late all
    had the same number of rows.
    """

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        """Begins with `points`: rows and nanoseconds, of two different numbers of rows at least."""
        moments = [(1.0, float(rows), float(rows * rows), float(ns), float(rows * ns)) for rows, ns in points]
        # Weighted sums over the points and observations: 1, rows, rows^2, ns, rows x ns.
        n, r, rr, t, rt = map(sum, zip(*moments, strict=True))
        # What the points lose with every observation, and get back.
        keep = 1 - FORGETTING
        self._kept = (keep * n, keep * r, keep * rr, keep * t, keep * rt)
        self._deviation_ns = 0.0
        self._fit(n, r, rr, t, rt)

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
        error_ns = abs(ns - self._a - self._b * rows)
        self._deviation_ns += (1 - FORGETTING) * (error_ns - self._deviation_ns)
        n, r, rr, t, rt = self._sums
        n0, r0, rr0, t0, rt0 = self._kept
        self._fit(
            n * FORGETTING + n0 + 1,
            r * FORGETTING + r0 + rows,
            rr * FORGETTING + rr0 + rows * rows,
            t * FORGETTING + t0 + ns,
            rt * FORGETTING + rt0 + rows * ns,
        )

    def doubt(self) -> None:
        """Expects a little less. A cost that turned every call away would otherwise never be measured again."""
        n, r, rr, t, rt = self._sums
        self._deviation_ns *= FORGETTING
        self._fit(n, r, rr, t * FORGETTING, rt * FORGETTING)

    def _fit(self, n: float, r: float, rr: float, t: float, rt: float) -> None:
        self._sums = (n, r, rr, t, rt)
        slope = (n * rt - r * t) / (n * rr - r * r)
        intercept = (t - slope * r) / n
        if slope < 0:  # more rows never take less
            slope, intercept = 0.0, t / n
        elif intercept < 0:
            slope, intercept = rt / rr, 0.0
        self._a, self._b = intercept, slope
