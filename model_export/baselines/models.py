"""Fits every baseline on the same rows, all heads, and says how each is served."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.baselines.logistic import (
    Design,
    Logistic,
    LogisticPlan,
    fit_head,
    make_crosses,
    most_telling,
    vector_slots,
)
from model_export.baselines.logistic_graph import logistic_graph
from model_export.baselines.rows import Floats, Rows, categorical_columns, flat, group_starts, tables_of
from model_export.baselines.trees import TreePlan, Trees, fit_trees, tree_graph
from model_export.calibrate import IDENTITY
from model_export.encode import Slot, Tables
from model_export.graph import build, build_plain
from service.schema import Schema


@dataclass(frozen=True)
class Baseline:
    """A fitted model of all heads.

    Attributes:
        name: In tables.
        probabilities: Tables of n rows -> [n, H], in the sampled world.
        train_s: Wall time of fitting, the tuning included.
        size_bytes: Of the model on disk, in the smallest of its forms.
        graphs: ONNX forms by name; their inputs are those of the shipped graph, or one matrix `x`.
        boosters: Trees by head, where it is trees.
        chosen: What tuning came to, by head.
    """

    name: str
    probabilities: Callable[[Tables], Floats]
    train_s: float
    size_bytes: int
    graphs: Mapping[str, bytes]
    chosen: Mapping[str, Any]
    boosters: tuple[lightgbm.Booster, ...] = field(default=())


@dataclass(frozen=True)
class Lesson:
    """What all baselines learn from.

    Attributes:
        schema: Of what is read and predicted.
        slots: Binned scalars and categories, by the plan's discretizer.
        train: Of the training days, negatives sampled.
        validation: Of the validation days, at the natural rate.
        rates: By head, the share of its negatives in `train`.
    """

    schema: Schema
    slots: tuple[Slot, ...]
    train: Rows
    validation: Rows
    rates: NDArray[np.float64]

    def __post_init__(self) -> None:
        for head, name in enumerate(self.schema.head_names):
            labels = self.train.labels[self.train.used[:, head], head]
            if not 0 < labels.sum(dtype=np.int64) < len(labels):
                raise ValueError(f"head {name!r} has one class only on the training days: nothing to learn")


def fit_all(lesson: Lesson, logistic: LogisticPlan, trees: TreePlan) -> list[Baseline]:
    """Fits logistic regression without and with crosses, and trees."""
    slots = _all_slots(lesson, logistic)
    bins = Design(slots).encoding.encode(tables_of(lesson.schema, lesson.train.x))[0]
    chosen = most_telling(slots, bins, lesson.train.labels, lesson.train.used)[: logistic.crossed_features]
    crossed = Design(slots, make_crosses(slots, chosen, logistic.cells_max))
    return [
        _fit_logistic("logistic", lesson, Design(slots), logistic),
        _fit_logistic("logistic with crosses", lesson, crossed, logistic),
        _fit_trees(lesson, trees),
    ]


def fit_fast(lesson: Lesson, logistic: LogisticPlan, trees: TreePlan) -> list[Baseline]:
    """Fits trees, and logistic regression without crosses: what the cost of the net is held against."""
    return [
        _fit_trees(lesson, trees),
        _fit_logistic("logistic", lesson, Design(_all_slots(lesson, logistic)), logistic),
    ]


def _all_slots(lesson: Lesson, logistic: LogisticPlan) -> tuple[Slot, ...]:
    tables = tables_of(lesson.schema, lesson.train.x)
    return (*lesson.slots, *vector_slots(lesson.schema, tables, logistic.vector_bins))


def _fit_logistic(name: str, lesson: Lesson, design: Design, plan: LogisticPlan) -> Baseline:
    begin = time.perf_counter()
    matrices = [
        design.matrix(design.encoding.encode(tables_of(lesson.schema, rows.x))[0])
        for rows in (lesson.train, lesson.validation)
    ]
    heads = lesson.schema.head_names
    fitted = []
    for head in tqdm(range(len(heads)), desc=name, unit="head", leave=False):
        used = lesson.train.used[:, head]
        fitted.append(
            fit_head(
                (matrices[0][used], lesson.train.labels[used, head]),
                (matrices[1], lesson.validation.labels[:, head]),
                float(lesson.rates[head]),
                plan,
            )
        )
    model = Logistic(
        design,
        weights=np.stack([weights for weights, _, _ in fitted], axis=1).astype(np.float32),
        bias=np.array([bias for _, bias, _ in fitted], np.float32),
    )
    graphs = _logistic_graphs(model, lesson.schema)
    return Baseline(
        name=name,
        probabilities=model.probabilities,
        train_s=time.perf_counter() - begin,
        size_bytes=min(map(len, graphs.values())),
        graphs=graphs,
        chosen={head: {"inverse_penalty": c} for head, (_, _, c) in zip(heads, fitted, strict=True)},
    )


def _logistic_graphs(model: Logistic, schema: Schema) -> dict[str, bytes]:
    if model.design.crosses:
        starts = group_starts(schema)
        features = sum(layout.width for layout in schema.layouts.values())
        return {"ONNX, gathered": logistic_graph(model, starts, features)}
    net, uncalibrated = model.to_net(), [IDENTITY] * len(schema.heads)
    return {
        "ONNX, gathered": build_plain(schema, net, uncalibrated),
        "ONNX, thermometer": build(schema, net, uncalibrated),
    }


def _fit_trees(lesson: Lesson, plan: TreePlan) -> Baseline:
    begin = time.perf_counter()
    categorical = categorical_columns(lesson.schema)
    fitted: list[Trees] = []
    for head in tqdm(range(len(lesson.schema.heads)), desc="trees", unit="head", leave=False):
        train = lesson.train.of_head(head)
        validation = lesson.validation.x, lesson.validation.labels[:, head]
        fitted.append(fit_trees(train, validation, float(lesson.rates[head]), categorical, plan))
    boosters = tuple(trees.booster for trees in fitted)
    graph = tree_graph(boosters, lesson.train.x.shape[1])

    def probabilities(tables: Tables) -> Floats:
        x = flat(tables)
        columns = [booster.predict(x, num_threads=plan.threads) for booster in boosters]
        return np.stack(columns, axis=1).astype(np.float32)

    return Baseline(
        name="trees (LightGBM)",
        probabilities=probabilities,
        train_s=time.perf_counter() - begin,
        size_bytes=min(len(graph), sum(len(booster.model_to_string()) for booster in boosters)),
        graphs={"ONNX TreeEnsemble": graph},
        chosen={
            head: {"leaves": trees.leaves, "rounds": trees.rounds}
            for head, trees in zip(lesson.schema.head_names, fitted, strict=True)
        },
        boosters=boosters,
    )
