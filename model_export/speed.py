"""How fast graphs are: races between them, on one thread, and random nets of any shape to race.

    python -m model_export.speed --rows 100 500 1500 --bins 16

builds the plain, float32 and int8 graphs of a random net over the simulated world's schema and prints a line of JSON
per number of rows. Cost depends on shapes and on which values are absent, not on what was learned.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tqdm import trange

from model_export.datasets.world_schema import SCHEMA
from model_export.graph import build, build_plain
from model_export.weights import Binned, Categorical, Cross, Dense, Floats, GroupWeights, Knots, NetWeights, Raw, Towers
from service.schema import GROUPS, Feature, Group, Schema

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class NetShape:
    """What a random net looks like, besides its schema.

    Attributes:
        bins: Of each continuous feature.
        directions: In which the rows of a feature's bins lie, see `model_export.first_layer`; 0: every row is free.
        log_counts: Whether features with the unit "count" enter by their logarithm as well.
        units: K, of the first layer.
        crosses: Cross layers of rank 32.
        hidden: Units of the trunk's layers.
        tower_units: Of each head's hidden layer.
        knots: Of each head's calibration.
    """

    bins: int = 16
    directions: int = 0
    log_counts: bool = True
    units: int = 256
    crosses: int = 0
    hidden: tuple[int, ...] = (128, 64)
    tower_units: int = 16
    knots: int = 64


@dataclass(frozen=True)
class Timing:
    """CPU time of one run, in ms, over all rounds of a race."""

    median_ms: float
    min_ms: float
    max_ms: float


def race(graphs: Mapping[str, bytes], feeds: Sequence[Feeds], rounds: int) -> dict[str, Timing]:
    """Times graphs of the same inputs in turn, so that a slow moment of the machine is slow for all of them.

    One thread, which is the caller's, so its own CPU clock is what counts: other processes only cost caches.

    Args:
        graphs: By name, serialized.
        feeds: Inputs to rotate over.
        rounds: Runs of each graph, after one to warm up.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {name: onnxruntime.InferenceSession(g, options, ["CPUExecutionProvider"]) for name, g in graphs.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for session in sessions.values():
        session.run(None, feeds[0])
    for i in trange(rounds, desc="race", leave=False):
        for name, session in sessions.items():
            start = time.thread_time_ns()
            session.run(None, feeds[i % len(feeds)])
            times[name].append((time.thread_time_ns() - start) / 1e6)
    return {name: Timing(float(np.median(t)), min(t), max(t)) for name, t in times.items()}


def random_net(schema: Schema, shape: NetShape, seed: int) -> tuple[NetWeights, list[Knots]]:
    """A net of this shape and its calibration, weights drawn from `seed`; runs on what `random_feeds` makes."""
    rng = np.random.default_rng(seed)
    heads = len(schema.heads)

    def draw(*sizes: int) -> Floats:
        values: Floats = (rng.normal(0, 1, sizes) / np.sqrt(sizes[0])).astype(np.float32)
        return values

    def group(name: Group) -> GroupWeights:
        layout = schema.layouts[name]
        binned, categoricals, logs, vectors = [], [], [], []
        for feature in layout.features:
            column = layout.offsets[feature.name]
            if feature.kind == "vector":
                vectors += list(range(column, column + feature.width))
            elif feature.kind == "categorical":
                categoricals.append(Categorical(column, draw(len(feature.vocabulary), shape.units)))
            else:
                bins = 2 if feature.kind == "binary" else shape.bins
                boundaries = np.linspace(-1.5, 1.5, bins + 1, dtype=np.float32)[1:-1]
                free = draw(bins, shape.units)
                spanned = draw(bins, shape.directions) @ draw(shape.directions, shape.units)
                binned.append(Binned(column, boundaries, spanned if shape.directions else free))
                if shape.log_counts and feature.unit == "count":
                    logs.append(column)
        raws = tuple(
            Raw(np.array(c), log, np.full(len(c), 3, np.float32), draw(len(c)), draw(len(c), shape.units))
            for log, c in ((True, logs), (False, vectors))
            if c
        )
        return GroupWeights(tuple(binned), tuple(categoricals), raws)

    k = shape.units
    crosses = tuple(Cross(draw(k, 32), draw(32, k), draw(k)) for _ in range(shape.crosses))
    trunk = tuple(Dense(draw(a, b), draw(b), relu=True) for a, b in pairwise((k, *shape.hidden)))
    width = heads * shape.tower_units
    hidden = Dense(draw((k, *shape.hidden)[-1], width), draw(width), relu=True)
    towers = Towers(hidden, draw(heads, shape.tower_units), draw(heads))
    net = NetWeights({name: group(name) for name in GROUPS}, draw(k), crosses, True, trunk, towers)
    steps = np.linspace(0.01, 0.99, shape.knots, dtype=np.float32)
    return net, [Knots(steps, steps**2, end_slope=1e-3) for _ in range(heads)]


def random_feeds(schema: Schema, rows: int, authors: int, absent_share: float, seed: int) -> Feeds:
    """Inputs of `rows` Tweets by `authors` authors, each feature of each row absent with the same probability."""
    rng = np.random.default_rng(seed)

    def table(group: Group, length: int) -> Floats:
        layout = schema.layouts[group]
        values = rng.normal(0, 1, (length, layout.width)).astype(np.float32)
        for feature in layout.features:
            columns = slice(layout.offsets[feature.name], layout.offsets[feature.name] + feature.width)
            if feature.kind == "categorical":
                values[:, columns] = rng.integers(0, len(feature.vocabulary), (length, 1))
            values[rng.random(length) < absent_share, columns] = np.nan
        return values

    names: dict[Group, tuple[str, int]] = {"viewer": ("viewer", 1), "author": ("authors", authors)}
    names["tweet"] = ("tweets", rows)
    tables = {name: table(group, length) for group, (name, length) in names.items() if schema.layouts[group].width}
    return {**tables, "author_index": rng.integers(0, authors, rows)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the module's text shows; returns its exit status."""
    options = _parser().parse_args(arguments)
    shape = NetShape(
        bins=options.bins,
        units=options.units,
        crosses=options.crosses,
        hidden=tuple(options.hidden),
        knots=options.knots,
    )
    schema = SCHEMA if options.tweet_features is None else _tweet_schema(options.tweet_features)
    net, calibration = random_net(schema, shape, seed=0)
    graphs = {"plain": build_plain(schema, net, calibration)}
    graphs["float32"] = build(schema, net, calibration, "float32")
    graphs["int8"] = build(schema, net, calibration, "int8")
    for rows in options.rows:
        feeds = [random_feeds(schema, rows, options.authors, options.absent, seed) for seed in range(8)]
        timings = race(graphs, feeds, options.rounds)
        plain_over_int8 = timings["plain"].median_ms / timings["int8"].median_ms
        line = {"rows": rows, "plain_over_int8": plain_over_int8}
        print(json.dumps(line | {name: asdict(timing) for name, timing in timings.items()}))
    return 0


def _tweet_schema(features: int) -> Schema:
    return Schema(tuple(Feature(f"f{i}", "tweet", "continuous") for i in range(features)), SCHEMA.heads)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_export.speed", description=__doc__)
    shape = NetShape()
    parser.add_argument("--rows", type=int, nargs="+", default=[500], help="Tweets per run")
    parser.add_argument("--authors", type=int, default=100)
    parser.add_argument("--absent", type=float, default=1 / 3, help="share of absent values")
    parser.add_argument("--tweet-features", type=int, help="only so many continuous Tweet features, nothing else")
    parser.add_argument("--bins", type=int, default=shape.bins)
    parser.add_argument("--units", type=int, default=shape.units, help="of the first layer")
    parser.add_argument("--crosses", type=int, default=shape.crosses)
    parser.add_argument("--hidden", type=int, nargs="*", default=list(shape.hidden), help="units of the trunk's layers")
    parser.add_argument("--knots", type=int, default=shape.knots, help="of each head's calibration")
    parser.add_argument("--rounds", type=int, default=50)
    return parser


if __name__ == "__main__":
    sys.exit(main())
