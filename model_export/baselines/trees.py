"""Gradient-boosted trees of one head (LightGBM), and the same as ONNX.

Trees get the values as they are: numbers, NaN for what is absent (LightGBM learns where that goes), categories as
categories, a vector as its components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from model_export.evaluate import cross_entropy
from model_export.sampling import prior_corrected

Floats = NDArray[np.float32]

_IR_VERSION = 10
# TreeEnsemble's codes of comparisons.
_LESS_OR_EQUAL, _MEMBER = 0, 6


@dataclass(frozen=True)
class TreePlan:
    """How trees are fitted: one ensemble per number of leaves, of which the best on the validation days is kept.

    Attributes:
        leaves: Of a tree; each is tried.
        leaf_rows_min: Examples in a leaf.
        learning_rate: Shrinkage.
        rounds_max: Trees of an ensemble.
        patience: Trees without a better validation score before an ensemble ends.
        feature_share: Of the features that a tree looks at.
        row_share: Of the examples that a tree looks at.
        l2: Penalty on leaf values.
        threads: Of LightGBM.
        seed: Draws features and examples.
    """

    leaves: tuple[int, ...] = (15, 63)
    leaf_rows_min: int = 100
    learning_rate: float = 0.05
    rounds_max: int = 2_000
    patience: int = 50
    feature_share: float = 0.5
    row_share: float = 0.8
    l2: float = 10.0
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.leaves or min(*self.leaves, self.leaf_rows_min, self.rounds_max, self.patience, self.threads) < 1:
            raise ValueError("leaves, leaf_rows_min, rounds_max, patience and threads must be at least 1")


@dataclass(frozen=True)
class Trees:
    """The best ensemble of a head.

    Attributes:
        booster: Cut off after its best round.
        leaves: That it was grown with.
        rounds: Trees in it.
    """

    booster: lightgbm.Booster
    leaves: int
    rounds: int


def fit_trees(
    train: tuple[Floats, NDArray[np.uint8]],
    validation: tuple[Floats, NDArray[np.uint8]],
    rate: float,
    categorical: Sequence[int],
    plan: TreePlan,
) -> Trees:
    """Fits the ensembles of the plan and keeps the best.

    Args:
        train: (x [n, F], labels [n]), negatives sampled.
        validation: Likewise, at the natural rate, of later days: rounds and leaves are chosen by its cross-entropy.
        rate: Share of the negatives in `train`.
        categorical: Columns of x that hold categories.
        plan: How.
    """

    def natural_cross_entropy(predicted: NDArray[np.float64], data: lightgbm.Dataset) -> tuple[str, float, bool]:
        return "cross_entropy", cross_entropy(np.asarray(data.get_label()), prior_corrected(predicted, rate)), False

    names = [f"f{column}" for column in range(train[0].shape[1])]
    data = lightgbm.Dataset(*train, feature_name=names, categorical_feature=list(categorical), free_raw_data=False)
    held_out = lightgbm.Dataset(*validation, reference=data, free_raw_data=False)
    best: Trees | None = None
    best_score = np.inf
    for leaves in plan.leaves:
        scores: dict[str, Any] = {}
        booster = lightgbm.train(
            booster_parameters(plan, leaves),
            data,
            plan.rounds_max,
            valid_sets=[held_out],
            feval=natural_cross_entropy,
            callbacks=[lightgbm.early_stopping(plan.patience, verbose=False), lightgbm.record_evaluation(scores)],
        )
        score = min(scores["valid_0"]["cross_entropy"])
        if score < best_score:
            rounds = booster.best_iteration
            best, best_score = Trees(_cut(booster, rounds), leaves, rounds), score
    if best is None:
        raise ValueError("no ensemble has a finite cross-entropy on the validation days")
    return best


def booster_parameters(plan: TreePlan, leaves: int) -> dict[str, Any]:
    """LightGBM's parameters for an ensemble of trees with so many leaves."""
    return {
        "objective": "binary",
        "metric": "None",
        "num_leaves": leaves,
        "min_data_in_leaf": plan.leaf_rows_min,
        "learning_rate": plan.learning_rate,
        "feature_fraction": plan.feature_share,
        "bagging_fraction": plan.row_share,
        "bagging_freq": 1,
        "lambda_l2": plan.l2,
        "num_threads": plan.threads,
        "seed": plan.seed,
        "deterministic": True,
        "force_col_wise": True,
        "verbosity": -1,
    }


def _cut(booster: lightgbm.Booster, rounds: int) -> lightgbm.Booster:
    return lightgbm.Booster(model_str=booster.model_to_string(num_iteration=rounds))


def tree_graph(boosters: Sequence[lightgbm.Booster], features: int) -> bytes:
    """The ensembles as one ONNX TreeEnsemble: float32 `x` [N, features] -> logits `y` [N, boosters].

    Thresholds become the next float32 below, so that each float32 value goes the way that LightGBM sends it.
    """
    nodes = _Nodes()
    for target, booster in enumerate(boosters):
        for tree in booster.dump_model()["tree_info"]:
            nodes.roots.append(nodes.add(tree["tree_structure"], target))
    members = [np.array([*values, np.nan], np.float32) for values in nodes.members if values]
    attributes: dict[str, Any] = {
        "n_targets": len(boosters),
        "tree_roots": nodes.roots,
        "nodes_featureids": nodes.feature,
        "nodes_splits": numpy_helper.from_array(np.array(nodes.split, np.float32)),
        "nodes_modes": numpy_helper.from_array(np.array(nodes.mode, np.uint8)),
        "nodes_missing_value_tracks_true": nodes.missing_goes_left,
        "nodes_truenodeids": [child for child, _ in nodes.left],
        "nodes_trueleafs": [int(leaf) for _, leaf in nodes.left],
        "nodes_falsenodeids": [child for child, _ in nodes.right],
        "nodes_falseleafs": [int(leaf) for _, leaf in nodes.right],
        "leaf_targetids": nodes.leaf_target,
        "leaf_weights": numpy_helper.from_array(np.array(nodes.leaf_value, np.float32)),
    }
    if members:
        attributes["membership_values"] = numpy_helper.from_array(np.concatenate(members))
    node = helper.make_node("TreeEnsemble", ["x"], ["y"], domain="ai.onnx.ml", **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", features])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", len(boosters)])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 5)]
    model = helper.make_model(
        helper.make_graph([node], "trees", [x], [y]), opset_imports=opsets, ir_version=_IR_VERSION
    )
    checker.check_model(model)
    return bytes(model.SerializeToString())


class _Nodes:
    """The inner nodes and leaves of many trees in the columns that TreeEnsemble takes."""

    def __init__(self) -> None:
        self.roots: list[int] = []
        self.feature: list[int] = []
        self.split: list[float] = []
        self.mode: list[int] = []
        self.missing_goes_left: list[int] = []
        self.members: list[list[float]] = []
        self.left: list[tuple[int, bool]] = []  # (number, whether it is a leaf)
        self.right: list[tuple[int, bool]] = []
        self.leaf_target: list[int] = []
        self.leaf_value: list[float] = []

    def add(self, tree: dict[str, Any], target: int) -> int:
        """Adds an inner node of LightGBM's dump and all below it; returns its number."""
        number = len(self.feature)
        if "split_feature" not in tree:
            # A tree that is a leaf: a node both of whose branches lead to it.
            leaf = self._leaf(tree["leaf_value"], target)
            self._node(0, 0.0, _LESS_OR_EQUAL, missing_goes_left=True, members=[])
            self.left[number] = self.right[number] = leaf, True
            return number
        if tree["decision_type"] == "==":
            # LightGBM sends an absent category to the right.
            members = [float(value) for value in tree["threshold"].split("||")]
            self._node(tree["split_feature"], 0.0, _MEMBER, missing_goes_left=False, members=members)
        else:
            # Where no value was absent in training, LightGBM takes an absent one for zero.
            threshold = float(tree["threshold"])
            left = tree["default_left"] if tree["missing_type"] == "NaN" else threshold >= 0
            self._node(tree["split_feature"], _float32_below(threshold), _LESS_OR_EQUAL, left, members=[])
        self.left[number] = self._child(tree["left_child"], target)
        self.right[number] = self._child(tree["right_child"], target)
        return number

    def _node(self, feature: int, split: float, mode: int, missing_goes_left: bool, members: list[float]) -> None:
        self.feature.append(feature)
        self.split.append(split)
        self.mode.append(mode)
        self.missing_goes_left.append(int(missing_goes_left))
        self.members.append(members)
        self.left.append((0, False))
        self.right.append((0, False))

    def _child(self, tree: dict[str, Any], target: int) -> tuple[int, bool]:
        if "split_feature" in tree:
            return self.add(tree, target), False
        return self._leaf(tree["leaf_value"], target), True

    def _leaf(self, value: float, target: int) -> int:
        self.leaf_target.append(target)
        self.leaf_value.append(value)
        return len(self.leaf_value) - 1


def _float32_below(value: float) -> float:
    """The largest float32 that is not above `value`."""
    limits = np.finfo(np.float32)
    held = np.float32(np.clip(value, limits.min, limits.max))
    return float(held if float(held) <= value else np.nextafter(held, np.float32(-np.inf)))
