"""Step `calibrate`: fits the calibration of each head on the exported graph's answers and builds the graph to ship."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from model_export.calibrate import ScoreCounts, fit_calibration, fit_logistic, prior_correction
from model_export.datasets.records import RecordSet
from model_export.graph import build
from model_export.plan import Context, Step
from model_export.score import open_graph, score
from model_export.steps.sample import load_info, open_records
from model_export.steps.train import load_trained
from model_export.weights import Knots


@dataclass(frozen=True)
class Parameters:
    """How heads are calibrated.

    Attributes:
        positives_min: A head with fewer on the calibration days has only its sampling undone.
        isotonic_positives_min: A head with fewer, but positives_min, has a line in the log odds fitted, not isotonic
            regression.
        block_events_min: Positives, and negatives, of each block of the isotonic regression.
        blocks_max: Most blocks of a head: with many events each holds more of them.
    """

    positives_min: int = 200
    isotonic_positives_min: int = 0
    block_events_min: int = 20
    blocks_max: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.block_events_min <= self.positives_min or self.blocks_max < 1:
            raise ValueError("block_events_min must be at least 1 and at most positives_min, blocks_max at least 1")


def fit_head(counts: ScoreCounts, rate: float, plan: Parameters) -> tuple[str, Knots]:
    """(method, knots) of one head, by its counts at the natural rate and the share of negatives it was trained on."""
    positives, negatives = counts.events
    if positives < plan.positives_min or negatives < plan.block_events_min:
        return "prior_correction", prior_correction(rate)
    if positives < plan.isotonic_positives_min:
        return "logistic", fit_logistic(counts, rate)
    return "isotonic", fit_calibration(counts, rate, plan.block_events_min, plan.blocks_max)


def load_knots(artifact: Path) -> list[Knots]:
    """The calibration in an artifact of this step, by head."""
    document = json.loads((artifact / "calibration.json").read_text())
    return [Knots(np.array(head["x"], np.float32), np.array(head["y"], np.float32)) for head in document.values()]


def _run(context: Context) -> str:
    parameters: Parameters = context.parameters
    records = open_records(context.plan, context.inputs["data"])
    counts = _counts(records, context.plan.split.days(records)["calibrate"], context.inputs["export"])
    rates = load_info(context.inputs["sample"]).rates
    document = {name: _calibrated(head, rates[name], parameters) for name, head in counts.items()}
    (context.out / "calibration.json").write_text(json.dumps(document))

    network = load_trained(context.inputs["train"], records.schema)
    export = json.loads((context.inputs["export"] / "export.json").read_text())
    form = {name: export[name] for name in ("precision", "trunk_input_max", "sparse_tweets")}
    model = build(records.schema, network.to_weights(), load_knots(context.out), **form)
    (context.out / "model.onnx").write_bytes(model)
    heads = ", ".join(f"{name} {head['method']} ({len(head['x'])} knots)" for name, head in document.items())
    impressions = sum(next(iter(counts.values())).events)
    return f"{impressions:,} impressions: {heads}"


def _counts(records: RecordSet, days: Sequence[int], export: Path) -> dict[str, ScoreCounts]:
    """What the graph answers on all impressions of these days, counted, by head."""
    graph = open_graph((export / "model.onnx").read_bytes())
    names = records.schema.head_names
    none = ScoreCounts.of(np.empty(0, np.float32), np.empty(0, np.uint8))
    counts = dict.fromkeys(names, none)
    for impressions in tqdm(records.batches(days), desc="calibrate", unit="batch", leave=False):
        raw = score(graph, impressions)[0]
        for j, name in enumerate(names):
            counts[name] += ScoreCounts.of(raw[:, j], impressions.labels[:, j])
    return counts


def _calibrated(counts: ScoreCounts, rate: float, parameters: Parameters) -> dict[str, Any]:
    """One head's calibration as JSON values; `cumulative_error` is that of its counts, as a share of the positives."""
    method, knots = fit_head(counts, rate, parameters)
    positives = counts.events[0]
    return {
        "method": method,
        "positives": positives,
        "cumulative_error": counts.cumulative_error / max(positives, 1),
        "x": knots.x.tolist(),
        "y": knots.y.tolist(),
    }


STEP = Step(
    version=5,
    parameters=Parameters,
    inputs=("data", "sample", "train", "export"),
    parts=("split", "features", "heads"),
    run=_run,
)
