"""Step `baselines`: logistic regression without and with crosses, and trees, beside the net.

They learn from the training days with negatives sampled as for the net, are tuned on the validation days, and are
calibrated and tested on the same days and by the same rules as the net.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from model_export.artifact import artifact_document
from model_export.baselines.cost import calls_of, graph_call, race, timelines
from model_export.baselines.judge import Predict, calibrated, figures, judge
from model_export.baselines.logistic import LogisticPlan
from model_export.baselines.models import Baseline, Lesson, fit_all
from model_export.baselines.report import plot
from model_export.baselines.rows import collect
from model_export.baselines.trees import TreePlan
from model_export.datasets.records import Impressions, RecordSet
from model_export.encode import make_encoding
from model_export.graph import build_plain
from model_export.plan import Context, Step
from model_export.sampling import row_uniform, used_by_head
from model_export.score import open_graph, score
from model_export.steps.calibrate import Parameters as CalibrationPlan
from model_export.steps.calibrate import load_knots
from model_export.steps.discretize import load_discretizer
from model_export.steps.sample import load_info, open_records
from model_export.steps.train import load_trained
from service.schema import Schema

REPORT, PLOT = "baselines.json", "baselines.png"
NET, PLAIN_NET = "net", "net, plain export"
_TIMED_ROWS = 8_192


@dataclass(frozen=True)
class Parameters:
    """How baselines are fitted and compared.

    Attributes:
        rows_max: Training rows, or a few more: a uniform part of what the net trains on where that is more. Memory
            grows with these and with validation_rows.
        validation_rows: Impressions of the validation days that tuning looks at, or a few more.
        logistic: Of the logistic regressions.
        trees: Of the trees.
        draws: Of the bootstrap by viewer.
        rounds: Runs of each model that is timed.
        seed: Draws rows and viewers.
    """

    rows_max: int = 300_000
    validation_rows: int = 100_000
    logistic: LogisticPlan = field(default_factory=LogisticPlan)
    trees: TreePlan = field(default_factory=TreePlan)
    draws: int = 500
    rounds: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rows_max, self.validation_rows, self.draws, self.rounds) < 1:
            raise ValueError("rows_max, validation_rows, draws and rounds must be at least 1")


def _run(context: Context) -> str:
    parameters: Parameters = context.parameters
    records = open_records(context.plan, context.inputs["data"])
    days = context.plan.split.days(records)
    lesson = draw_lesson(context, records)
    baselines = fit_all(lesson, parameters.logistic, parameters.trees)
    predict = {baseline.name: _of_tables(baseline) for baseline in baselines}
    rules = CalibrationPlan(**artifact_document(context.inputs["calibrate"])["parameters"])
    predict = calibrated(predict, records, days["calibrate"], lesson.rates, rules)
    net = open_graph((context.inputs["calibrate"] / "model.onnx").read_bytes())
    predict[NET] = lambda impressions: score(net, impressions)[1]
    judged = judge(predict, records, days["test"])

    models = _costs(context, records.schema, baselines, next(records.batches(days["test"], _TIMED_ROWS)))
    by_model = figures(judged, records.schema.head_names, NET, parameters.draws, parameters.seed)
    for name, heads in by_model.items():
        models[name]["heads"] = heads
    document = {
        "simulated": judged.simulated,
        "train_rows": len(lesson.train.x),
        "net_train_rows": load_info(context.inputs["sample"]).examples,
        "test_rows": len(judged.labels),
        "models": models,
    }
    (context.out / REPORT).write_text(json.dumps(document, indent=1))
    plot(document, context.out / PLOT)
    _save(baselines, context.out)
    means = {name: np.mean([head["rce"] for head in heads.values()]) for name, heads in by_model.items()}
    return "mean RCE " + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())


def _of_tables(baseline: Baseline) -> Predict:
    return lambda impressions: baseline.probabilities(impressions.tables)


def draw_lesson(context: Context, records: RecordSet) -> Lesson:
    """Draws what the baselines learn from, as the context's `Parameters` say."""
    parameters: Parameters = context.parameters
    days = context.plan.split.days(records)
    info = load_info(context.inputs["sample"])
    rates = np.array([info.rates[name] for name in records.schema.head_names])
    validation_share = parameters.validation_rows / records.rows(days["validate"])
    train_share = parameters.rows_max / max(info.examples, 1)

    def sampled(impressions: Impressions) -> NDArray[np.bool_]:
        # Which part is taken must not hang on which negatives are: two seeds.
        used = used_by_head(impressions.labels, row_uniform(impressions.ids, 2 * parameters.seed), rates)
        part = row_uniform(impressions.ids, 2 * parameters.seed + 1) < train_share
        return np.asarray(used & part[:, np.newaxis])

    def drawn(impressions: Impressions) -> NDArray[np.bool_]:
        part = row_uniform(impressions.ids, parameters.seed) < validation_share
        return np.repeat(part[:, np.newaxis], len(rates), axis=1)

    binned = replace(context.plan.features, binned=("*",), raw=(), raw_log=())
    encoding = make_encoding(records.schema, binned, load_discretizer(context.inputs["discretize"]))
    train, validation = collect(records, days["train"], sampled), collect(records, days["validate"], drawn)
    return Lesson(records.schema, encoding.slots, train, validation, rates)


def _costs(
    context: Context, schema: Schema, baselines: list[Baseline], impressions: Impressions
) -> dict[str, dict[str, Any]]:
    """What training and scoring cost, by model; `heads`, for their figures, are empty."""
    shipped = (context.inputs["calibrate"] / "model.onnx").read_bytes()
    weights = load_trained(context.inputs["train"], schema).to_weights()
    plain = build_plain(schema, weights, load_knots(context.inputs["calibrate"]))
    net = {"size_bytes": len(shipped), "train_s": _net_train_s(context), "chosen": {}, "heads": {}}
    models: dict[str, dict[str, Any]] = {NET: net, PLAIN_NET: {**net, "size_bytes": len(plain), "heads": {}}}
    feeds = timelines(impressions)
    calls: dict[tuple[str, str], Callable[[int], object]] = {
        (NET, "shipped graph"): graph_call(shipped, feeds),
        (PLAIN_NET, "ONNX, gathered"): graph_call(plain, feeds),
    }
    for baseline in baselines:
        chosen = dict(baseline.chosen)
        size, seconds = baseline.size_bytes, baseline.train_s
        models[baseline.name] = {"size_bytes": size, "train_s": seconds, "chosen": chosen, "heads": {}}
        forms = calls_of(baseline.graphs, baseline.boosters, feeds)
        calls |= {(baseline.name, form): call for form, call in forms.items()}
    for (name, form), ms in race(calls, context.parameters.rounds).items():
        models[name].setdefault("ms_per_500_by_form", {})[form] = ms
    for model in models.values():
        model["ms_per_500"] = min(model["ms_per_500_by_form"].values())
        model["cpu_s_per_million"] = model["ms_per_500"] * 1_000
    return models


def _net_train_s(context: Context) -> float:
    """Seconds that the epochs took, validation left out."""
    examples = load_info(context.inputs["sample"]).examples
    history = json.loads((context.inputs["train"] / "history.json").read_text())
    return float(sum(examples / epoch["examples_per_s"] for epoch in history))


def load_saved(artifact: Path, name: str) -> tuple[dict[str, bytes], list[lightgbm.Booster]]:
    """(graphs by form, trees by head) of a baseline in an artifact of this step; both empty: it is not there."""
    graphs = {path.stem.removeprefix(f"{name}, "): path.read_bytes() for path in artifact.glob(f"{name}, *.onnx")}
    texts = sorted(artifact.glob(f"{name} *.txt"), key=lambda path: int(path.stem.removeprefix(f"{name} ")))
    return graphs, [lightgbm.Booster(model_file=text) for text in texts]


def _save(baselines: list[Baseline], out: Path) -> None:
    """Keeps the models: graphs, and trees as LightGBM's text by number of the head."""
    for baseline in baselines:
        for form, graph in baseline.graphs.items():
            (out / f"{baseline.name}, {form}.onnx").write_bytes(graph)
        for head, booster in enumerate(baseline.boosters):
            booster.save_model(out / f"{baseline.name} {head}.txt")


STEP = Step(
    version=2,
    parameters=Parameters,
    inputs=("data", "discretize", "sample", "train", "calibrate"),
    parts=("split", "features", "heads"),
    run=_run,
)
