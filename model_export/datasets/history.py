"""What happened before: sums over impressions of earlier days, for features that must not see the present.

Days are whole numbers (days since 1970-01-01), keys are non-negative codes of whatever is counted (a viewer, a video, a
pair of both); a negative key is an unknown one and has no history. Sums are over whole numbers, so they are exact: a
later day can not change an earlier one's sum by as much as a rounding error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# Codes are key * DAYS_MAX + day: room for keys up to 2**46 and for days until the year 2328.
DAYS_MAX = 1 << 17


@dataclass(frozen=True)
class PastTotals:
    """Running totals of n rows of m values in order of key, then day.

    Attributes:
        codes: [n], rising: key * DAYS_MAX + day.
        totals: [n + 1, m]: sum of the values of the rows before this one.
    """

    codes: Ints
    totals: Ints

    @staticmethod
    def of(keys: Ints, days: Ints, values: Ints) -> PastTotals:
        """Sums up rows: keys [n], days [n] in [0, DAYS_MAX), values [n, m]."""
        codes = np.where(keys < 0, -1, keys * DAYS_MAX + days)
        order = np.argsort(codes, kind="stable")
        totals = np.zeros((len(codes) + 1, values.shape[1]), np.int64)
        np.cumsum(values[order], axis=0, out=totals[1:])
        return PastTotals(codes[order], totals)

    def before(self, keys: Ints, days: Ints, window_days: int | None = None) -> tuple[Ints, Ints]:
        """Rows and sums of each key on the days strictly before `days`, at most `window_days` back.

        Args:
            keys: [q].
            days: [q].
            window_days: None: since the beginning.

        Returns:
            (rows [q], sums [q, m]), both 0 for a negative key.
        """
        start = np.maximum(days - window_days, 0) if window_days is not None else np.zeros_like(days)
        first = np.searchsorted(self.codes, keys * DAYS_MAX + start)
        last = np.searchsorted(self.codes, keys * DAYS_MAX + days)
        known = keys >= 0
        rows = np.where(known, last - first, 0)
        sums = np.where(known[:, None], self.totals[last] - self.totals[first], 0)
        return rows, sums

    def days_since(self, keys: Ints, days: Ints) -> NDArray[np.float64]:
        """Days from the key's last row strictly before `days` to `days`; [q], at least 1, NaN where there is none."""
        if not len(self.codes):
            return np.full(len(keys), np.nan)
        last = np.searchsorted(self.codes, keys * DAYS_MAX + days) - 1
        code = self.codes[np.maximum(last, 0)]
        found = (keys >= 0) & (last >= 0) & (code // DAYS_MAX == keys)
        return np.where(found, days - code % DAYS_MAX, np.nan)


def smoothed_rate(positives: Ints, rows: Ints, prior: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """(positives + strength * prior) / (rows + strength): the rate, pulled towards `prior` while rows are few.

    NaN (absent) where there are no rows at all: never seen is not the same as seen and average.
    """
    with np.errstate(invalid="ignore"):
        rate = (positives + strength * prior) / (rows + strength)
    return np.where(rows > 0, rate, np.nan)


def counts(ascending: Ints, needles: Ints) -> Ints:
    """How often each needle stands in an array that is in rising order."""
    found: Ints = np.searchsorted(ascending, needles, side="right") - np.searchsorted(ascending, needles, side="left")
    return found
