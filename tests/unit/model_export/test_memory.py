"""The measurement of memory: its data, its plan, its figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_export.memory import DAYS, STEPS, peak_mb, plan_text, table, write_impressions
from model_export.plan import load_plan
from model_export.run import run_plan
from model_export.steps.discretize import load_discretizer


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
