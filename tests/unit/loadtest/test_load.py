"""Loads, and what their figures are made of, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import grpc
import numpy as np
import pytest

from loadtest import overload, tail
from loadtest.open_loop import Generator, Offered, Outcome, arrivals, generator
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from tests.server_process import answering

FULL, PARTIAL = pb.DEGRADATION_NONE, pb.DEGRADATION_PARTIAL
OK, REFUSED = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_call_that_is_sent_late_is_late() -> None:
    """Due five seconds ago: its latency counts from then, however fast the answer."""
    body = pb.RankTimelineResponse(degradation=FULL).SerializeToString()
    methods = {"RankTimeline": lambda _request, _context: body}
    with answering("timelines.ranking.v1.TimelineRankingService", methods) as target, generator(target, [b""]) as calls:
        offered = calls.offer(np.array([-5.0, 0.0]), [0, 0], 60.0)
    first, second = sorted(outcome.latency_s for outcome in offered.outcomes)
    assert first >= 0
    assert second >= 5


def test_arrivals_are_those_of_a_poisson_process() -> None:
    """10,000 are expected, give or take four standard deviations; gaps are exponential: as wide as their mean."""
    due_s = arrivals(1_000, 10, np.random.default_rng(1))
    assert abs(len(due_s) - 10_000) < 400
    assert (np.diff(due_s) >= 0).all()
    assert 0 <= due_s[0] <= due_s[-1] < 10
    assert np.diff(due_s).std() == pytest.approx(np.diff(due_s).mean(), rel=0.1)


def test_goodput_by_hand() -> None:
    """Of four calls in two seconds one is in full and in time."""
    outcomes = [Outcome(0, 0.5, OK, FULL), Outcome(0, 0.51, OK, FULL), Outcome(0, 0.1, OK, PARTIAL)]
    offered = Offered([*outcomes, Outcome(0, 0.1, REFUSED, pb.DEGRADATION_UNSPECIFIED)], 2.0, 0.3)
    assert overload.goodput(offered, 0.5) == 0.5


def test_p5_by_hand() -> None:
    """What is left at twice the load, over what there was."""
    found = overload.measures([overload.Repetition(100, 80, 60, 500, 50, 0.3)])
    assert found["P5"].value == 0.75
    assert found["P5_refusal_cost"].value == 0.1


class Steady:
    """A generator whose server takes 10 ms for anything."""

    bodies: Sequence[bytes] = (b"", b"")

    def one_at_a_time(self, picks: Sequence[int]) -> list[float]:
        return [0.01] * len(picks)

    def saturate(self, _picks: Sequence[int]) -> float:
        return 100.0


def test_the_deadline_is_ten_medians() -> None:
    """As the contract has it."""
    found = overload.find_saturation(cast(Generator, Steady()))
    assert found.rate == 100
    assert found.deadline_s == pytest.approx(0.1)


def test_slowdowns_by_hand() -> None:
    """Each over the median of its own size; a call that got less than all scores took forever."""
    outcomes = [Outcome(0, 0.4, OK, FULL), Outcome(1, 0.4, OK, FULL), Outcome(0, 0.1, OK, PARTIAL)]
    assert tail.slowdowns(outcomes, [100, 500], {100: 0.1, 500: 0.2}) == [pytest.approx(4), pytest.approx(2), math.inf]


def test_p6_by_hand() -> None:
    """Of 100 calls the slowest but one is the 99th percentile; those that were not answered are the slowest."""
    ratios = [*range(1, 99), 200.0, math.inf]
    found = tail.measures([tail.Repetition.of(ratios, 100.0, 0.3)])

    assert found["P6"].value == 200
    assert found["P6_median"].value == 50
    assert tail.Repetition.of([*ratios[1:], math.inf], 100.0, 0.3).p99 == math.inf
