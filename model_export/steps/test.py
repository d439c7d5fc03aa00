"""Step `test`: how good the calibrated graph is on the last days, which nothing else has seen."""

from __future__ import annotations

import json
from dataclasses import dataclass

from model_export.evaluate import evaluate_graph
from model_export.plan import Context, Step
from model_export.score import open_graph
from model_export.steps.sample import load_info, open_records


@dataclass(frozen=True)
class Parameters:
    """Nothing to choose."""


def _run(context: Context) -> str:
    records = open_records(context.plan, context.inputs["data"])
    graph = open_graph((context.inputs["calibrate"] / "model.onnx").read_bytes())
    positives = load_info(context.inputs["sample"]).positives
    metrics = evaluate_graph(graph, records, context.plan.split.days(records)["test"], positives)
    (context.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    shown = "share" if "share" in next(iter(metrics.values())) else "rce"
    return f"{shown} " + ", ".join(f"{head} {figures[shown]:.3f}" for head, figures in metrics.items())


STEP = Step(
    version=1,
    parameters=Parameters,
    inputs=("data", "sample", "calibrate"),
    parts=("split", "features", "heads"),
    run=_run,
)
