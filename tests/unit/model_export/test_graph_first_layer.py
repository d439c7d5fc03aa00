"""The exported graph's first layer, feature by feature, worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from model_export.graph import build, signature
from model_export.graph_thermometer import plan_thermometer
from model_export.weights import Binned, Categorical, GroupWeights, NetWeights, Raw
from service.schema import Feature, Head, Schema
from tests.nets import (
    INF,
    NAN,
    RISING,
    RandomNet,
    Tables,
    f32,
    linear_net,
    nets,
    reference_raw,
    run,
    tweet_logits,
    tweet_schema,
)


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

    @pytest.mark.parametrize("form", ["float32", "plain"])
    def test_the_sign_of_small_values_counts(self, form: str) -> None:
        """Where training saw nothing beyond 0.001, log(1 + 0.001) is the scale."""
        raw = Raw(np.array([0]), True, f32(math.log1p(1e-3)), f32(0), f32(1)[:, np.newaxis])
        net = linear_net(tweet=GroupWeights((), (), (raw,)))

        logits = tweet_logits(net, tweet_schema(Feature("rate", "tweet", "continuous")), [1e-3, -1e-3, 5e-4], form)

        assert logits == pytest.approx([1, -1, math.log1p(5e-4) / math.log1p(1e-3)], abs=1e-3)

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


class TestThermometer:
    def test_features_of_unequal_bin_counts_share_a_rectangle_with_little_padding(self) -> None:
        """One of 40 bins, twenty of 10, ten binary: 260 bits; a rectangle as high as the highest has 1240."""
        sizes = [40, *[10] * 20, *[2] * 10]
        features = tuple(
            Binned(i, np.arange(size - 1, dtype=np.float32), np.ones((size, 3), np.float32))
            for i, size in enumerate(sizes)
        )

        thermometer = plan_thermometer(GroupWeights(features, (), ()), "float32")

        assert thermometer is not None
        real = thermometer.thresholds < INF
        assert real.sum() == sum(sizes)
        assert thermometer.thresholds.size <= 1.35 * sum(sizes)
        for i, size in enumerate(sizes):
            mine = thermometer.thresholds[:, thermometer.columns == i]
            assert sorted(mine[mine < INF]) == [-INF, *range(size - 1)]
        assert not thermometer.differences.reshape(*real.shape, 3)[~real].any()


class TestInt8:
    @settings(max_examples=40)
    @given(nets)
    def test_each_feature_is_off_by_half_a_scale_at_most(self, case: RandomNet) -> None:
        """A unit's scale is its largest step / 126, whether from bin to bin or from absent to the first bin."""
        linear = replace(case.net, crosses=(), relu=False, trunk=(), towers=None, wide=False)
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

    def test_a_unit_that_nothing_feeds_stays_at_its_bias(self) -> None:
        """All weights of the second unit are zero."""
        weights = np.array([[1, 0], [2, 0]], np.float32)
        net = replace(linear_net(2, tweet=GroupWeights((Binned(0, f32(0), weights),), (), ())), bias=f32(0, 3))
        schema = replace(tweet_schema(Feature("x", "tweet", "continuous")), heads=(Head("a", 1, 1), Head("b", 1, 1)))

        raw = run(build(schema, net, [RISING] * 2, "int8"), {"tweet": f32(-1, 1, NAN)[:, np.newaxis]}, [0, 0, 0])[1]

        np.testing.assert_allclose(raw[:, 1], 1 / (1 + math.exp(-3)), rtol=1e-6)

    def test_the_largest_steps_fit_eight_bits(self) -> None:
        """Weights of opposite sign side by side, each a hair past half a rounding step."""
        weights = f32(-0.5, 0.5, -0.50397, 0.50397)[:, np.newaxis]
        net = linear_net(tweet=GroupWeights((Binned(0, f32(0, 1, 2), weights),), (), ()))
        schema = tweet_schema(Feature("age", "tweet", "continuous"))

        logits = tweet_logits(net, schema, [-1, 0, 1, 2, NAN], "int8")

        assert logits == pytest.approx([-0.5, 0.5, -0.504, 0.504, 0], abs=0.5 * 1.00794 / 126 + 1e-4)
