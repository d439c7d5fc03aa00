"""Step `verify`: makes the bundle and loads it as the server would; its graph against torch once more."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_export.artifact import artifact_document
from model_export.bundle import golden_file, signed_weights
from model_export.datasets.records import RecordSet
from model_export.graph import Precision, signature
from model_export.parity import check_parity
from model_export.plan import Context, Step
from model_export.score import open_graph, score
from model_export.steps.calibrate import load_knots
from model_export.steps.sample import load_info, open_records
from model_export.steps.train import load_trained
from service.bundle import write_bundle
from service.model import load_model
from service.relevance import relevance
from service.schema import Schema

BUNDLE = "bundle"
_HELD_OUT_ROWS = 65_536


@dataclass(frozen=True)
class Parameters:
    """What is put beside the graph.

    Attributes:
        golden_cases: Requests with their answers.
        icymi_share: Share of held-out impressions whose relevance is at or above the default floor of the ICYMI module.
    """

    golden_cases: int = 4
    icymi_share: float = 0.05

    def __post_init__(self) -> None:
        if self.golden_cases < 1 or not 0 < self.icymi_share < 1:
            raise ValueError("golden_cases must be at least 1, icymi_share in (0, 1)")


def _run(context: Context) -> str:
    parameters: Parameters = context.parameters
    records = open_records(context.plan, context.inputs["data"])
    network = load_trained(context.inputs["train"], records.schema)
    held_out = next(records.batches(context.plan.split.days(records)["test"], rows_max=_HELD_OUT_ROWS))
    model = (context.inputs["calibrate"] / "model.onnx").read_bytes()
    precision: Precision = json.loads((context.inputs["export"] / "export.json").read_text())["precision"]
    graph = open_graph(model)
    knots = load_knots(context.inputs["calibrate"])
    difference = check_parity(network, graph, precision, held_out, knots)

    relevances = relevance(score(graph, held_out)[1], signed_weights(records.schema))
    version = hashlib.sha256(model).hexdigest()[:12]
    golden = golden_file(graph, records.schema, held_out, parameters.golden_cases, version)
    stated = _stated(context, records.schema) | {
        "graph": {"precision": precision, **signature(model)},
        "icymi_relevance_min": float(np.quantile(relevances, 1 - parameters.icymi_share)),
    }
    bundle = context.out / BUNDLE
    write_bundle(bundle, model, stated, golden.SerializeToString(deterministic=True))
    load_model(bundle, threads=1)
    size = sum(file.stat().st_size for file in bundle.iterdir())
    return (
        f"bundle {version}, {size / 1e6:.2f} MB, {len(golden.cases)} golden cases; "
        f"raw probabilities within {difference:.1e} of torch's"
    )


def _stated(context: Context, schema: Schema) -> dict[str, Any]:
    """What the manifest says of how the model came to be."""
    sample = load_info(context.inputs["sample"])
    days = context.plan.split.days(RecordSet.open(context.inputs["data"]))
    learned = {part: [days[part][0], days[part][-1]] for part in ("train", "validate", "calibrate") if part in days}
    calibration = json.loads((context.inputs["calibrate"] / "calibration.json").read_text())
    world = artifact_document(context.inputs["data"])["parameters"].get("world")
    return {
        "schema": schema.to_json(),
        "law": world["law"] if world else None,
        "plan": context.plan.to_json(),
        "metrics": {
            "training": {
                "impressions": sample.rows,
                "examples": sample.examples,
                "positives": sample.positives,
                # First and last day of each part: the sample's own, should it come from another run.
                "days": learned | sample.days,
            },
            "test": json.loads((context.inputs["test"] / "metrics.json").read_text()),
        },
        "calibration": {
            head: {"method": fit["method"], "positives": fit["positives"], "knots": len(fit["x"])}
            for head, fit in calibration.items()
        },
    }


STEP = Step(
    version=2,
    parameters=Parameters,
    inputs=("data", "sample", "train", "export", "calibrate", "test"),
    parts=("split", "features", "heads", "weights"),
    run=_run,
)
