"""Step `train`: fits the network on the sampled examples; goes on where an interrupted run stopped.

Where torchrun started several processes, the first one comes here with the plan and the others by `follow`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from model_export.distributed import peers
from model_export.encode import make_encoding
from model_export.finished_run import FinishedRun
from model_export.first_layer import Part
from model_export.network import Network, NetworkPlan
from model_export.plan import Context, FeaturePlan, Plan, Step
from model_export.plan_table import PlanError, parse_table
from model_export.steps.discretize import load_discretizer, save_discretizer
from model_export.steps.sample import Sample, load_sample, open_records
from model_export.train import Epoch, Training, TrainingPlan, validation_rce
from service.schema import Schema

_CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Parameters(TrainingPlan):
    """How the net is trained, and its shape.

    Attributes:
        network: The shape.
        threads: Of torch, in each process; another number may round sums another way.
        warm_start: A run whose trained net gives the starting weights: of the same features, heads, bins and shape.
        without: A part of the first layer that the net is trained without, to see what it gives.
    """

    network: NetworkPlan = field(default_factory=NetworkPlan)
    threads: int = 2
    warm_start: str | None = None
    without: Part | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warm_start is not None and self.without is not None:
            raise ValueError("warm_start takes whole nets: it does not go with without")
        if self.without == "normalization" and self.network.standardize:
            raise ValueError("without normalization there is nothing to standardize")


def load_trained(artifact: Path, schema: Schema) -> Network:
    """The net of an artifact of this step; raises PlanError unless it was trained for this schema."""
    model = json.loads((artifact / "model.json").read_text())
    if model["schema_hash"] != schema.hash:
        raise PlanError("train: was done with other features or heads")
    features = parse_table(FeaturePlan, model["features"], "features")
    encoding = make_encoding(schema, features, load_discretizer(artifact))
    network = Network(parse_table(NetworkPlan, model["network"], "network"), encoding, len(schema.heads))
    with np.load(artifact / "network.npz") as arrays:
        network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    return network.eval()


def follow(plan: Plan) -> None:
    """What every process but the first does of a plan: its part of training, each time the first one gets there."""
    while True:
        called: tuple[Mapping[str, Path], Path] | None = peers().from_first(lambda: None)
        if called is None:
            return
        parameters = next(planned.parameters for planned in plan.steps if planned.name == "train")
        _trained(Context(plan, parameters, *called))


def release() -> None:
    """Lets those go who `follow`, once the plan is done."""
    peers().from_first(lambda: None)


def _run(context: Context) -> str:
    peers().from_first(lambda: (context.inputs, context.out))
    training, schema = _trained(context)
    network = training.network
    network.load_state_dict(training.best)
    network.first.normalize()
    save_discretizer(load_discretizer(context.inputs["discretize"]), context.out)
    model = {
        "schema_hash": schema.hash,
        "features": asdict(context.plan.features),
        "network": asdict(context.parameters.network),
    }
    (context.out / "model.json").write_text(json.dumps(model, indent=1))
    arrays: dict[str, Any] = {name: value.numpy() for name, value in network.state_dict().items()}
    np.savez(context.out / "network.npz", **arrays)
    (context.out / "history.json").write_text(json.dumps([asdict(epoch) for epoch in training.history], indent=1))
    (context.out / _CHECKPOINT).unlink()
    best = max(training.history, key=lambda epoch: epoch.score)
    return f"epoch {training.history.index(best) + 1} of {len(training.history)} is best: {_epoch_line(best, schema)}"


def _trained(context: Context) -> tuple[Training, Schema]:
    """The training, ended, and what the net reads and predicts."""
    parameters: Parameters = context.parameters
    torch.set_num_threads(parameters.threads)
    schema = open_records(context.plan, context.inputs["data"]).schema
    encoding = make_encoding(schema, context.plan.features, load_discretizer(context.inputs["discretize"]))
    sample = load_sample(context.inputs["sample"], encoding, schema.head_names)

    torch.manual_seed(parameters.seed)
    row_counts, raw_counts = np.array(sample.info.row_counts), np.array(sample.info.raw_counts)
    network = Network(parameters.network, encoding, len(schema.heads), row_counts, raw_counts, parameters.without)
    network.set_base_logits(_base_logits(sample))
    if parameters.network.standardize:
        network.first.standardize(*sample.train.raw_moments())
    if parameters.warm_start is not None:
        _start_from(network, _trained_by(parameters.warm_start), schema)
    try:
        training = Training(network, parameters, sample.train, peers())
    except ValueError as error:
        raise PlanError(f"train.{error}") from error
    _train(training, sample, schema, context.out / _CHECKPOINT)
    return training, schema


def _trained_by(run: str) -> Path:
    return FinishedRun.open(Path(run)).artifact("train")


def _files(parameters: Parameters) -> dict[str, Path]:
    """What `load_trained` reads of the net to start from."""
    if parameters.warm_start is None:
        return {}
    artifact = _trained_by(parameters.warm_start)
    return {name: artifact / name for name in ("model.json", "discretizer.json", "network.npz")}


def _start_from(network: Network, artifact: Path, schema: Schema) -> None:
    other = load_trained(artifact, schema)
    if replace(other.plan, dropout=network.plan.dropout) != network.plan:
        raise PlanError("train.warm_start: the nets have different shapes: [train.network] must be that run's")
    if other.encoding.hash != network.encoding.hash:
        raise PlanError("train.warm_start: the nets read different bins: take that run's with discretize.from")
    network.load_state_dict(other.state_dict())


def _base_logits(sample: Sample) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """What each head would answer without features in the sampled world; one class alone counts as one in a million."""
    positives = np.array(list(sample.info.positives.values()), np.float64)
    used = np.array(list(sample.info.used.values()), np.float64)
    share = np.clip(positives / np.maximum(used, 1), 1e-6, 1 - 1e-6)
    return np.log(share / (1 - share)).astype(np.float32)


def _train(training: Training, sample: Sample, schema: Schema, checkpoint: Path) -> None:
    rates = np.array([sample.info.rates[head] for head in schema.head_names])
    first = peers().first
    if checkpoint.exists():
        training.resume(checkpoint)
        _say(f"goes on after epoch {len(training.history)}")
    while not training.ended:
        number = len(training.history) + 1
        bar = tqdm(
            total=sample.info.examples, desc=f"train epoch {number}", unit="example", leave=False, disable=not first
        )
        with bar:
            epoch = training.epoch(lambda network: validation_rce(network, sample.validation, rates), bar.update)
        if first:
            training.checkpoint(checkpoint)
        _say(f"epoch {number}: {_epoch_line(epoch, schema)}")


def _say(line: str) -> None:
    if peers().first:
        tqdm.write(f"  train: {line}", file=sys.stderr)


def _epoch_line(epoch: Epoch, schema: Schema) -> str:
    heads = ", ".join(f"{head} {rce:.2f}" for head, rce in zip(schema.head_names, epoch.rce, strict=True))
    return f"validation RCE {heads}; mean {epoch.score:.3f}; {epoch.examples_per_s:,.0f} examples/s"


STEP = Step(
    version=1,
    parameters=Parameters,
    inputs=("data", "discretize", "sample"),
    parts=("features", "heads"),
    run=_run,
    resumable=True,
    files=_files,
)
