"""What is timed, and that all of it is run alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from model_export.baselines.cost import graph_call, race, timelines
from model_export.calibrate import IDENTITY
from model_export.datasets.records import Impressions
from model_export.graph import build
from model_export.random_nets import NetShape, random_net
from service.schema import Schema


def test_a_timeline_is_the_same_for_both_kinds_of_input(make_impressions: Callable[[int, int], Impressions]) -> None:
    """500 candidates by 100 authors; x holds each row's viewer, author and Tweet side by side."""
    impressions = make_impressions(1_100, 1)
    feeds = timelines(impressions)
    assert len(feeds) == 2
    feed = feeds[1]
    assert feed["viewer"].shape[0] == 1
    assert feed["authors"].shape[0] == 100
    assert feed["tweets"].shape[0] == 500
    joined = [
        np.repeat(feed["viewer"], 500, axis=0),
        feed["authors"][feed["author_index"]],
        feed["tweets"],
    ]
    np.testing.assert_array_equal(feed["x"], np.concatenate(joined, axis=1))
    np.testing.assert_array_equal(feed["tweets"], impressions.tables["tweet"][500:1_000])


def test_few_impressions_make_one_timeline(make_impressions: Callable[[int, int], Impressions]) -> None:
    """They are repeated until it is full."""
    (feed,) = timelines(make_impressions(30, 1))
    np.testing.assert_array_equal(feed["tweets"][30:60], feed["tweets"][:30])


def test_all_calls_are_made_in_turn() -> None:
    """Once to warm up, then as often as asked, each on the same timelines; the slower one takes longer."""
    made: list[tuple[str, int]] = []

    def call(name: str, work: int) -> Callable[[int], object]:
        def run(i: int) -> int:
            made.append((name, i))
            return sum(range(work))

        return run

    ms = race({"short": call("short", 10), "long": call("long", 100_000)}, rounds=5)
    assert made[2:] == [(name, i) for i in range(5) for name in ("short", "long")]
    assert Counter(name for name, _ in made) == {"short": 6, "long": 6}
    assert 0 <= ms["short"] < ms["long"]


def test_a_graph_takes_the_inputs_that_it_has(
    small_schema: Schema, make_impressions: Callable[[int, int], Impressions]
) -> None:
    """Of a timeline's inputs those of the graph's signature; timelines come round again."""
    net, _ = random_net(small_schema, NetShape(units=8, hidden=(), tower_units=2), seed=1)
    call = graph_call(build(small_schema, net, [IDENTITY, IDENTITY]), timelines(make_impressions(1_000, 1)))
    answers = [np.asarray(answer) for answer in (call(0), call(1), call(2))]
    assert answers[0][0].shape == (500, 2)
    np.testing.assert_array_equal(answers[0], answers[2])
    assert (answers[0] != answers[1]).any()
