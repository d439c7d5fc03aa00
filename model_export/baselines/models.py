"""Fits every baseline on the same rows, all heads, says how each is served, and keeps them as files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnxruntime
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
from model_export.graph import build
from model_export.score import open_graph
from service.schema import Schema

_MODELS = "models.json"
# Forms of logistic regressions: of one matrix `x`, and with the inputs of a shipped graph.
GATHERED, THERMOMETER = "ONNX, gathered", "ONNX, thermometer"
# Rows that a graph takes at once where speed is not measured: more of them need more memory and no less time.
_CHUNK_ROWS = 2_048


@dataclass(frozen=True)
class Baseline:
    """A fitted model of all heads, over the features of the net and its inner products.

    Attributes:
        name: In tables.
        train_cpu_s: CPU time of fitting, the tuning included.
        size_bytes: Of the model on disk, in the smallest of its forms.
        graphs: ONNX forms by name; their inputs are those of the shipped graph, or one matrix `x`.
        boosters: Trees by head, where it is trees.
        chosen: What tuning came to, by head.
    """

    name: str
    train_cpu_s: float
    size_bytes: int
    graphs: Mapping[str, bytes]
    chosen: Mapping[str, Any]
    boosters: tuple[lightgbm.Booster, ...] = field(default=())

    def predictor(self) -> Callable[[Tables], Floats]:
        """What takes tables of n rows and gives probabilities [n, H] in the sampled world."""
        if self.boosters:
            return self._predict_trees
        session = open_graph(self.graphs[GATHERED])
        return lambda tables: _in_chunks(session, flat(tables))

    def _predict_trees(self, tables: Tables) -> Floats:
        x = flat(tables)
        return np.stack([booster.predict(x, num_threads=1) for booster in self.boosters], axis=1).astype(np.float32)


def _in_chunks(session: onnxruntime.InferenceSession, x: Floats) -> Floats:
    chunks = (x[start : start + _CHUNK_ROWS] for start in range(0, len(x), _CHUNK_ROWS))
    return np.concatenate([session.run(None, {"x": chunk})[0] for chunk in chunks])


def save_all(baselines: Sequence[Baseline], out: Path) -> None:
    """Keeps the models: graphs, trees as LightGBM's text by number of the head, and what is said of them as JSON."""
    document = {}
    for baseline in baselines:
        for form, graph in baseline.graphs.items():
            (out / f"{baseline.name}, {form}.onnx").write_bytes(graph)
        for head, booster in enumerate(baseline.boosters):
            booster.save_model(out / f"{baseline.name} {head}.txt")
        document[baseline.name] = {
            "train_cpu_s": baseline.train_cpu_s,
            "size_bytes": baseline.size_bytes,
            "chosen": baseline.chosen,
            "forms": list(baseline.graphs),
            "boosters": len(baseline.boosters),
        }
    (out / _MODELS).write_text(json.dumps(document, indent=1))


def load_all(artifact: Path) -> list[Baseline]:
    """Reads what `save_all` wrote."""
    document: dict[str, Any] = json.loads((artifact / _MODELS).read_text())
    return [
        Baseline(
            name=name,
            train_cpu_s=said["train_cpu_s"],
            size_bytes=said["size_bytes"],
            graphs={form: (artifact / f"{name}, {form}.onnx").read_bytes() for form in said["forms"]},
            chosen=said["chosen"],
            boosters=tuple(
                lightgbm.Booster(model_file=artifact / f"{name} {head}.txt") for head in range(said["boosters"])
            ),
        )
        for name, said in document.items()
    ]


@dataclass(frozen=True)
class Lesson:
    """What all baselines learn from.

    Attributes:
        schema: Of what is read and predicted, inner products included.
        slots: Binned scalars and categories, by the plan's discretizer; inner products by bins of their own.
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
    part = replace(lesson, train=lesson.train.spread(logistic.rows_max))
    slots = _all_slots(part, logistic)
    bins = Design(slots).encoding.encode(tables_of(part.schema, part.train.x))[0]
    chosen = most_telling(slots, bins, part.train.labels, part.train.used)[: logistic.crossed_features]
    crossed = Design(slots, make_crosses(slots, chosen, logistic.cells_max))
    return [
        _fit_logistic("logistic", part, Design(slots), logistic),
        _fit_logistic("logistic with crosses", part, crossed, logistic),
        _fit_trees(lesson, trees),
    ]


def fit_fast(lesson: Lesson, logistic: LogisticPlan, trees: TreePlan) -> list[Baseline]:
    """Fits trees, and logistic regression without crosses: what the cost of the net is held against."""
    part = replace(lesson, train=lesson.train.spread(logistic.rows_max))
    return [
        _fit_trees(lesson, trees),
        _fit_logistic("logistic", part, Design(_all_slots(part, logistic)), logistic),
    ]


def _all_slots(lesson: Lesson, logistic: LogisticPlan) -> tuple[Slot, ...]:
    tables = tables_of(lesson.schema, lesson.train.x)
    return (*lesson.slots, *vector_slots(lesson.schema, tables, logistic.vector_bins))


def _fit_logistic(name: str, lesson: Lesson, design: Design, plan: LogisticPlan) -> Baseline:
    begin = time.process_time()
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
        train_cpu_s=time.process_time() - begin,
        size_bytes=min(map(len, graphs.values())),
        graphs=graphs,
        chosen={head: {"inverse_penalty": c} for head, (_, _, c) in zip(heads, fitted, strict=True)},
    )


def _logistic_graphs(model: Logistic, schema: Schema) -> dict[str, bytes]:
    features = sum(layout.width for layout in schema.layouts.values())
    graphs = {GATHERED: logistic_graph(model, group_starts(schema), features)}
    if not model.design.crosses:
        graphs[THERMOMETER] = build(schema, model.to_net(), [IDENTITY] * len(schema.heads))
    return graphs


def _fit_trees(lesson: Lesson, plan: TreePlan) -> Baseline:
    begin = time.process_time()
    categorical = categorical_columns(lesson.schema)
    fitted: list[Trees] = []
    for head in tqdm(range(len(lesson.schema.heads)), desc="trees", unit="head", leave=False):
        train = lesson.train.of_head(head)
        validation = lesson.validation.x, lesson.validation.labels[:, head]
        fitted.append(fit_trees(train, validation, float(lesson.rates[head]), categorical, plan))
    boosters = tuple(trees.booster for trees in fitted)
    graph = tree_graph(boosters, lesson.train.x.shape[1])

    return Baseline(
        name="trees (LightGBM)",
        train_cpu_s=time.process_time() - begin,
        size_bytes=min(len(graph), sum(len(booster.model_to_string()) for booster in boosters)),
        graphs={"ONNX TreeEnsemble": graph},
        chosen={
            head: {"leaves": trees.leaves, "rounds": trees.rounds}
            for head, trees in zip(lesson.schema.head_names, fitted, strict=True)
        },
        boosters=boosters,
    )
