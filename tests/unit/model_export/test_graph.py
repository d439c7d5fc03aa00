"""The exported graph against a slow forward pass written from the definitions in `model_export/weights.py`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.graph import Precision, build, build_plain, signature
from model_export.weights import (
    Binned,
    Categorical,
    Cross,
    Dense,
    Floats,
    GroupWeights,
    Knots,
    NetWeights,
    Raw,
    Towers,
)
from service.schema import GROUPS, Feature, Group, Head, Schema

NAN = float("nan")
INF = float("inf")
EMPTY = GroupWeights((), (), ())
RISING = Knots(np.array([0.0, 1.0], np.float32), np.array([0.0, 1.0], np.float32), 0.001)
PRECISIONS: dict[str, Precision] = {"float32": "float32", "int8": "int8"}
INPUT_NAMES: dict[Group, str] = {"viewer": "viewer", "author": "authors", "tweet": "tweets"}
Tables = dict[Group, Floats]


# The slow reference: one row, one feature, one unit at a time, in float64.


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
        rows.append([1 / (1 + math.exp(-z)) for z in x])
    return np.array(rows)


def reference_calibrated(knots: Knots, p: float) -> float:
    x, y = knots.x.astype(np.float64), knots.y.astype(np.float64)
    if p < x[0]:
        value = float(y[0]) + knots.end_slope * (p - float(x[0]))
    elif p >= x[-1]:
        value = float(y[-1]) + knots.end_slope * (p - float(x[-1]))
    else:
        value = float(np.interp(p, x, y))
    return min(max(value, 0.0), 1.0)


# Running a graph.


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


# Random nets.


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
        groups = {group: self._group(group, units) for group in GROUPS}
        width = int(rng.integers(1, 5))
        trunk = (Dense(self._w(units, 5), self._w(5), True), Dense(self._w(5, 4), self._w(4), bool(seed % 2)))
        towers = Towers(
            Dense(self._w(4, heads * width), self._w(heads * width), True), self._w(heads, width), self._w(heads)
        )
        cross = tuple(Cross(self._w(units, 2), self._w(2, units), self._w(units)) for _ in range(crosses))
        self.net = (
            NetWeights(groups, self._w(units), (), False, (), None)
            if linear
            else NetWeights(groups, self._w(units), cross, bool(seed % 3), trunk, towers)
        )
        authors = int(rng.integers(1, 5))
        self.author_index = rng.integers(0, authors, rows)
        self.tables: Tables = {g: self._table(g, r) for g, r in zip(GROUPS, (1, authors, rows), strict=True)}

    def _w(self, *shape: int) -> Floats:
        return self.rng.normal(0, 0.4, shape).astype(np.float32)

    def _knots(self) -> Knots:
        count = int(self.rng.integers(1, 30))
        x = np.sort(self.rng.choice(1000, count, replace=False)) / np.float32(1000)
        y = np.sort(self.rng.choice(5000, count, replace=False)) / np.float32(5000)
        return Knots(x.astype(np.float32), y.astype(np.float32), 1e-3)

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


class TestAgainstReference:
    @settings(max_examples=60, deadline=None)
    @given(nets)
    def test_raw_and_calibrated_probabilities_follow_the_definitions(self, case: RandomNet) -> None:
        """Both builds give the slow reference's probabilities, whatever the net and the values."""
        expected = reference_raw(case.net, case.tables, case.author_index)
        for model in (
            build(case.schema, case.net, case.calibration),
            build_plain(case.schema, case.net, case.calibration),
        ):
            probabilities, raw = run(model, case.tables, case.author_index)

            np.testing.assert_allclose(raw, expected, rtol=0, atol=1e-5)
            # Against the reference at the graph's own raw value: the two errors are kept apart.
            for head, knots in enumerate(case.calibration):
                calibrated = [reference_calibrated(knots, float(p)) for p in raw[:, head]]
                np.testing.assert_allclose(probabilities[:, head], calibrated, rtol=2e-6, atol=1e-7)


class TestFirstLayer:
    @pytest.mark.parametrize("form", ["float32", "plain"])
    def test_a_value_on_a_boundary_is_in_the_bin_above(self, form: str) -> None:
        """Bin = number of boundaries <= value; absent contributes nothing, zero and infinities are values."""
        net = linear_net(tweet=GroupWeights((Binned(0, f32(0, 2), f32(1, 2, 3)[:, np.newaxis]),), (), ()))
        schema = tweet_schema(Feature("age", "tweet", "continuous"))
        just_below_two = float(np.nextafter(np.float32(2), np.float32(0)))

        logits = tweet_logits(net, schema, [-INF, -0.1, 0.0, -0.0, just_below_two, 2.0, INF, NAN], form)

        assert logits == [1, 1, 2, 2, 2, 3, 3, 0]

    @pytest.mark.parametrize("form", ["float32", "plain"])
    def test_one_bin_tells_present_from_absent(self, form: str) -> None:
        """A feature that was constant in training has no boundaries, and one weight for being there."""
        net = linear_net(tweet=GroupWeights((Binned(0, f32(), f32(1.5)[:, np.newaxis]),), (), ()))
        schema = tweet_schema(Feature("age", "tweet", "continuous"))

        assert tweet_logits(net, schema, [7.0, 0.0, NAN], form) == [1.5, 1.5, 0]

    @pytest.mark.parametrize("form", ["float32", "plain"])
    @pytest.mark.parametrize("categories", [1, 3, 65, 300])
    def test_a_category_contributes_its_row(self, form: str, categories: int) -> None:
        """Small and large vocabularies, first and last category, absent."""
        rows = np.linspace(-2, 2.5, categories, dtype=np.float32)[:, np.newaxis]
        net = linear_net(tweet=GroupWeights((), (Categorical(0, rows),), ()))
        schema = tweet_schema(Feature("language", "tweet", "categorical", "", tuple(map(str, range(categories)))))
        last = categories - 1

        logits = tweet_logits(net, schema, [0.0, NAN, float(last), float(last // 2)], form)

        expected = [rows[0, 0], 0, rows[last, 0], rows[last // 2, 0]]
        assert logits == pytest.approx(expected, abs=2e-4)

    @pytest.mark.parametrize("form", ["float32", "plain"])
    def test_raw_values_are_scaled_clipped_and_biased_where_present(self, form: str) -> None:
        """(clip(x / 4, -1, 1) + 0.5) * 2 worked by hand; a present zero differs from an absent value."""
        raw = Raw(np.array([0]), False, f32(4), f32(0.5), f32(2)[:, np.newaxis])
        schema = tweet_schema(Feature("likes", "tweet", "continuous"))

        logits = tweet_logits(linear_net(tweet=GroupWeights((), (), (raw,))), schema, [2, 0, -8, INF, -INF, NAN], form)

        assert logits == [2, 1, -1, 3, -1, 0]

    @pytest.mark.parametrize("form", ["float32", "plain"])
    def test_raw_values_go_through_a_signed_logarithm(self, form: str) -> None:
        """sign(x) log(1 + |x|) / log(1 + 99), so that 99 gives 1 and -9 gives -1/2."""
        raw = Raw(np.array([0]), True, f32(math.log(100)), f32(0), f32(1)[:, np.newaxis])
        schema = tweet_schema(Feature("likes", "tweet", "continuous"))

        logits = tweet_logits(
            linear_net(tweet=GroupWeights((), (), (raw,))), schema, [99, -9, 0, 1e30, INF, -INF, NAN], form
        )

        assert logits == [1, -0.5, 0, 1, 1, -1, 0]

    def test_a_net_without_features_gives_its_bias_for_every_tweet(self) -> None:
        """author_index alone says how many Tweets there are."""
        schema = tweet_schema()
        net = NetWeights({}, f32(0.0), (), False, (), None)

        model = build(schema, net, [RISING])

        assert [i["name"] for i in signature(model)["inputs"]] == ["author_index"]
        assert run(model, {}, [0, 0, 0])[1].tolist() == [[0.5]] * 3

    def test_features_that_training_dropped_leave_their_input(self) -> None:
        """A table whose columns carry no weights is still part of the signature."""
        schema = Schema(
            (Feature("age", "tweet", "continuous"), Feature("days", "viewer", "continuous")), (Head("like", 1.0, 1),)
        )
        net = linear_net(viewer=GroupWeights((Binned(0, f32(1), f32(0, 1)[:, np.newaxis]),), (), ()))

        model = build(schema, net, [RISING])

        assert [i["name"] for i in signature(model)["inputs"]] == ["viewer", "tweets", "author_index"]
        tables: Tables = {"viewer": f32(1)[np.newaxis], "tweet": np.zeros((2, 1), np.float32)}
        assert run(model, tables, [0, 0])[1][:, 0].tolist() == pytest.approx([1 / (1 + math.exp(-1))] * 2)


class TestRawProbabilities:
    def test_rare_ones_keep_their_digits_and_order(self) -> None:
        """Down to 1e-9: as good as float32 logits can be, and never falling where the logit rises."""
        raw = Raw(np.array([0]), False, f32(20), f32(0), f32(20)[:, np.newaxis])
        x = np.linspace(-20, 1, 20_000, dtype=np.float32)
        model = build(
            tweet_schema(Feature("x", "tweet", "continuous")), linear_net(tweet=GroupWeights((), (), (raw,))), [RISING]
        )

        found = run(model, {"tweet": x[:, np.newaxis]}, np.zeros(len(x)))[1][:, 0]

        assert np.all(np.diff(found) >= 0)
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-x.astype(np.float64))), rtol=4e-6)


class TestInt8:
    @settings(max_examples=40, deadline=None)
    @given(nets)
    def test_each_feature_is_off_by_half_a_scale_at_most(self, case: RandomNet) -> None:
        """A unit's scale is its largest step / 126, whether from bin to bin or from absent to the first bin."""
        linear = replace(case.net, crosses=(), relu=False, trunk=(), towers=None)
        units = len(linear.bias)
        schema = Schema(case.schema.features, tuple(Head(f"u{k}", 1.0, 1) for k in range(units)))
        bound = np.full(units, 2e-5)
        for part in linear.groups.values():
            small = [c.weights for c in part.categoricals if len(c.weights) < 50]
            steps = [np.diff(w, axis=0, prepend=0) for w in (*(b.weights for b in part.binned), *small)]
            if steps:
                bound += len(steps) * 0.5 * np.abs(np.concatenate(steps)).max(axis=0) / 126

        model = build(schema, linear, [RISING] * units, precision="int8")

        raw = run(model, case.tables, case.author_index)[1].astype(np.float64)
        expected = reference_raw(linear, case.tables, case.author_index)
        away = np.abs(np.log(raw / (1 - raw)) - np.log(expected / (1 - expected)))
        # A logit read back from a float32 probability is only as good as the probability's last digit.
        assert np.all(away <= bound + 1e-7 / (expected * (1 - expected)))

    def test_the_largest_steps_fit_eight_bits(self) -> None:
        """Weights of opposite sign side by side, each a hair past half a rounding step."""
        weights = f32(-0.5, 0.5, -0.50397, 0.50397)[:, np.newaxis]
        net = linear_net(tweet=GroupWeights((Binned(0, f32(0, 1, 2), weights),), (), ()))
        schema = tweet_schema(Feature("age", "tweet", "continuous"))

        logits = tweet_logits(net, schema, [-1, 0, 1, 2, NAN], "int8")

        assert logits == pytest.approx([-0.5, 0.5, -0.504, 0.504, 0], abs=0.5 * 1.00794 / 126 + 1e-4)


class TestCalibration:
    schema = tweet_schema(Feature("x", "tweet", "continuous"))
    # logit = x / 20, for x within 20 of zero
    net = linear_net(tweet=GroupWeights((), (), (Raw(np.array([0]), False, f32(20), f32(0), f32(1)[:, np.newaxis]),)))

    def calibrated(self, knots: Knots, values: Floats) -> tuple[Floats, Floats]:
        tables: Tables = {"tweet": values[:, np.newaxis]}
        probabilities, raw = run(build(self.schema, self.net, [knots]), tables, np.zeros(len(values)))
        return probabilities[:, 0], raw[:, 0]

    def test_a_single_knot_leaves_the_end_slope_on_both_sides(self) -> None:
        """y = 0.3 + 0.25 (p - 0.5): 0.3 at the knot."""
        probabilities, raw = self.calibrated(Knots(f32(0.5), f32(0.3), 0.25), f32(-20, 0, 20))

        np.testing.assert_allclose(probabilities, 0.3 + 0.25 * (raw - 0.5), rtol=1e-6)
        assert probabilities[1] == np.float32(0.3)

    def test_the_ends_are_clipped_to_probabilities(self) -> None:
        """End slopes that lead below 0 and above 1 stop there."""
        probabilities, _ = self.calibrated(Knots(f32(0.49, 0.51), f32(0.01, 0.99), 5.0), f32(-20, 20))

        assert probabilities.tolist() == [0.0, 1.0]

    def test_knots_map_to_their_own_values(self) -> None:
        """At p exactly a knot's x the answer is exactly its y."""
        raw = self.calibrated(RISING, f32(-9, -4, 1, 6))[1]
        y = f32(0.1, 0.2, 0.4, 0.41)

        assert self.calibrated(Knots(raw, y, 1e-3), f32(-9, -4, 1, 6))[0].tolist() == y.tolist()

    def test_never_falls_where_the_raw_probability_rises(self) -> None:
        """Steep and flat segments side by side, thousands of neighbouring raw values."""
        rng = np.random.default_rng(0)
        x = np.sort(rng.uniform(0.3, 0.7, 60)).astype(np.float32)
        y = np.cumsum(rng.choice([1e-7, 1e-4, 1e-2], 60)).astype(np.float32)

        probabilities, raw = self.calibrated(Knots(x, y, 1e-4), np.linspace(-20, 20, 20_000, dtype=np.float32))

        order = np.argsort(raw, kind="stable")
        assert np.all(np.diff(probabilities[order]) >= 0)


class TestGraph:
    case = RandomNet(seed=5, linear=False, crosses=1, counts=[5, 5, 6], rows=40)

    def test_equal_arguments_give_equal_bytes(self) -> None:
        again = RandomNet(seed=5, linear=False, crosses=1, counts=[5, 5, 6], rows=40)

        assert build(self.case.schema, self.case.net, self.case.calibration) == build(
            again.schema, again.net, again.calibration
        )

    @pytest.mark.parametrize("make", [build, build_plain])
    def test_is_self_contained_and_readable(self, make: Any) -> None:
        """Standard domains, no external data, every node named, no name twice."""
        model = onnx.load_model_from_string(make(self.case.schema, self.case.net, self.case.calibration))

        onnx.checker.check_model(model, full_check=True)
        assert {o.domain for o in model.opset_import} <= {"", "com.microsoft"}
        assert not any(t.external_data for t in model.graph.initializer)
        names = [node.name for node in model.graph.node]
        assert all(names)
        assert len(set(names)) == len(names)

    def test_signature_lists_inputs_and_outputs(self) -> None:
        """What the manifest says is what onnxruntime sees."""
        model = build(self.case.schema, self.case.net, self.case.calibration)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

        found = signature(model)

        for kind, described in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert [(i["name"], i["shape"]) for i in found[kind]] == [(d.name, d.shape) for d in described]
        assert found["inputs"][1] == {
            "name": "authors",
            "dtype": "float32",
            "shape": ["authors", self.case.schema.layouts["author"].width],
        }
        assert found["inputs"][3] == {"name": "author_index", "dtype": "int64", "shape": ["tweets"]}
        assert [o["name"] for o in found["outputs"]] == ["probabilities", "raw_probabilities"]

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 2**32), st.integers(2, 40))
    def test_a_score_does_not_depend_on_its_neighbours(self, seed: int, rows: int) -> None:
        """Bit-equal alone with a second row, reversed, and in the whole batch; within 1e-6 all alone."""
        case = RandomNet(seed=seed, linear=False, crosses=seed % 2, counts=[4, 5, 6], rows=rows)
        model = build(case.schema, case.net, case.calibration)
        whole = run(model, case.tables, case.author_index)[1]

        def of(rows: list[int]) -> Floats:
            return run(model, {**case.tables, "tweet": case.tables["tweet"][rows]}, case.author_index[rows])[1]

        assert np.array_equal(of(list(range(rows))[::-1])[::-1], whole)
        assert np.array_equal(of([0, rows - 1]), whole[[0, -1]])
        np.testing.assert_allclose(of([rows - 1])[0], whole[-1], rtol=0, atol=1e-6)

    def test_arguments_that_do_not_fit_are_refused(self) -> None:
        """Heads, columns and units that contradict each other."""
        schema = tweet_schema(Feature("age", "tweet", "continuous"))

        def net(column: int, units: int) -> NetWeights:
            return linear_net(tweet=GroupWeights((Binned(column, f32(), np.zeros((1, units), np.float32)),), (), ()))

        with pytest.raises(ValueError, match="1 heads in the schema, 1 in the net, 2 in the calibration"):
            build(schema, net(0, 1), [RISING, RISING])
        with pytest.raises(ValueError, match="tweet: columns 1 to 1 of a table with 1 columns"):
            build(schema, net(1, 1), [RISING])
        with pytest.raises(ValueError, match="tweet: weights for another number of units"):
            build(schema, net(0, 2), [RISING])
        with pytest.raises(ValueError, match="linear"):
            build(schema, NetWeights({}, f32(0), (), True, (), None), [RISING])
