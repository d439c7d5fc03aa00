"""How many examples a second of one core training takes: ours, a plain torch loop, LightGBM, on the same rows.

    python -m model_export.throughput RUN [--rows 100000] [--rounds 50] [--repetitions 5]

All read the first examples of a finished run's sample and have one thread; figures are by CPU time. The three take
turns, each repetition in another order: a machine that becomes slower tells against all of them. `torch` is the same
net with an embedding bag of free rows as its first layer, the way the layer is usually written. A pass of LightGBM is a
tree for each head; it needs as many passes as there are rounds, a net one per epoch.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lightgbm
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from model_export.baselines.trees import TreePlan, booster_parameters
from model_export.examples import Examples, ExampleSet, ExampleWriter
from model_export.finished_run import FinishedRun
from model_export.network import Network
from model_export.plan_table import PlanError
from model_export.steps.sample import load_sample, open_records
from model_export.steps.train import load_trained
from model_export.train import Training, TrainingPlan, loss_of


@dataclass(frozen=True)
class Speed:
    """Of one way to train.

    Attributes:
        name: Of the way.
        examples_per_s: Of CPU time, in each pass.
    """

    name: str
    examples_per_s: list[float]


class BagLayer(nn.Module):
    """The first layer by `nn.EmbeddingBag`: ((row numbers, where each example's start), raw [n, R]) -> [n, K]."""

    def __init__(self, network: Network, units: int):
        super().__init__()
        self.bag = nn.EmbeddingBag(network.encoding.rows, units, mode="sum")
        self.raw = nn.Linear(len(network.encoding.raw_names), units)

    def forward(self, bins: tuple[Tensor, Tensor], raw: Tensor) -> Tensor:
        """As the class says."""
        rows, starts = bins
        summed: Tensor = self.bag(rows, starts) + self.raw(raw.nan_to_num(nan=0.0))
        return summed


def bag_rows(bins: NDArray[np.uint16], offsets: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """What `nn.EmbeddingBag` takes of bins [n, S] that count from 1, 0 = absent."""
    present = bins > 0
    starts = np.concatenate([[0], np.cumsum(present.sum(axis=1))[:-1]]).astype(np.int64)
    return torch.from_numpy((bins + (offsets - 1))[present]), torch.from_numpy(starts)


def ours(network: Network, plan: TrainingPlan, examples: ExampleSet) -> float:
    """CPU seconds of an epoch of the step `train`."""
    training = Training(network, plan, examples)
    return _cpu_s(lambda: training.epoch(lambda _: [math.nan], lambda _: None))


def plain_torch(network: Network, plan: TrainingPlan, examples: ExampleSet) -> float:
    """CPU seconds of a loop as anyone writes it, on the same batches; the network's first layer is replaced."""
    encoding = network.encoding
    network.first = BagLayer(network, len(network.first.bias))  # type: ignore[assignment]  # takes other rows
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate)
    network.train()

    def epoch() -> None:
        for batch in examples.shuffled(plan.batch_rows, np.random.default_rng(plan.seed)):
            logits = network(bag_rows(batch.bins, encoding.offsets), torch.from_numpy(batch.raw))
            loss = loss_of(logits, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
            optimizer.step()

    return _cpu_s(epoch)


def trees(network: Network, examples: ExampleSet, rounds: int, plan: TreePlan) -> float:
    """CPU seconds of LightGBM on raw values and the categories that have none, each head on what it uses."""
    parts = list(examples.in_order())
    categorical = [i for i, slot in enumerate(network.encoding.slots) if slot.boundaries is None]
    categories = np.concatenate([part.bins[:, categorical] for part in parts]).astype(np.float32)
    categories[categories == 0] = np.nan
    x = np.concatenate([np.concatenate([part.raw for part in parts]), categories], axis=1)
    labels, used = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "used"))
    parameters = booster_parameters(plan, plan.leaves[-1])
    columns = list(range(x.shape[1] - len(categorical), x.shape[1]))

    def grow() -> None:
        for head in range(labels.shape[1]):
            rows = used[:, head] == 1
            data = lightgbm.Dataset(x[rows], labels[rows, head], categorical_feature=columns)
            lightgbm.train(parameters, data, rounds)

    return _cpu_s(grow)


def _cpu_s(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def first_examples(examples: ExampleSet, folder: Path, rows: int) -> ExampleSet:
    """The first `rows` of a set, as a set of its own."""
    left = rows
    with ExampleWriter(folder, examples.record) as writer:
        for part in examples.in_order():
            names = ("bins", "raw", "labels", "used")
            writer.write(Examples(**{name: getattr(part, name)[:left] for name in names}))
            left -= len(part)
            if left <= 0:
                break
    return ExampleSet(folder, examples.record)


def measure(run: FinishedRun, rows: int, rounds: int, repetitions: int, folder: Path) -> list[Speed]:
    """All three on the run's examples, in turn; `folder` is for files in the meantime.

    Raises:
        PlanError: The run lacks an artifact.
    """
    schema = open_records(run.context(None).plan, run.artifact("data")).schema
    trained = load_trained(run.artifact("train"), schema)
    sample = load_sample(run.artifact("sample"), trained.encoding, schema.head_names)
    examples = first_examples(sample.train, folder / "examples", rows)
    row_counts, raw_counts = np.array(sample.info.row_counts), np.array(sample.info.raw_counts)

    def network() -> Network:
        torch.manual_seed(0)
        return Network(trained.plan, trained.encoding, len(schema.heads), row_counts, raw_counts)

    plan, tree_plan = replace(TrainingPlan(), batch_rows=run.plan["train"]["batch_rows"]), TreePlan()
    ways: list[tuple[str, int, Callable[[], float]]] = [
        ("ours", 1, lambda: ours(network(), plan, examples)),
        ("torch", 1, lambda: plain_torch(network(), plan, examples)),
        (f"LightGBM, {tree_plan.leaves[-1]} leaves", rounds, lambda: trees(trained, examples, rounds, tree_plan)),
    ]
    speeds = [Speed(name, []) for name, _, _ in ways]
    for repetition in tqdm(range(repetitions), desc="repetitions", leave=False):
        for turn in range(len(ways)):
            way = (turn + repetition) % len(ways)
            _, passes, cpu_s = ways[way]
            speeds[way].examples_per_s.append(examples.rows * passes / cpu_s())
    return speeds


def main(argv: Sequence[str]) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m model_export.throughput", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--rows", type=int, default=100_000, help="examples of a pass")
    parser.add_argument("--rounds", type=int, default=50, help="trees of a head")
    parser.add_argument("--repetitions", type=int, default=5, help="passes of each")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            speeds = measure(
                FinishedRun.open(arguments.run), arguments.rows, arguments.rounds, arguments.repetitions, Path(folder)
            )
    except PlanError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"| {arguments.rows:,} examples, one core of {os.cpu_count()} | examples/s, a pass | least to most |")
    print("|---|---:|---:|")
    for speed in speeds:
        taken = speed.examples_per_s
        print(f"| {speed.name} | {statistics.median(taken):,.0f} | {min(taken):,.0f} to {max(taken):,.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
