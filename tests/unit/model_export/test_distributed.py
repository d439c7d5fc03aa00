"""Two processes that train together against one that takes the union of their batches."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_export import examples as examples_module
from model_export.datasets.records import Impressions
from model_export.distributed import Peers, peers
from model_export.encode import Encoding, make_encoding
from model_export.examples import Examples, ExampleSet, ExampleWriter, record_type
from model_export.network import Network, NetworkPlan
from model_export.plan import FeaturePlan
from model_export.steps.discretize import Parameters, fit
from model_export.train import Training, TrainingPlan, validation_rce
from service.schema import Schema

PLAN = TrainingPlan(epochs=3, patience=3, batch_rows=96, learning_rate=0.01)
HEADS = 2

# One of the processes: trains what it finds with the other one, whole and once more with an interruption.
PROCESS = """
import json, pickle, sys
from dataclasses import asdict
from pathlib import Path
import numpy as np
import torch
from model_export import examples
from model_export.distributed import process_group
from model_export.network import Network
from model_export.train import Training, validation_rce

torch.set_num_threads(1)
folder = Path(sys.argv[1])
shapes, encoding, example_set, plan, examples.ROW_GROUP_ROWS = pickle.loads((folder / "task.pickle").read_bytes())

def start(shape):
    torch.manual_seed(plan.seed)
    return Training(Network(shape, encoding, heads=2), plan, example_set, peers)

def train(training, epochs):
    for _ in range(epochs):
        training.epoch(lambda network: validation_rce(network, example_set, np.ones(2)), counted.append)

def said(training):
    return [{**asdict(epoch), "examples_per_s": None, "losses": None} for epoch in training.history]

results = []
with process_group() as peers:
    for number, shape in enumerate(shapes):
        counted = []
        whole, begun = start(shape), start(shape)
        train(whole, plan.epochs)
        count = sum(counted)
        train(begun, 1)
        checkpoint = folder / f"{number}-{peers.rank}.pt"
        begun.checkpoint(checkpoint)
        resumed = start(shape)
        resumed.resume(checkpoint)
        train(resumed, plan.epochs - 1)
        whole.checkpoint(checkpoint)
        results.append({"whole": said(whole), "resumed": said(resumed), "counted": count})
(folder / f"{peers.rank}.json").write_text(json.dumps(results))
"""


class Union(ExampleSet):
    """What one process takes for two: their batches, joined."""

    def shuffled(self, batch_rows: int, rng: np.random.Generator, rank: int = 0, ranks: int = 1) -> Iterator[Examples]:
        assert (rank, ranks) == (0, 1)
        state = rng.bit_generator.state
        parts = []
        for half in range(2):
            rng.bit_generator.state = state
            parts.append(list(super().shuffled(batch_rows // 2, rng, half, 2)))
        for halves in zip(*parts, strict=True):
            yield Examples(
                **{
                    name: np.concatenate([getattr(half, name) for half in halves])
                    for name in ("bins", "raw", "labels", "used")
                }
            )


@pytest.fixture
def encoding(small_schema: Schema, make_impressions: Callable[[int, int], Impressions]) -> Encoding:
    features = FeaturePlan(raw_log=("tweet.likes", "author.strength"))
    return make_encoding(small_schema, features, fit(small_schema, [make_impressions(2_000, 0)], Parameters(bins=8)))


@pytest.fixture
def examples(
    encoding: Encoding,
    make_impressions: Callable[[int, int], Impressions],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> ExampleSet:
    monkeypatch.setattr(examples_module, "ROW_GROUP_ROWS", 256)
    impressions = make_impressions(2_000, 0)
    bins, raw = encoding.encode(impressions.tables)
    record = record_type(bins.shape[1], raw.shape[1], HEADS)
    with ExampleWriter(tmp_path / "examples", record) as writer:
        writer.write(Examples(bins, raw, impressions.labels, np.ones_like(impressions.labels)))
    return ExampleSet(tmp_path / "examples", record)


def shape(trunk: Any) -> NetworkPlan:
    return NetworkPlan(trunk=trunk, units=16, hidden=(8,), tower_units=4, crosses=1, cross_rank=4)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def train_in_two(folder: Path, shapes: list[NetworkPlan], *task: Any) -> list[dict[str, Any]]:
    """What both processes say of each shape: the same."""
    (folder / "task.pickle").write_bytes(pickle.dumps((shapes, *task, 256)))
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    root = Path(__file__).parents[3]
    with ExitStack() as started:
        processes = [
            started.enter_context(
                subprocess.Popen(
                    [sys.executable, "-W", "error", "-c", PROCESS, str(folder)],
                    env=os.environ | group | {"RANK": str(rank), "PYTHONPATH": str(root)},
                    cwd=root,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for rank in range(2)
        ]
        for process in processes:
            started.callback(process.kill)
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    said: list[list[dict[str, Any]]] = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    assert said[0] == said[1]
    return said[0]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(encoding: Encoding, examples: ExampleSet, tmp_path: Path) -> None:
    """Batches, scaling and normalization are those of the union: each epoch's loss to 1e-6 of itself, RCE to 0.01."""
    shapes = [shape("dcn"), shape("linear")]

    said = train_in_two(tmp_path, shapes, encoding, examples, PLAN)

    for number, two in enumerate(said):
        torch.manual_seed(PLAN.seed)
        network = Network(shapes[number], encoding, heads=HEADS)
        one = Training(network, PLAN, Union(examples.folder, examples.record))
        counted: list[int] = []
        for _ in range(PLAN.epochs):
            one.epoch(lambda network: validation_rce(network, examples, np.ones(HEADS)), counted.append)
        assert two["counted"] == sum(counted) == 3 * 2_000
        assert one.history[2].loss < 0.95 * one.history[0].loss
        for two_epoch, epoch in zip(two["whole"], one.history, strict=True):
            assert two_epoch["loss"] == pytest.approx(epoch.loss, rel=1e-6)
        # While steps are large, the running mean lags behind the bias before it, which rounding alone moves.
        assert two["whole"][-1]["rce"] == pytest.approx(one.history[-1].rce, abs=0.01)
        state = torch.load(tmp_path / f"{number}-1.pt", weights_only=True)["network"]
        assert torch.equal(state["first.running_max"], network.first.running_max)
        if network.norm is not None:
            torch.testing.assert_close(state["norm.running_var"], network.norm.running_var, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_resume_where_they_were(encoding: Encoding, examples: ExampleSet, tmp_path: Path) -> None:
    """As one does: the same figures as without the interruption, dropout included."""
    (said,) = train_in_two(tmp_path, [replace(shape("mlp"), dropout=0.2)], encoding, examples, PLAN)

    assert len(said["whole"]) == 3
    assert said["resumed"] == said["whole"]


def test_a_batch_that_can_not_be_shared_evenly_is_refused(encoding: Encoding, examples: ExampleSet) -> None:
    """Before any process waits for another."""
    with pytest.raises(ValueError, match="batch_rows: 96 is no multiple of 5 processes"):
        Training(Network(shape("mlp"), encoding, heads=HEADS), PLAN, examples, Peers(1, 5))


def test_alone_there_is_nobody_to_ask() -> None:
    """Outside a group a process is the first of one."""
    assert peers() == Peers(0, 1)
    assert peers().first
    assert peers().mean(3.0) == 3.0
    assert peers().from_first(lambda: "made") == "made"
