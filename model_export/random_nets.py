"""Random nets of any shape, and inputs for them.

What a graph costs depends on shapes and on what is absent, not on what was learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.weights import Binned, Categorical, Cross, Dense, Floats, GroupWeights, Knots, NetWeights, Raw, Towers
from service.schema import GROUPS, Group, Schema

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
    knots: int = 8


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
    logits = np.linspace(-4, 4, shape.knots, dtype=np.float32)
    return net, [Knots(logits, (logits + logits**3 / 99).astype(np.float32)) for _ in range(heads)]


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
