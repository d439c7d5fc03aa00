"""What it costs to score a timeline: CPU time of one thread, all models in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import lightgbm
import numpy as np
from numpy.typing import NDArray

from model_export.baselines.rows import flat
from model_export.datasets.records import Impressions
from model_export.score import make_feeds, open_graph
from service.schema import Group

ROWS, AUTHORS = 500, 100

Name = TypeVar("Name")
Feeds = dict[str, NDArray[Any]]


def timelines(impressions: Impressions) -> list[Feeds]:
    """As many timelines of ROWS candidates by AUTHORS authors as the impressions have rows for, but at least one.

    Their values are real, who meets whom is not: each has the viewer row of its first impression and the author rows
    of its first AUTHORS. Inputs are those of a shipped graph, and `x`, the same tables joined row by row.
    """
    feeds: list[Feeds] = []
    author_index = np.arange(ROWS) % AUTHORS
    for start in range(0, max(len(impressions) - ROWS, 0) + 1, ROWS):
        rows = np.arange(start, start + ROWS) % len(impressions)
        chunk = {group: table[rows] for group, table in impressions.tables.items()}
        joined: dict[Group, NDArray[np.float32]] = {
            "viewer": chunk["viewer"][np.zeros(ROWS, np.int64)],
            "author": chunk["author"][author_index],
            "tweet": chunk["tweet"],
        }
        feeds.append(
            {
                "viewer": chunk["viewer"][:1],
                "authors": chunk["author"][:AUTHORS],
                "tweets": chunk["tweet"],
                "author_index": author_index,
                "x": flat(joined),
            }
        )
    return feeds


def graph_call(model: bytes, feeds: Sequence[Feeds]) -> Callable[[int], object]:
    """Runs a graph on one thread on the i-th timeline."""
    session = open_graph(model, threads=1)
    of_one_matrix = [node.name for node in session.get_inputs()] == ["x"]
    given = [{"x": feed["x"]} if of_one_matrix else make_feeds(session, *_tables(feed)) for feed in feeds]
    return lambda i: session.run(None, given[i % len(given)])


def _tables(feed: Feeds) -> tuple[dict[Group, NDArray[Any]], NDArray[Any]]:
    return {"viewer": feed["viewer"], "author": feed["authors"], "tweet": feed["tweets"]}, feed["author_index"]


def booster_call(boosters: Sequence[lightgbm.Booster], feeds: Sequence[Feeds]) -> Callable[[int], object]:
    """Runs LightGBM's own prediction of all heads on one thread on the i-th timeline."""
    return lambda i: [booster.predict(feeds[i % len(feeds)]["x"], num_threads=1) for booster in boosters]


def calls_of(
    graphs: Mapping[str, bytes], boosters: Sequence[lightgbm.Booster], feeds: Sequence[Feeds]
) -> dict[str, Callable[[int], object]]:
    """A call for each form of a model: its graphs by name, and "LightGBM" where it is trees."""
    calls = {form: graph_call(graph, feeds) for form, graph in graphs.items()}
    return calls | {"LightGBM": booster_call(boosters, feeds)} if boosters else calls


def race(calls: Mapping[Name, Callable[[int], object]], rounds: int) -> dict[Name, float]:
    """Median CPU time in ms of each call; see `lap_times`."""
    return {name: float(np.median(laps)) for name, laps in lap_times(calls, rounds).items()}


def lap_times(calls: Mapping[Name, Callable[[int], object]], rounds: int) -> dict[Name, NDArray[np.float64]]:
    """CPU time in ms of each call in each round, made in turn so that a slow moment of the machine is slow for all.

    The caller's thread does all the work, so its own CPU clock is what counts.
    """
    times: dict[Name, list[int]] = {name: [] for name in calls}
    for call in calls.values():
        call(0)
    for i in range(rounds):
        for name, call in calls.items():
            start = time.thread_time_ns()
            call(i)
            times[name].append(time.thread_time_ns() - start)
    return {name: np.array(taken) / 1e6 for name, taken in times.items()}
