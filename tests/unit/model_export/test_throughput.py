"""The measurement of training speed: that all ways train on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.examples import ExampleSet
from model_export.finished_run import FinishedRun
from model_export.plan import Plan
from model_export.run import run_plan
from model_export.sparse import sparse_rows, sum_rows
from model_export.steps.sample import load_sample, open_records
from model_export.steps.train import load_trained
from model_export.throughput import bag_rows, first_examples, measure


@pytest.fixture
def run(small_plan: Callable[..., Plan], tmp_path: Path) -> FinishedRun:
    run_plan(small_plan(), tmp_path / "out")
    return FinishedRun.open(tmp_path / "out")


def test_every_way_trains(run: FinishedRun, tmp_path: Path) -> None:
    """The three of the table, at some speed, as often as asked for."""
    speeds = measure(run, rows=1_000, rounds=2, repetitions=3, folder=tmp_path)

    assert [speed.name for speed in speeds] == ["ours", "torch", "LightGBM, 63 leaves"]
    assert [len(speed.examples_per_s) for speed in speeds] == [3, 3, 3]
    assert all(0 < examples_per_s < 1e9 for speed in speeds for examples_per_s in speed.examples_per_s)


def test_an_embedding_bag_sums_what_the_sparse_layer_sums() -> None:
    """Absent features, and examples without any."""
    bins = np.array([[1, 0, 3], [0, 0, 0], [2, 1, 0], [0, 0, 0]], np.uint16)
    offsets = np.array([0, 2, 3])
    bag = torch.nn.EmbeddingBag(6, 4, mode="sum")

    expected = sum_rows(sparse_rows(bins, offsets, 6), bag.weight.detach())

    torch.testing.assert_close(bag(*bag_rows(bins, offsets)).detach(), expected)


@pytest.mark.parametrize("rows", [1, 700, 10**9])
def test_first_examples_are_a_set_of_their_own(run: FinishedRun, tmp_path: Path, rows: int) -> None:
    """As many as asked for or as there are, in order."""
    schema = open_records(run.context(None).plan, run.artifact("data")).schema
    encoding = load_trained(run.artifact("train"), schema).encoding
    whole = load_sample(run.artifact("sample"), encoding, schema.head_names).train

    first: ExampleSet = first_examples(whole, tmp_path / "first", rows)

    expected = np.concatenate([part.bins for part in whole.in_order()])[:rows]
    assert (np.concatenate([part.bins for part in first.in_order()]) == expected).all()
