"""Small nets, random ones among them, and a slow forward pass written from the definitions in `weights.py`.

The forward pass takes one row, one feature, one head at a time, in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnxruntime
from hypothesis import strategies as st

from model_export.graph import Precision, build, build_plain
from model_export.weights import Binned, Categorical, Cross, Dense, Floats, GroupWeights, Knots, NetWeights, Raw, Towers
from service.schema import GROUPS, Feature, Group, Head, Schema

NAN = float("nan")
INF = float("inf")
EMPTY = GroupWeights((), (), ())
RISING = Knots(np.array([-1.0, 1.0], np.float32), np.array([-1.0, 1.0], np.float32))
PRECISIONS: dict[str, Precision] = {"float32": "float32", "int8": "int8"}
INPUT_NAMES: dict[Group, str] = {"viewer": "viewer", "author": "authors", "tweet": "tweets"}
Tables = dict[Group, Floats]


def reference_group_row(weights: GroupWeights, row: Floats, units: int) -> np.ndarray[Any, Any]:
    h = np.zeros(units)
    for binned in weights.binned:
        x = row[binned.column]
        if not math.isnan(x):
            h += binned.weights[sum(1 for b in binned.boundaries if b <= x)]
    for categorical in weights.categoricals:
        x = row[categorical.column]
        if not math.isnan(x):
            h += categorical.weights[int(x)]
    for raw in weights.raws:
        for i, column in enumerate(raw.columns):
            x = float(row[column])
            if not math.isnan(x):
                value = math.copysign(math.log1p(abs(x)), x) if raw.log else x
                h += (min(max(value / float(raw.scale[i]), -1.0), 1.0) + float(raw.bias[i])) * raw.weights[i]
    return h


def reference_raw(weights: NetWeights, tables: Tables, author_index: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows = []
    for n, author in enumerate(author_index):
        at: dict[Group, int] = {"viewer": 0, "author": int(author), "tweet": n}
        first = weights.bias.astype(np.float64)
        for group in GROUPS:
            if group in weights.groups:
                first = first + reference_group_row(weights.groups[group], tables[group][at[group]], len(first))
        if weights.dots is not None:
            products = [
                sum(
                    float(tables["tweet"][n][a]) * float(tables[pair.group][at[pair.group]][b])
                    for a, b in zip(pair.tweet_columns, pair.columns, strict=True)
                )
                for pair in weights.dots.pairs
            ]
            dots = GroupWeights((), (), (weights.dots.raw,))
            first = first + reference_group_row(dots, np.array(products), len(first))
        wide: Any = 0.0
        if weights.wide and weights.towers is not None:
            units = len(first) - len(weights.towers.bias)
            first, wide = first[:units], first[units:]
        x = first
        for cross in weights.crosses:
            x = first * (x @ cross.down @ cross.up + cross.bias) + x
        if weights.relu:
            x = np.maximum(x, 0)
        for dense in weights.trunk:
            x = x @ dense.weights + dense.bias
            x = np.maximum(x, 0) if dense.relu else x
        if weights.towers is not None:
            hidden = np.maximum(x @ weights.towers.hidden.weights + weights.towers.hidden.bias, 0)
            width = weights.towers.out.shape[1]
            x = np.array(
                [
                    hidden[j * width : (j + 1) * width] @ out + bias
                    for j, (out, bias) in enumerate(zip(weights.towers.out, weights.towers.bias, strict=True))
                ]
            )
            x = x + wide
        rows.append([1 / (1 + math.exp(-z)) for z in x])
    return np.array(rows)


def reference_calibrated(knots: Knots, p: float) -> float:
    x, y = knots.x.astype(np.float64), knots.y.astype(np.float64)
    z = math.log(p / (1 - p))
    if z < x[0]:
        z += float(y[0] - x[0])
    elif z >= x[-1]:
        z += float(y[-1] - x[-1])
    else:
        z = float(np.interp(z, x, y))
    return 1 / (1 + math.exp(-z))


def run(model: bytes, tables: Tables, author_index: Any) -> tuple[Floats, Floats]:
    """Returns (probabilities, raw_probabilities)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {INPUT_NAMES[g]: t for g, t in tables.items() if t.shape[1]}
    feeds["author_index"] = np.asarray(author_index, np.int64)
    probabilities, raw = session.run(["probabilities", "raw_probabilities"], feeds)
    return probabilities, raw


def f32(*values: float) -> Floats:
    return np.array(values, np.float32)


def linear_net(heads: int = 1, **groups: GroupWeights) -> NetWeights:
    return NetWeights(
        groups={g: groups.get(g, EMPTY) for g in GROUPS},
        bias=np.zeros(heads, np.float32),
        crosses=(),
        relu=False,
        trunk=(),
        towers=None,
    )


def tweet_schema(*features: Feature) -> Schema:
    return Schema(features, (Head("like", 1.0, 1),))


def tweet_logits(net: NetWeights, schema: Schema, column: list[float], form: str = "float32") -> list[float]:
    """Logits of Tweets with one column of these values."""
    table = np.array(column, np.float32)[:, np.newaxis]
    tables: Tables = {"viewer": np.zeros((1, 0), np.float32), "author": np.zeros((1, 0), np.float32), "tweet": table}
    model = build_plain(schema, net, [RISING]) if form == "plain" else build(schema, net, [RISING], PRECISIONS[form])
    raw = run(model, tables, np.zeros(len(column)))[1].astype(np.float64)
    return [round(float(z), 4) for z in np.log(raw / (1 - raw))[:, 0]]


class RandomNet:
    """A schema, a net of it and inputs, all drawn from `seed`; sizes from hypothesis."""

    def __init__(self, seed: int, linear: bool, crosses: int, counts: list[int], rows: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        heads = int(rng.integers(1, 4))
        units = heads if linear else int(rng.integers(1, 9))
        features: list[Feature] = []
        for group, count in zip(GROUPS, counts, strict=True):
            for i in range(count):
                kind = rng.choice(["continuous", "binary", "categorical", "vector"])
                vocabulary = tuple(f"c{v}" for v in range(rng.choice([1, 3, 90]))) if kind == "categorical" else ()
                features.append(Feature(f"f{i}", group, kind, "", vocabulary, 3 if kind == "vector" else 1))
        self.schema = Schema(tuple(features), tuple(Head(f"h{j}", 1.0, 1) for j in range(heads)))
        self.calibration = [self._knots() for _ in range(heads)]
        wide = not linear and seed % 5 == 0
        sums = units + heads if wide else units
        groups = {group: self._group(group, sums) for group in GROUPS}
        width = int(rng.integers(1, 5))
        trunk = (Dense(self._w(units, 5), self._w(5), True), Dense(self._w(5, 4), self._w(4), bool(seed % 2)))
        towers = Towers(
            Dense(self._w(4, heads * width), self._w(heads * width), True), self._w(heads, width), self._w(heads)
        )
        cross = tuple(Cross(self._w(units, 2), self._w(2, units), self._w(units)) for _ in range(crosses))
        self.net = (
            NetWeights(groups, self._w(units), (), False, (), None)
            if linear
            else NetWeights(groups, self._w(sums), cross, bool(seed % 3), trunk, towers, wide=wide)
        )
        authors = int(rng.integers(1, 5))
        self.author_index = rng.integers(0, authors, rows)
        self.tables: Tables = {g: self._table(g, r) for g, r in zip(GROUPS, (1, authors, rows), strict=True)}

    def _w(self, *shape: int) -> Floats:
        return self.rng.normal(0, 0.4, shape).astype(np.float32)

    def _knots(self) -> Knots:
        count = int(self.rng.integers(1, 30))
        x = np.sort(self.rng.choice(1000, count, replace=False)) / np.float32(100) - np.float32(5)
        y = np.sort(self.rng.choice(5000, count, replace=False)) / np.float32(500) - np.float32(5)
        return Knots(x.astype(np.float32), y.astype(np.float32))

    def _group(self, group: Group, units: int) -> GroupWeights:
        layout = self.schema.layouts[group]
        binned: list[Binned] = []
        categoricals: list[Categorical] = []
        raw_columns: list[int] = []
        for feature in layout.features:
            column = layout.offsets[feature.name]
            if feature.kind == "categorical":
                categoricals.append(Categorical(column, self._w(len(feature.vocabulary), units)))
            elif feature.kind == "vector":
                raw_columns += range(column, column + feature.width)
            else:
                use = self.rng.integers(0, 4)  # neither form, bins, raw, both
                if use % 2:
                    count = int(self.rng.choice([0, 1, 2, 15]))
                    boundaries = np.sort(self.rng.choice(100, count, replace=False)).astype(np.float32) - 50
                    binned.append(Binned(column, boundaries, self._w(count + 1, units)))
                if use >= 2:
                    raw_columns.append(column)
        raws = [
            Raw(
                np.array(columns, np.int64),
                log,
                self.rng.uniform(0.5, 60, len(columns)).astype(np.float32),
                self._w(len(columns)),
                self._w(len(columns), units),
            )
            for log, columns in ((True, raw_columns[::2]), (False, raw_columns[1::2]))
            if columns
        ]
        return GroupWeights(tuple(binned), tuple(categoricals), tuple(raws))

    def _table(self, group: Group, rows: int) -> Floats:
        layout = self.schema.layouts[group]
        table = self.rng.integers(-60, 60, (rows, layout.width)).astype(np.float32)  # often exactly a boundary
        for value in (INF, -INF, 0.0, -0.0, 1e-42, 3e38):
            table[self.rng.random(table.shape) < 0.03] = value
        for feature in layout.categoricals:
            table[:, layout.offsets[feature.name]] = self.rng.integers(0, len(feature.vocabulary), rows)
        table[self.rng.random(table.shape) < 0.3] = NAN
        return table


nets = st.builds(
    RandomNet,
    seed=st.integers(0, 2**32),
    linear=st.booleans(),
    crosses=st.integers(0, 2),
    counts=st.lists(st.integers(0, 6), min_size=3, max_size=3),
    rows=st.integers(1, 6),
)
