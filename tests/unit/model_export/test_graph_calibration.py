"""Calibration within the exported graph."""

from __future__ import annotations

import numpy as np

from model_export.graph import build
from model_export.weights import Floats, GroupWeights, Knots, Raw
from service.schema import Feature
from tests.nets import RISING, Tables, f32, linear_net, run, tweet_schema


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
