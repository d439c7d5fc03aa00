from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.latency import MICROSECONDS_MAX, STEP, LatencyHistogram

latencies_us = st.lists(st.floats(1, MICROSECONDS_MAX), min_size=1, max_size=200)


def histogram(values: list[float]) -> LatencyHistogram:
    made = LatencyHistogram()
    for value in values:
        made.record(value)
    return made


@given(values=latencies_us, q=st.floats(0, 1))
def test_a_quantile_is_that_of_the_latencies_to_a_per_cent(values: list[float], q: float) -> None:
    """Against numpy's, which keeps them all."""
    exact = float(np.quantile(values, q, method="inverted_cdf"))

    assert histogram(values).quantile_us(q) == pytest.approx(exact, rel=STEP - 1)


@given(first=latencies_us, second=latencies_us)
def test_added_histograms_are_one_of_all_latencies(first: list[float], second: list[float]) -> None:
    """Count, quantiles and maximum."""
    both, together = histogram(first), histogram(first + second)
    both.add(histogram(second))

    assert (len(both), both.max_us) == (len(together), together.max_us) == (len(first + second), max(first + second))
    assert [both.quantile_us(q) for q in (0.1, 0.5, 0.99)] == [together.quantile_us(q) for q in (0.1, 0.5, 0.99)]


def test_what_lies_beyond_the_ends_is_counted() -> None:
    """At the end that it lies beyond; the maximum stays exact."""
    made = histogram([0.0, 10.0 * MICROSECONDS_MAX])

    assert len(made) == 2
    assert made.quantile_us(0) == pytest.approx(1, rel=0.01)
    assert made.quantile_us(1) == pytest.approx(MICROSECONDS_MAX, rel=0.01)
    assert made.max_us == 10.0 * MICROSECONDS_MAX


def test_nothing_has_no_quantile() -> None:
    """Not zero."""
    assert math.isnan(LatencyHistogram().quantile_us(0.5))
