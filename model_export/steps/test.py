"""Step `test`: how good the calibrated graph is on the last days, which nothing else has seen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from model_export.evaluate import evaluate_graph
from model_export.plan import Context, Step
from model_export.score import open_graph
from model_export.steps.sample import load_info, open_records


@dataclass(frozen=True)
class Parameters:
    """What is tested.

    Attributes:
        without: What the graph is tested without, to see what it gives.
    """

    without: Literal["calibration"] | None = None


def _run(context: Context) -> str:
    records = open_records(context.plan, context.inputs["data"])
    graph = open_graph((context.inputs["calibrate"] / "model.onnx").read_bytes())
    info = load_info(context.inputs["sample"])
    days, calibrated = context.plan.split.days(records)["test"], context.parameters.without is None
    metrics = evaluate_graph(graph, records, days, info.positives, calibrated, info.rates)
    (context.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    shown = "share" if "share" in next(iter(metrics.values())) else "rce"
    return f"{shown} " + ", ".join(f"{head} {figures[shown]:.3f}" for head, figures in metrics.items())


STEP = Step(
    version=2,
    parameters=Parameters,
    inputs=("data", "sample", "calibrate"),
    parts=("split", "features", "heads"),
    run=_run,
)
