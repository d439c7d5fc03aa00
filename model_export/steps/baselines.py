"""Step `baselines`: logistic regression without and with crosses, and trees, beside the net.

They are calibrated and tested on the same days and by the same rules as the net.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_export.artifact import artifact_document
from model_export.baselines.cost import calls_of, graph_call, race, timelines
from model_export.baselines.judge import Predict, calibrated, figures, judge
from model_export.baselines.models import Baseline, load_all
from model_export.baselines.report import plot
from model_export.baselines.rows import Products
from model_export.datasets.records import Impressions
from model_export.graph import build_plain
from model_export.plan import Context, Step
from model_export.score import open_graph, score
from model_export.steps.calibrate import Parameters as CalibrationPlan
from model_export.steps.calibrate import load_knots
from model_export.steps.fit_baselines import make_products, train_rows
from model_export.steps.sample import load_info, open_records
from model_export.steps.train import load_trained

REPORT, PLOT = "baselines.json", "baselines.png"
NET, PLAIN_NET = "net", "net, plain export"
_TIMED_ROWS = 8_192


@dataclass(frozen=True)
class Parameters:
    """How baselines are compared.

    Attributes:
        draws: Of the bootstrap by viewer.
        rounds: Runs of each model that is timed.
        seed: Draws viewers.
    """

    draws: int = 500
    rounds: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.draws, self.rounds) < 1:
            raise ValueError("draws and rounds must be at least 1")


def _run(context: Context) -> str:
    parameters: Parameters = context.parameters
    records = open_records(context.plan, context.inputs["data"])
    days = context.plan.split.days(records)
    baselines = load_all(context.inputs["fit_baselines"])
    products = make_products(records, context.plan.features)
    predict = {baseline.name: _of_impressions(baseline, products) for baseline in baselines}
    info = load_info(context.inputs["sample"])
    rates = np.array([info.rates[name] for name in records.schema.head_names])
    rules = CalibrationPlan(**artifact_document(context.inputs["calibrate"])["parameters"])
    predict = calibrated(predict, records, days["calibrate"], rates, rules)
    net = open_graph((context.inputs["calibrate"] / "model.onnx").read_bytes())
    predict[NET] = lambda impressions: score(net, impressions)[1]
    judged = judge(predict, records, days["test"])

    models = _costs(context, products, baselines, next(records.batches(days["test"], _TIMED_ROWS)))
    by_model = figures(judged, records.schema.head_names, NET, parameters.draws, parameters.seed)
    for name, heads in by_model.items():
        models[name]["heads"] = heads
    document = {
        "simulated": judged.simulated,
        "train_rows": {**train_rows(context.inputs["fit_baselines"]), "net": info.examples},
        "test_rows": len(judged.labels),
        "products": list(products.names),
        "models": models,
    }
    (context.out / REPORT).write_text(json.dumps(document, indent=1))
    plot(document, context.out / PLOT)
    means = {name: np.mean([head["rce"] for head in heads.values()]) for name, heads in by_model.items()}
    return "mean RCE " + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())


def _of_impressions(baseline: Baseline, products: Products) -> Predict:
    predict = baseline.predictor()
    return lambda impressions: predict(products.add(impressions).tables)


def _costs(
    context: Context, products: Products, baselines: Sequence[Baseline], impressions: Impressions
) -> dict[str, dict[str, Any]]:
    """What training and scoring cost, by model; `heads`, for their figures, are empty."""
    schema = products.schema
    shipped = (context.inputs["calibrate"] / "model.onnx").read_bytes()
    weights = load_trained(context.inputs["train"], schema).to_weights()
    plain = build_plain(schema, weights, load_knots(context.inputs["calibrate"]))
    net = {"size_bytes": len(shipped), "train_s": _net_train_s(context), "chosen": {}, "heads": {}}
    models: dict[str, dict[str, Any]] = {NET: net, PLAIN_NET: {**net, "size_bytes": len(plain), "heads": {}}}
    feeds, feeds_with_products = timelines(impressions), timelines(products.add(impressions))
    calls: dict[tuple[str, str], Callable[[int], object]] = {
        (NET, "shipped graph"): graph_call(shipped, feeds),
        (PLAIN_NET, "ONNX, gathered"): graph_call(plain, feeds),
    }
    for baseline in baselines:
        models[baseline.name] = {
            "size_bytes": baseline.size_bytes,
            "train_s": baseline.train_cpu_s,
            "chosen": dict(baseline.chosen),
            "heads": {},
        }
        forms = calls_of(baseline.graphs, baseline.boosters, feeds_with_products)
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


STEP = Step(
    version=5,
    parameters=Parameters,
    inputs=("data", "sample", "train", "calibrate", "fit_baselines"),
    parts=("split", "features", "heads"),
    run=_run,
)
