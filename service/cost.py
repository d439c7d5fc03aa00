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
