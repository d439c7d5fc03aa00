"""Logistic regression on bins and crosses: its design by hand, its fit by scikit-learn's, its graphs by its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from model_export.baselines import logistic as lr
from model_export.baselines.logistic_graph import logistic_graph
from model_export.baselines.rows import flat, group_starts
from model_export.calibrate import IDENTITY
from model_export.datasets.records import Impressions
from model_export.encode import Slot, Tables
from model_export.graph import build, build_plain
from model_export.score import open_graph, score
from service.schema import Schema

TOPIC = Slot("tweet.topic", "tweet", 2, 3, None)
LIKES = Slot("tweet.likes", "tweet", 0, 2, np.array([1.5], np.float32))
PLAN = lr.LogisticPlan()


def test_a_row_picks_a_weight_per_present_slot_and_per_cross() -> None:
    """By hand: weights 0-1 are bins of likes, 2-4 topics, 5-16 the pairs (3 bins of likes) x (4 of topic)."""
    slots = (LIKES, TOPIC)
    design = lr.Design(slots, lr.make_crosses(slots, [1, 0], cells_max=12))
    bins = np.array([[2, 1], [0, 3], [0, 0]], np.uint16)
    picked = [np.flatnonzero(row).tolist() for row in design.matrix(bins).toarray()]
    assert picked == [[1, 2, 5 + 2 * 4 + 1], [4, 5 + 3], [5]]
    assert design.offsets.tolist() == [0, 2, 5, 17]


def test_pairs_with_too_many_combinations_are_hashed_evenly() -> None:
    """Every weight of a small table is picked about as often."""
    slots = (Slot("a", "tweet", 0, 99, None), Slot("b", "tweet", 1, 99, None))
    (cross,) = lr.make_crosses(slots, [0, 1], cells_max=64)
    a, b = np.meshgrid(np.arange(100), np.arange(100))
    cells = lr.cross_cells(slots, cross, np.stack([a.ravel(), b.ravel()], axis=1).astype(np.uint16))
    counts = np.bincount(cells, minlength=64)
    assert len(counts) == 64
    assert counts.min() > 0.7 * counts.mean()


def test_the_most_telling_slot_is_the_one_that_labels_follow() -> None:
    """A copy of the label before a noisy one before noise; scikit-learn's mutual information has the same order."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 2_000)
    noisy = np.where(rng.random(2_000) < 0.7, y, 1 - y)
    bins = np.stack([rng.integers(0, 3, 2_000), noisy + 1, y + 1], axis=1).astype(np.uint16)
    slots = [Slot(str(i), "tweet", i, 2, None) for i in range(3)]
    labels = y[:, np.newaxis].astype(np.uint8)
    assert lr.most_telling(slots, bins, labels, np.ones((2_000, 1), np.bool_)) == [2, 1, 0]


def _data(rows: int, seed: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Labels that follow whether two features are in the same half: nothing for a model without crosses."""
    rng = np.random.default_rng(seed)
    bins = rng.integers(1, 5, (rows, 2)).astype(np.uint16)
    same = (bins[:, 0] > 2) == (bins[:, 1] > 2)
    return bins, (rng.random(rows) < np.where(same, 0.8, 0.2)).astype(np.uint8)


def test_crosses_learn_what_bins_alone_can_not() -> None:
    """A label that only the pair tells: near 0.5 without the cross, near the truth with it."""
    slots = tuple(Slot(str(i), "tweet", i, 4, None) for i in range(2))
    (bins, labels), (later, later_labels) = _data(4_000, 1), _data(2_000, 2)
    spread = {}
    for crosses in ((), lr.make_crosses(slots, [0, 1], 25)):
        design = lr.Design(slots, crosses)
        weights, bias, _ = lr.fit_head((design.matrix(bins), labels), (design.matrix(later), later_labels), 1.0, PLAN)
        p = 1 / (1 + np.exp(-(design.matrix(later) @ weights + bias)))
        spread[len(crosses)] = np.quantile(p, [0.1, 0.9])
    np.testing.assert_allclose(spread[0], 0.5, atol=0.06)
    np.testing.assert_allclose(spread[1], [0.2, 0.8], atol=0.05)


def test_the_penalty_is_chosen_on_later_rows() -> None:
    """Noise wants the strongest penalty, a clear signal with many rows the weakest."""
    rng = np.random.default_rng(3)
    slots = (Slot("0", "tweet", 0, 200, None),)
    design = lr.Design(slots)
    bins = rng.integers(1, 201, (4_000, 1)).astype(np.uint16)
    noise = rng.integers(0, 2, 4_000).astype(np.uint8)
    signal = (bins[:, 0] > 100).astype(np.uint8)
    for labels, wanted in ((noise, min(PLAN.inverse_penalties)), (signal, max(PLAN.inverse_penalties))):
        x = design.matrix(bins)
        fitted = lr.fit_head((x[:2_000], labels[:2_000]), (x[2_000:], labels[2_000:]), 1.0, PLAN)
        assert fitted[2] == wanted


@pytest.fixture
def regression(small_schema: Schema, make_impressions: Callable[[int, int], Impressions]) -> lr.Logistic:
    """Random weights over every kind of feature, a vector's components and hashed crosses included."""
    rng = np.random.default_rng(5)
    slots = (
        Slot("tweet.likes", "tweet", 0, 4, np.array([0, 2, 9], np.float32)),
        Slot("tweet.has_image", "tweet", 1, 2, np.array([1], np.float32)),
        Slot("tweet.topic", "tweet", 2, 3, None),
        *lr.vector_slots(small_schema, make_impressions(300, 9).tables, 5),
        Slot("author.strength", "author", 0, 3, np.array([1, 5], np.float32)),
        Slot("viewer.device", "viewer", 1, 2, None),
    )
    design = lr.Design(slots, lr.make_crosses(slots, [0, 2, 3, 8], cells_max=13))
    weights = rng.normal(size=(int(design.offsets[-1]), 2)).astype(np.float32)
    return lr.Logistic(design, weights, rng.normal(size=2).astype(np.float32))


def _probabilities(model: lr.Logistic, tables: Tables) -> NDArray[np.float32]:
    bins, _ = model.design.encoding.encode(tables)
    logits = model.design.matrix(bins) @ model.weights + model.bias
    return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def test_the_graph_with_crosses_is_the_same_function(
    regression: lr.Logistic, small_schema: Schema, make_impressions: Callable[[int, int], Impressions]
) -> None:
    """Gathered in onnxruntime and multiplied in scipy: the same probabilities."""
    tables = make_impressions(500, 7).tables
    x = flat(tables)
    session = onnxruntime.InferenceSession(logistic_graph(regression, group_starts(small_schema), x.shape[1]))
    np.testing.assert_allclose(session.run(None, {"x": x})[0], _probabilities(regression, tables), atol=2e-6)


def test_without_crosses_it_is_a_linear_net(
    regression: lr.Logistic, small_schema: Schema, make_impressions: Callable[[int, int], Impressions]
) -> None:
    """Both graphs of that net answer what the regression says; with crosses there is no such net."""
    design = replace(regression.design, crosses=())
    linear = replace(regression, design=design, weights=regression.weights[: design.offsets[-1]])
    impressions = make_impressions(200, 7)
    for builder in (build, build_plain):
        graph = open_graph(builder(small_schema, linear.to_net(), [IDENTITY, IDENTITY]))
        np.testing.assert_allclose(score(graph, impressions)[0], _probabilities(linear, impressions.tables), atol=2e-6)
    with pytest.raises(ValueError, match="no crosses"):
        regression.to_net()


def test_numbers_that_make_no_sense_are_refused() -> None:
    """No penalty to try, a penalty of zero, one feature to cross."""
    for changes in ({"inverse_penalties": ()}, {"inverse_penalties": (0.0,)}):
        with pytest.raises(ValueError, match="inverse_penalties"):
            lr.LogisticPlan(**changes)
    with pytest.raises(ValueError, match="crossed_features"):
        lr.LogisticPlan(crossed_features=1)
