"""Random nets and inputs that are like those served."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from model_export.graph import build, build_plain
from model_export.random_nets import NetShape, random_feeds, random_net
from service.schema import Feature, Head, Schema

SCHEMA = Schema(
    features=(
        Feature("likes", "tweet", "continuous", "count"),
        Feature("has_image", "tweet", "binary"),
        Feature("language", "tweet", "categorical", "", ("en", "ja", "es")),
        Feature("text", "tweet", "vector", "", (), 3),
        Feature("strength", "author", "continuous"),
    ),
    heads=(Head("like", 1.0, 1), Head("reply", 2.0, 1)),
)
SHAPE = NetShape(bins=4, units=8, hidden=(4,), tower_units=2, knots=3)


def test_random_nets_spread_over_the_bins_and_knots() -> None:
    """Outputs differ from row to row, and the plain and served graphs agree on them."""
    net, calibration = random_net(SCHEMA, SHAPE, seed=3)
    feeds = dict(random_feeds(SCHEMA, 50, 5, 0.3, seed=1))

    outputs = [
        onnxruntime.InferenceSession(make(SCHEMA, net, calibration)).run(["probabilities"], feeds)[0]
        for make in (build, build_plain)
    ]

    assert outputs[0].std(axis=0).min() > 0
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)


def test_rows_of_bins_lie_in_as_many_directions_as_asked_for() -> None:
    """Free rows of three bins or more span more than two."""
    for directions, rank in ((0, 4), (2, 2)):
        net, _ = random_net(SCHEMA, replace(SHAPE, directions=directions), seed=3)
        assert np.linalg.matrix_rank(net.groups["author"].binned[0].weights) == rank


def test_random_feeds_have_the_share_of_absent_values_asked_for() -> None:
    """A vector is absent as a whole; a group without features has no input; authors are within range."""
    feeds = random_feeds(SCHEMA, 2_000, 7, 0.25, seed=0)

    assert sorted(feeds) == ["author_index", "authors", "tweets"]
    absent = np.isnan(feeds["tweets"])
    assert absent[:, :3].mean() == pytest.approx(0.25, abs=0.02)
    assert set(absent[:, 3:].sum(axis=1)) == {0, 3}
    assert set(feeds["author_index"]) == set(range(7))
