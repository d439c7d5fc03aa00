"""The step and the command `baselines`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import model_export
from model_export.__main__ import main
from model_export.baselines.logistic import LogisticPlan
from model_export.baselines.trees import TreePlan
from model_export.baselines_command import with_baselines
from model_export.plan import Plan, PlannedStep
from model_export.plan_table import PlanError
from model_export.run import run_plan
from model_export.steps import baselines, fit_baselines
from model_export.steps.baselines import PLOT, REPORT
from model_export.steps.sample import load_info

PLANS = Path(model_export.__file__).parent / "plans"
SMALL = fit_baselines.Parameters(
    rows_max=3_000,
    validation_rows=1_000,
    logistic=LogisticPlan(inverse_penalties=(0.1,), crossed_features=3, rows_max=2_900),
    trees=TreePlan(leaves=(4,), leaf_rows_min=20, rounds_max=20),
)
FEW = baselines.Parameters(draws=20, rounds=2)
MODELS = ["net", "net, plain export", "logistic", "logistic with crosses", "trees (LightGBM)"]


def test_baselines_stand_beside_the_net(small_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """All models with all heads; the net's figures are those of the step `test`; a second run does nothing."""
    plan = small_plan()
    fit = PlannedStep("fit_baselines", fit_baselines.STEP, SMALL, None)
    judge = PlannedStep("baselines", baselines.STEP, FEW, None)
    plan = replace(plan, steps=(*plan.steps, fit, judge))
    artifacts = run_plan(plan, tmp_path / "out")
    document = json.loads((artifacts["baselines"] / REPORT).read_text())

    assert list(document["models"]) == MODELS
    figures = {name: model["heads"] for name, model in document["models"].items() if model["heads"]}
    tested = json.loads((artifacts["test"] / "metrics.json").read_text())
    for head in ("like", "reply"):
        for figure in ("rce", "pr_auc", "calibration_error", "reachable_rce", "evaluated_positives"):
            assert figures["net"][head][figure] == pytest.approx(tested[head][figure])
        assert figures["trees (LightGBM)"][head]["rce"] > 0.3 * figures["net"][head]["reachable_rce"]
        assert figures["logistic"][head]["rce"] > 0.3 * figures["net"][head]["reachable_rce"]
    assert document["simulated"]
    assert document["products"] == ["tweet.text x viewer.tastes"]
    rows = document["train_rows"]
    assert rows["net"] == load_info(artifacts["sample"]).examples > 4_000
    assert 2_500 < rows["trees"] < 3_500
    assert rows["logistic"] == 2_900
    assert document["test_rows"] == 3_000
    for model in document["models"].values():
        assert model["ms_per_500"] == min(model["ms_per_500_by_form"].values()) > 0
        assert model["size_bytes"] > 1_000
    assert set(document["models"]["trees (LightGBM)"]["ms_per_500_by_form"]) == {"ONNX TreeEnsemble", "LightGBM"}
    assert (artifacts["baselines"] / PLOT).stat().st_size > 10_000

    before = (artifacts["baselines"] / REPORT).stat().st_mtime_ns
    assert (run_plan(plan, tmp_path / "out")["baselines"] / REPORT).stat().st_mtime_ns == before


def test_a_plan_without_calibration_has_no_baselines(small_plan: Callable[..., Plan]) -> None:
    """The error names the step that is missing."""
    plan = small_plan()
    with pytest.raises(PlanError, match="baselines needs calibrate"):
        with_baselines(replace(plan, steps=tuple(step for step in plan.steps if step.name != "calibrate")))


def test_numbers_that_make_no_sense_are_refused() -> None:
    """Nothing to learn from, no draw."""
    with pytest.raises(ValueError, match="at least 1"):
        fit_baselines.Parameters(rows_max=0)
    with pytest.raises(ValueError, match="at least 1"):
        baselines.Parameters(draws=0)


@pytest.mark.slow
def test_the_command_prints_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the plan's own [baselines]; the files are named on stderr."""
    steps = '["data", "discretize", "sample", "train", "export", "calibrate", "fit_baselines", "baselines"]'
    (tmp_path / "plan.toml").write_text(
        f'extends = "{PLANS / "tiny.toml"}"\nsteps = {steps}\n[data.world]\nimpressions = 15_000\n'
        "[baselines]\ndraws = 20\nrounds = 2\n[fit_baselines]\nvalidation_rows = 500\n"
        "trees = {leaves = [4], rounds_max = 10}\nlogistic = {inverse_penalties = [0.1], crossed_features = 3}\n"
    )
    assert main(["baselines", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split()[:3] == ["model", "head", "RCE"]
    assert len(lines) == 1 + 4 * 6 + 1 + 1
    report, plot = captured.err.splitlines()[-2:]
    assert list(json.loads(Path(report).read_text())["models"]) == MODELS
    assert Path(plot).exists()

    assert main(["baselines", str(tmp_path / "nowhere.toml"), "--out", str(tmp_path / "out")]) == 1
    assert "nowhere.toml" in capsys.readouterr().err
