"""The exported graph as a whole, against a slow forward pass from the definitions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.graph import Precision, build, build_plain, signature
from model_export.weights import Binned, Dense, Dots, Floats, GroupWeights, NetWeights, Raw, Towers, VectorPair
from service.schema import GROUPS, Feature, Head, Schema
from tests.nets import (
    EMPTY,
    RISING,
    RandomNet,
    Tables,
    f32,
    linear_net,
    nets,
    reference_calibrated,
    reference_raw,
    run,
    tweet_schema,
)


class TestAgainstReference:
    @settings(max_examples=60)
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
            # Against the reference at the graph's own raw value: the two errors are kept apart. The graph calibrates
            # log odds, of which a probability near 1 tells little: whatever it may have been rounded from will do.
            for head, knots in enumerate(case.calibration):
                for p, found in zip(raw[:, head], probabilities[:, head], strict=True):
                    spacing = 2 * float(np.spacing(p))
                    near = (min(max(float(p) + d, 1e-12), 1 - 1e-12) for d in (-spacing, spacing))
                    low, high = (reference_calibrated(knots, value) for value in near)
                    assert low * (1 - 2e-6) - 1e-7 <= found <= high * (1 + 2e-6) + 1e-7


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


class TestInt8Trunk:
    def _net(self, weights: Floats, bias: float = 0.0) -> tuple[Schema, NetWeights]:
        """Two raw columns are the two units; the trunk's one unit is the logit."""
        raw = Raw(np.array([0, 1]), False, f32(1, 1), f32(0, 0), np.eye(2, dtype=np.float32))
        towers = Towers(Dense(np.ones((1, 1), np.float32), f32(0), True), np.ones((1, 1), np.float32), f32(0))
        trunk = (Dense(weights, f32(bias), relu=True),)
        net = NetWeights({"tweet": GroupWeights((), (), (raw,))}, f32(0, 0), (), True, trunk, towers)
        schema = Schema(tuple(Feature(name, "tweet", "continuous") for name in "ab"), (Head("like", 1.0, 1),))
        return schema, net

    def _logits(self, weights: Floats, rows: list[list[float]], input_max: float, bias: float = 0.0) -> list[float]:
        schema, net = self._net(weights, bias)
        model = build(schema, net, [RISING], "int8", input_max)
        raw = run(model, {"tweet": np.array(rows, np.float32)}, np.zeros(len(rows)))[1][:, 0].astype(np.float64)
        return [float(z) for z in np.log(raw / (1 - raw))]

    def test_rounds_to_steps_of_its_range_and_goes_no_further(self) -> None:
        """One weight of 127: inputs in steps of 1/255 of the range, nothing below zero, no more than the range."""
        weights = np.array([[1.27], [0]], np.float32)

        found = self._logits(weights, [[0.5, 0], [0.501, 0], [-1, 0], [1, 0]], input_max=0.51, bias=0.25)

        assert found == pytest.approx([1.27 * 0.5 + 0.25, 1.27 * 0.5 + 0.25, 0.25, 1.27 * 0.51 + 0.25], abs=1e-5)

    @pytest.mark.parametrize("sign", [1, -1])
    def test_two_large_weights_side_by_side_do_not_leave_sixteen_bits(self, sign: int) -> None:
        """255 * 127 twice is twice what 16 bits hold."""
        weights = np.array([[1.0], [1.0]], np.float32) * sign

        found = self._logits(weights, [[1, 1]], input_max=1, bias=3)

        assert found == pytest.approx([3 + 2 * sign], abs=0.02)

    def test_is_near_the_reference_in_random_nets(self) -> None:
        """Within a few steps of 1/127, and not what float32 gives: the layer is rounded indeed."""
        case = RandomNet(seed=7, linear=False, crosses=0, counts=[5, 5, 6], rows=40)
        net = replace(case.net, relu=True)
        expected = reference_raw(net, case.tables, case.author_index)

        known = run(build(case.schema, net, case.calibration, "int8", 8.0), case.tables, case.author_index)[1]
        unknown = run(build(case.schema, net, case.calibration, "int8"), case.tables, case.author_index)[1]

        np.testing.assert_allclose(known, expected, rtol=0, atol=0.02)
        assert np.abs(known - unknown).max() > 1e-5

    def test_of_float32_graphs_stays_as_it_is(self) -> None:
        """A range alone rounds nothing."""
        schema, net = self._net(np.array([[1.0], [0.5]], np.float32))

        assert build(schema, net, [RISING], "float32", 1.0) == build(schema, net, [RISING])


class TestGraph:
    case = RandomNet(seed=5, linear=False, crosses=1, counts=[5, 5, 6], rows=40)

    def test_equal_arguments_give_equal_bytes(self) -> None:
        again = RandomNet(seed=5, linear=False, crosses=1, counts=[5, 5, 6], rows=40)

        assert build(self.case.schema, self.case.net, self.case.calibration) == build(
            again.schema, again.net, again.calibration
        )

    @pytest.mark.parametrize("make", [build, partial(build, precision="int8"), build_plain])
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

    @settings(max_examples=20)
    @given(st.integers(0, 2**32), st.integers(2, 40), st.sampled_from(["float32", "int8"]))
    def test_a_score_does_not_depend_on_its_neighbours(self, seed: int, rows: int, precision: Precision) -> None:
        """Within 2e-6 alone, with one other row and reversed: the one inexact step is the last digit of a logarithm."""
        case = RandomNet(seed=seed, linear=False, crosses=seed % 2, counts=[4, 5, 6], rows=rows)
        model = build(case.schema, case.net, case.calibration, precision)
        whole = run(model, case.tables, case.author_index)[1]

        for chosen in ([rows - 1], [0, rows - 1], list(range(rows))[::-1]):
            part = run(model, {**case.tables, "tweet": case.tables["tweet"][chosen]}, case.author_index[chosen])[1]

            np.testing.assert_allclose(part, whole[chosen], rtol=0, atol=2e-6)

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


class TestDots:
    features = (
        Feature("tastes", "viewer", "vector", width=2),
        Feature("voice", "author", "vector", width=2),
        Feature("age", "tweet", "continuous"),
        Feature("text", "tweet", "vector", width=2),
    )

    def _net(self) -> NetWeights:
        pairs = tuple(VectorPair(np.array([1, 2]), group, np.array([0, 1])) for group in ("viewer", "author"))
        raw = Raw(np.array([0, 1]), False, f32(4, 1), f32(0.25, 0), np.array([[1.0], [10.0]], np.float32))
        return replace(linear_net(), dots=Dots(pairs, raw))

    def test_products_enter_by_value_where_both_vectors_are_there(self) -> None:
        """Worked by hand: scaled, clipped to 1, biased; nothing where a vector is absent."""
        tables: Tables = {
            "viewer": np.array([[1, 2]], np.float32),
            "author": np.array([[0.5, 0], [np.nan, np.nan]], np.float32),
            "tweet": np.array([[7, 1, 0.5], [7, 0.5, 4], [7, np.nan, np.nan]], np.float32),
        }
        schema = Schema(self.features, (Head("like", 1.0, 1),))
        for model in (build(schema, self._net(), [RISING]), build_plain(schema, self._net(), [RISING])):
            raw = run(model, tables, [0, 1, 0])[1][:, 0].astype(np.float64)

            # 2/4 + 0.25 + 10 * 0.5; 8.5/4 clips to 1 and the author has no vector; no vector in the Tweet.
            np.testing.assert_allclose(np.log(raw / (1 - raw)), [5.75, 1.25, 0], rtol=1e-5, atol=1e-6)

    @settings(max_examples=20)
    @given(st.integers(0, 2**32), st.integers(1, 6))
    def test_they_follow_the_definition_beside_other_features(self, seed: int, rows: int) -> None:
        """The slow reference's probabilities, in a net that has more than products."""
        rng = np.random.default_rng(seed)
        schema = Schema(self.features, (Head("like", 1.0, 1),))
        tables = {
            g: rng.normal(0, 1, (r, w)).astype(np.float32)
            for g, r, w in zip(GROUPS, (1, 3, rows), (2, 2, 3), strict=True)
        }
        for table in tables.values():
            table[rng.random(len(table)) < 0.3, -2:] = np.nan
        age = GroupWeights((Binned(0, f32(-0.5, 0.5), rng.normal(0, 1, (3, 1)).astype(np.float32)),), (), ())
        net = replace(self._net(), groups={"viewer": EMPTY, "author": EMPTY, "tweet": age})
        index = rng.integers(0, 3, rows)

        raw = run(build(schema, net, [RISING]), tables, index)[1]

        np.testing.assert_allclose(raw, reference_raw(net, tables, index), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("pair", "message"),
        [
            (VectorPair(np.array([1, 2]), "viewer", np.array([0])), "of one width"),
            (VectorPair(np.array([1, 2]), "tweet", np.array([1, 2])), "of another group"),
            (VectorPair(np.array([2, 3]), "viewer", np.array([0, 1])), "column 3 of a table with 3"),
        ],
    )
    def test_a_pair_that_does_not_fit_is_refused(self, pair: VectorPair, message: str) -> None:
        schema = Schema(self.features, (Head("like", 1.0, 1),))
        raw = Raw(np.array([0]), False, f32(1), f32(0), np.ones((1, 1), np.float32))

        with pytest.raises(ValueError, match=message):
            build(schema, replace(linear_net(), dots=Dots((pair,), raw)), [RISING])
