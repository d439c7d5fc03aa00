"""Calibration within the exported graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model_export.graph import build
from model_export.weights import Floats, GroupWeights, Knots, Raw
from service.schema import Feature, Head, Schema
from tests.nets import Tables, f32, linear_net, run, tweet_schema


class TestCalibration:
    schema = tweet_schema(Feature("x", "tweet", "continuous"))
    # logit = x / 20, for x within 20 of zero
    net = linear_net(tweet=GroupWeights((), (), (Raw(np.array([0]), False, f32(20), f32(0), f32(1)[:, np.newaxis]),)))

    def calibrated(self, knots: Knots, values: Floats) -> tuple[Floats, Floats]:
        tables: Tables = {"tweet": values[:, np.newaxis]}
        probabilities, raw = run(build(self.schema, self.net, [knots]), tables, np.zeros(len(values)))
        return probabilities[:, 0], raw[:, 0]

    def test_a_single_knot_shifts_the_log_odds_on_both_sides(self) -> None:
        """As undoing a sampling does: odds times 3 / 7, everywhere."""
        probabilities, raw = self.calibrated(Knots(f32(0.0), f32(np.log(3 / 7))), f32(-20, 0, 20))

        odds = raw / (1 - raw) * 3 / 7
        np.testing.assert_allclose(probabilities, odds / (1 + odds), rtol=1e-6)
        assert probabilities[1] == pytest.approx(0.3, rel=1e-6)

    def test_segments_by_hand(self) -> None:
        """Knots (-0.5, -2), (0, 1), (0.5, 1.5), in log odds: half ways between, and one unit beyond the ends."""
        probabilities, _ = self.calibrated(Knots(f32(-0.5, 0, 0.5), f32(-2, 1, 1.5)), f32(-20, -10, -5, 0, 5, 10, 20))

        expected = [-2.5, -2, -0.5, 1, 1.25, 1.5, 2]
        np.testing.assert_allclose(probabilities, [1 / (1 + np.exp(-z)) for z in expected], rtol=2e-6)

    def test_far_beyond_the_ends_answers_are_still_apart(self) -> None:
        """Log odds of -15 and -16 through a calibration that ends at -1."""
        net = replace(self.net, bias=f32(-15))
        model = build(self.schema, net, [Knots(f32(-1, 1), f32(-1.5, 1))])

        probabilities = run(model, {"tweet": f32(0, -20)[:, np.newaxis]}, [0, 0])[0][:, 0]

        np.testing.assert_allclose(probabilities, np.exp([-15.5, -16.5]), rtol=1e-5)

    def test_heads_do_not_touch_each_other(self) -> None:
        """Three heads with calibrations of one to three knots: each as alone."""
        calibration = [Knots(f32(0), f32(1)), Knots(f32(-1, 0.2, 0.4), f32(-4, 0, 0.1)), Knots(f32(-1, 1), f32(0, 3))]
        schema = Schema(self.schema.features, tuple(Head(f"h{i}", 1.0, 1) for i in range(3)))
        weights = f32(1, -0.5, 0.3)
        raw = Raw(np.array([0]), False, f32(20), f32(0), weights[np.newaxis])
        net = linear_net(3, tweet=GroupWeights((), (), (raw,)))
        values = np.linspace(-20, 20, 101, dtype=np.float32)

        together = run(build(schema, net, calibration), {"tweet": values[:, np.newaxis]}, np.zeros(101))[0]

        for head, knots in enumerate(calibration):
            alone = self.calibrated(knots, values * weights[head])[0]
            np.testing.assert_allclose(together[:, head], alone, rtol=1e-6)

    def test_never_falls_where_the_raw_probability_rises(self) -> None:
        """Steep and flat segments side by side, thousands of neighbouring raw values."""
        rng = np.random.default_rng(0)
        x = np.sort(rng.uniform(-1, 1, 60)).astype(np.float32)
        y = np.cumsum(rng.choice([1e-7, 1e-4, 1e-1], 60)).astype(np.float32) - 2
        rising = np.flatnonzero(np.diff(y, prepend=-np.inf) > 0)

        probabilities, raw = self.calibrated(
            Knots(x[rising], y[rising]), np.linspace(-20, 20, 20_000, dtype=np.float32)
        )

        order = np.argsort(raw, kind="stable")
        assert np.all(np.diff(probabilities[order]) >= 0)
