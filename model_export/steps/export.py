"""Step `export`: the trained net as a graph, its probabilities not yet calibrated, and proof that it is that net."""

from __future__ import annotations

import json
from dataclasses import dataclass

from model_export.calibrate import IDENTITY
from model_export.graph import Precision, build
from model_export.parity import check_parity, trunk_input_max
from model_export.plan import Context, Step
from model_export.score import open_graph
from model_export.steps.discretize import load_discretizer
from model_export.steps.sample import open_records
from model_export.steps.train import load_trained
from model_export.table_form import TableForm, takes_entries

_PARITY_ROWS = 8_192


@dataclass(frozen=True)
class Parameters:
    """The form of the graph; see `model_export.graph.build`.

    Attributes:
        precision: Of what discretised features add.
        form: How it takes the scalars of Tweets: as a table (`dense`), as what is present of them (`sparse`), or as
            costs less by the missing rates that the discretizer saw (`auto`).
    """

    precision: Precision = "float32"
    form: TableForm = "auto"


def _run(context: Context) -> str:
    parameters: Parameters = context.parameters
    records = open_records(context.plan, context.inputs["data"])
    network = load_trained(context.inputs["train"], records.schema)
    uncalibrated = [IDENTITY] * len(records.schema.heads)
    weights, discretizer = network.to_weights(), load_discretizer(context.inputs["train"])
    sparse = takes_entries(parameters.form, weights.groups["tweet"], records.schema, discretizer, parameters.precision)
    held_out = next(records.batches(context.plan.split.days(records)["calibrate"], rows_max=_PARITY_ROWS))
    input_max = trunk_input_max(network, held_out)
    model = build(records.schema, weights, uncalibrated, parameters.precision, input_max, sparse)
    difference = check_parity(network, open_graph(model), parameters.precision, held_out, uncalibrated)
    (context.out / "model.onnx").write_bytes(model)
    export = {"precision": parameters.precision, "trunk_input_max": input_max, "sparse_tweets": sparse}
    (context.out / "export.json").write_text(json.dumps(export | {"raw_difference_max": difference}))
    form = f"{parameters.precision}, {'sparse' if sparse else 'dense'}"
    return f"{form}, {len(model) / 1e6:.2f} MB, raw probabilities within {difference:.1e} of torch's"


STEP = Step(version=3, parameters=Parameters, inputs=("data", "train"), parts=("split", "features", "heads"), run=_run)
