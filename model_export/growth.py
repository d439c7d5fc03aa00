"""How the time of a run grows: with rows, features, bins, heads, and with what is present.

    python -m model_export.growth rows features bins heads presence

prints a table for each word, in Markdown. The nets are random and of the default plan's shape: cost depends on shapes
and on what is absent, not on what was learned. All graphs of a line take turns, on one thread; what counts is CPU time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.baselines.cost import graph_call, lap_times
from model_export.datasets.world_schema import SCHEMA
from model_export.graph import build, build_plain
from model_export.random_nets import NetShape, random_feeds, random_net
from service.schema import Feature, Head, Schema

# The default plan's.
DEFAULT = NetShape(bins=20, directions=2, log_counts=False)
ROWS, AUTHORS, ABSENT = 500, 100, 1 / 3
_FEEDS = 4
# For a random net any will do: time does not depend on it.
_TRUNK_INPUT_MAX = 4.0

Line = tuple[str, Mapping[str, NDArray[np.float64]]]


def time_forms(
    schema: Schema, shape: NetShape, rows: int, absent: float, forms: Sequence[str], rounds: int
) -> dict[str, NDArray[np.float64]]:
    """CPU ms of each round of each form of a random net's graph.

    Args:
        schema: Of the net.
        shape: Of the net.
        rows: Tweets of a run.
        absent: Share of absent values.
        forms: Of plain, float32, int8, sparse (int8, Tweets as entries).
        rounds: Runs of each form, after one to warm up.
    """
    net, calibration = random_net(schema, shape, seed=0)
    make: dict[str, Callable[[], bytes]] = {
        "plain": lambda: build_plain(schema, net, calibration),
        "float32": lambda: build(schema, net, calibration),
        "int8": lambda: build(schema, net, calibration, "int8", _TRUNK_INPUT_MAX),
        "sparse": lambda: build(schema, net, calibration, "int8", _TRUNK_INPUT_MAX, sparse_tweets=True),
    }
    nothing = {"viewer": np.zeros((1, 0), np.float32), "authors": np.zeros((AUTHORS, 0), np.float32)}
    feeds: list[dict[str, NDArray[Any]]] = [
        nothing | dict(random_feeds(schema, rows, AUTHORS, absent, seed)) for seed in range(_FEEDS)
    ]
    return lap_times({form: graph_call(make[form](), feeds) for form in forms}, rounds)


def by_rows(rounds: int) -> Iterator[Line]:
    """The default schema."""
    for rows in (10, 100, 500, 1_500, 5_000):
        yield f"{rows:,}", time_forms(SCHEMA, DEFAULT, rows, ABSENT, ("plain", "float32", "int8"), rounds)


def by_features(rounds: int) -> Iterator[Line]:
    """Continuous Tweet features only."""
    for features in (32, 64, 128, 256, 512, 1_024):
        for absent in (ABSENT, 0.9):
            times = time_forms(
                _tweet_schema(features), DEFAULT, ROWS, absent, ("plain", "float32", "int8", "sparse"), rounds
            )
            yield f"{features:,}, {absent:.0%} absent", times


def by_bins(rounds: int) -> Iterator[Line]:
    """The default schema."""
    for bins in (4, 8, 16, 32, 64):
        times = time_forms(SCHEMA, replace(DEFAULT, bins=bins), ROWS, ABSENT, ("plain", "float32", "int8"), rounds)
        yield str(bins), times


def by_heads(rounds: int) -> Iterator[Line]:
    """The default schema's features."""
    for heads in (1, 3, 6, 12, 24):
        schema = Schema(SCHEMA.features, tuple(Head(f"h{i}", 1.0, 1) for i in range(heads)))
        yield str(heads), time_forms(schema, DEFAULT, ROWS, ABSENT, ("plain", "float32", "int8"), rounds)


def by_presence(rounds: int) -> Iterator[Line]:
    """Continuous Tweet features only; rows of bins free, and in two directions."""
    for directions in (0, 2):
        for features in (64, 256, 1_024):
            for present in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5):
                shape = replace(DEFAULT, directions=directions)
                times = time_forms(_tweet_schema(features), shape, ROWS, 1 - present, ("int8", "sparse"), rounds)
                yield f"{features:,}, {present:.0%} present, {directions or 'free'}", times


TABLES: dict[str, Callable[[int], Iterator[Line]]] = {
    "rows": by_rows,
    "features": by_features,
    "bins": by_bins,
    "heads": by_heads,
    "presence": by_presence,
}


def table(name: str, lines: Sequence[Line]) -> str:
    """Medians in ms, minima beside them."""
    forms = list(lines[0][1])
    text = [f"| {name} | {' | '.join(forms)} |", "|---" * (len(forms) + 1) + "|"]
    for said, times in lines:
        cells = [f"{np.median(times[form]):.2f} ({times[form].min():.2f})" for form in forms]
        text.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the module's text shows; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m model_export.growth", description="How the time of a run grows.")
    parser.add_argument("tables", nargs="+", choices=list(TABLES))
    parser.add_argument("--rounds", type=int, default=20, help="runs of each graph; default %(default)s")
    options = parser.parse_args(arguments)
    for name in options.tables:
        lines = list(tqdm(TABLES[name](options.rounds), desc=name, unit="line", leave=False))
        print(f"{table(name, lines)}\n", flush=True)
    return 0


def _tweet_schema(features: int) -> Schema:
    return Schema(tuple(Feature(f"f{i}", "tweet", "continuous") for i in range(features)), SCHEMA.heads)


if __name__ == "__main__":
    sys.exit(main())
