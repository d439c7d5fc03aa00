"""The measurement of memory: its data, its plan, its figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.calibrate import IDENTITY
from model_export.datasets.records import Impressions
from model_export.encode import make_encoding
from model_export.graph import build
from model_export.memory import DAYS, STEPS, peak_mb, plan_text, table, write_impressions
from model_export.network import Network, NetworkPlan
from model_export.plan import FeaturePlan, load_plan
from model_export.run import run_plan
from model_export.steps.discretize import Parameters, fit, load_discretizer
from service.schema import Schema


def test_its_data_go_through_the_first_steps_of_its_plan(tmp_path: Path) -> None:
    """All rows, over all days, of which the plan's split makes use."""
    write_impressions(tmp_path / "impressions", 1_003)
    (tmp_path / "plan.toml").write_text(plan_text(tmp_path / "impressions", STEPS[:2]))

    artifacts = run_plan(load_plan(tmp_path / "plan.toml"), tmp_path / "out")

    assert list(artifacts) == ["data", "discretize"]
    assert len(list(artifacts["data"].glob("day=*.parquet"))) == DAYS
    features = load_discretizer(artifacts["discretize"]).features
    assert sum(features["tweet.n0"].histogram) == pytest.approx(0.7 * 702, rel=0.1)


def test_the_whole_plan_can_be_carried_out(tmp_path: Path) -> None:
    """Every step's table is one that its step takes."""
    (tmp_path / "plan.toml").write_text(plan_text(tmp_path, STEPS))

    assert [planned.name for planned in load_plan(tmp_path / "plan.toml").steps] == list(STEPS)


def test_what_a_process_holds_is_in_its_peak() -> None:
    """Two hundred million bytes more, even if they are let go again; not what this process holds."""
    small, large = (peak_mb(f"x = b'x' * {size}; del x") for size in (1, 200_000_000))

    assert small < 50
    assert large - small == pytest.approx(200, abs=20)


def test_a_step_that_fails_is_no_measurement() -> None:
    """What it said is in the error."""
    with pytest.raises(RuntimeError, match="no such luck"):
        peak_mb("raise SystemExit('no such luck')")


def test_table_has_a_row_per_step_and_a_column_per_size() -> None:
    """As Markdown, in whole MB."""
    lines = table({1_000: {"data": 1.6, "train": 30.0}, 4_000: {"data": 2.0, "train": 31.4}}).splitlines()

    assert lines == [
        "| peak MB | 1,000 impressions | 4,000 impressions |",
        "|---|---:|---:|",
        "| data | 2 | 2 |",
        "| train | 30 | 31 |",
    ]


# Scores argv[2] impressions of one viewer.
_SCORE = """
import sys
from pathlib import Path
import numpy as np
from model_export.datasets.records import Impressions
from model_export.score import open_graph, score
n = int(sys.argv[2])
with np.load(sys.argv[1] + "/rows.npz") as rows:
    tables = {group: np.repeat(rows[group], n, axis=0) for group in rows.files}
graph = open_graph(Path(sys.argv[1], "model.onnx").read_bytes())
score(graph, Impressions({}, tables, np.zeros((n, 2), np.uint8)))
"""


def test_a_graph_holds_no_more_for_more_impressions_of_a_viewer(
    small_schema: Schema, make_impressions: Callable[[int, int], Impressions], tmp_path: Path
) -> None:
    """A layer of 256 units of 50,000 rows at once were 51 MB; tables and answers of as many are a few."""
    impressions = make_impressions(300, 0)
    encoding = make_encoding(small_schema, FeaturePlan(), fit(small_schema, [impressions], Parameters(bins=8)))
    weights = Network(NetworkPlan(trunk="mlp", units=256, hidden=(8,), tower_units=4), encoding, heads=2).to_weights()
    (tmp_path / "model.onnx").write_bytes(build(small_schema, weights, [IDENTITY] * 2))
    rows: dict[str, Any] = {group: table[:1] for group, table in impressions.tables.items()}
    np.savez(tmp_path / "rows.npz", **rows)

    few, many = (peak_mb(_SCORE, str(tmp_path), str(rows)) for rows in (2_048, 50_000))

    assert many < few + 20
