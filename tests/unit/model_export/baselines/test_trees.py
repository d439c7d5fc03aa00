"""Trees: chosen on later rows, and the same function as ONNX."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from model_export.baselines.trees import TreePlan, Trees, fit_trees, tree_graph

CATEGORY, NEVER_ABSENT = 3, 4
PLAN = TreePlan(leaves=(4, 16), leaf_rows_min=5, rounds_max=30, patience=5, learning_rate=0.2)


def _draw(rows: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Five columns, one of 60 categories and one that is never absent, and labels that depend on all of them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 5)).astype(np.float32)
    x[:, CATEGORY] = rng.integers(0, 60, rows)
    x[rng.random(x.shape) < 0.3] = np.nan
    x[:, NEVER_ABSENT] = rng.normal(size=rows)
    score = np.nan_to_num(x[:, 0], nan=1) + 2 * (x[:, CATEGORY] % 3 == 0) + x[:, NEVER_ABSENT] * np.nan_to_num(x[:, 1])
    return x, (score + rng.normal(size=rows) > 1.5).astype(np.uint8)


@pytest.fixture(scope="module")
def trees() -> Trees:
    return fit_trees(_draw(3_000, 1), _draw(2_000, 2), 1.0, [CATEGORY], PLAN)


def _thresholds(tree: dict[str, Any], column: int) -> list[float]:
    """All splits of a column in a tree of LightGBM's dump."""
    if "split_feature" not in tree:
        return []
    below = _thresholds(tree["left_child"], column) + _thresholds(tree["right_child"], column)
    return below + ([float(tree["threshold"])] if tree["split_feature"] == column else [])


def test_the_onnx_form_is_the_same_function(trees: Trees) -> None:
    """Logits agree on numbers, at and beside thresholds, on categories (unknown ones too) and absent values."""
    x, _ = _draw(2_000, 3)
    x[::7, NEVER_ABSENT] = np.nan
    x[::5, CATEGORY] = 77
    for column in (0, NEVER_ABSENT):
        dump = trees.booster.dump_model()["tree_info"]
        splits = np.array([split for tree in dump for split in _thresholds(tree["tree_structure"], column)], np.float32)
        splits = splits[np.abs(splits) > 1e-30]  # LightGBM takes anything below 1e-35 for zero
        assert len(splits) > 10
        beside = np.concatenate([splits, np.nextafter(splits, np.float32(9)), np.nextafter(splits, np.float32(-9))])
        x[: len(beside), column] = beside
    other = fit_trees(_draw(500, 4), _draw(500, 5), 1.0, [CATEGORY], PLAN)
    session = onnxruntime.InferenceSession(tree_graph([trees.booster, other.booster], 5))
    (logits,) = session.run(None, {"x": x})
    for target, booster in enumerate((trees.booster, other.booster)):
        np.testing.assert_allclose(logits[:, target], booster.predict(x, raw_score=True), atol=2e-6)


def test_a_tree_without_splits_becomes_a_constant() -> None:
    """Labels of pure noise and leaves too large to split: the graph answers the same constant."""
    x = np.zeros((50, 2), np.float32)
    labels = np.arange(50, dtype=np.uint8) % 2
    trees = fit_trees((x, labels), (x, labels), 1.0, [], PLAN)
    session = onnxruntime.InferenceSession(tree_graph([trees.booster], 2))
    np.testing.assert_allclose(session.run(None, {"x": x})[0], 0.0, atol=1e-6)


def test_the_ensemble_that_is_best_on_later_rows_is_kept() -> None:
    """Against fitting each size of tree alone: the one with the lower cross-entropy there, cut after its best round."""
    train, later = _draw(800, 6), _draw(4_000, 7)
    kept = fit_trees(train, later, 1.0, [CATEGORY], PLAN)
    losses = {}
    for leaves in PLAN.leaves:
        alone = fit_trees(train, later, 1.0, [CATEGORY], replace(PLAN, leaves=(leaves,)))
        losses[leaves] = log_loss(later[1], alone.booster.predict(later[0]))
        assert alone.booster.num_trees() == alone.rounds <= PLAN.rounds_max
    assert kept.leaves == min(losses, key=lambda leaves: losses[leaves])
    assert log_loss(later[1], kept.booster.predict(later[0])) == pytest.approx(min(losses.values()))


def test_rounds_are_chosen_at_the_natural_rate() -> None:
    """With a tenth of the negatives the kept ensemble's corrected probabilities are near the natural base rate."""
    x, labels = _draw(6_000, 8)
    kept = (labels == 1) | (np.arange(len(labels)) % 10 == 0)
    trees = fit_trees((x[kept], labels[kept]), _draw(4_000, 9), 0.1, [CATEGORY], PLAN)
    sampled = np.asarray(trees.booster.predict(x))
    corrected = 0.1 * sampled / (1 - sampled + 0.1 * sampled)
    assert sampled.mean() > 1.5 * labels.mean()
    assert corrected.mean() == pytest.approx(labels.mean(), rel=0.1)


def test_numbers_that_make_no_sense_are_refused() -> None:
    """A plan without a size of tree, or with a zero."""
    with pytest.raises(ValueError, match="at least 1"):
        TreePlan(leaves=())
    with pytest.raises(ValueError, match="at least 1"):
        TreePlan(leaves=(0,))
    with pytest.raises(ValueError, match="at least 1"):
        TreePlan(rounds_max=0)
