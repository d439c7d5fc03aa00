"""`timeline-trainer bench` on a small run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model_export.__main__ import main
from model_export.bench import speed, time_models
from model_export.plan import Plan
from model_export.run import run_plan


def test_a_run_gets_its_figures(
    small_plan: Callable[..., Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every id with value and spread, on stdout and as JSON; a graph in float32 is the net, to the last digits."""
    run_plan(small_plan(export="precision = 'float32'"), tmp_path / "run")
    capsys.readouterr()
    figures = tmp_path / "bench.json"
    command = ["bench", str(tmp_path / "run"), "--json", str(figures), "--repetitions", "2", "--baseline-rows", "2000"]

    assert main(command) == 0

    said = capsys.readouterr()
    assert "the run has no baselines: fitting trees and regression on" in said.err
    document = json.loads(figures.read_text())
    assert set(document) == {"machine", "commit", "measures"}
    found = document["measures"]
    times = {f"{name}_us" for name in ("graph", "plain", "trees", "logistic")}
    # Views of ten Tweets have no best ten to compare.
    assert set(found) == times | {
        "P3", "P4", "P4_logistic", "P4_train_rows", "Q4_difference", "Q4_rce_points_lost",
    }  # fmt: skip
    for name, measure in found.items():
        assert set(measure) == {"value", "min", "max", "unit"}
        assert f"\n{name} " in said.out
    for name in (*times, "P3", "P4", "P4_logistic"):
        assert 0 < found[name]["min"] <= found[name]["value"] <= found[name]["max"]
    assert 1_700 < found["P4_train_rows"]["value"] < 2_300
    assert 0 < found["Q4_difference"]["value"] < 0.01
    assert abs(found["Q4_rce_points_lost"]["value"]) < 0.001


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name."""
    assert main(["bench", str(tmp_path)]) == 1
    assert "holds no finished run" in capsys.readouterr().err


def test_a_model_is_timed_by_its_fastest_form() -> None:
    """Both forms run; the one with the lower median stands for the model."""
    runs: list[str] = []

    def call(name: str, work: int) -> Callable[[int], object]:
        def work_for(_: int) -> int:
            runs.append(name)
            return sum(range(work))

        return work_for

    timed = time_models({"trees": {"long": call("long", 200_000), "short": call("short", 10)}}, repetitions=3)

    form, us = timed["trees"]
    assert form == "short"
    assert us.shape == (3,)
    assert runs.count("long") == runs.count("short") > 3


def test_ratios_are_taken_within_each_repetition_and_say_how_much_faster_the_graph_is() -> None:
    """A slow repetition is slow on both sides: medians of the parts would give 9 / 2."""
    us = {
        "graph": np.array([1.0, 2.0, 3.0]),
        "plain": np.array([9.0, 8.0, 9.0]),
        "trees": np.array([10.0, 20.0, 30.0]),
        "logistic": np.array([0.5, 1.0, 1.5]),
    }

    found = speed(us)

    assert (found["P3"].value, found["P3"].min, found["P3"].max) == (4.0, 3.0, 9.0)
    assert found["P4"].value == 10.0
    assert found["P4_logistic"].value == 0.5
    assert found["graph_us"].value == 2.0
