"""A plan with one part taken away at a time, and the command that shows what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

import model_export
from model_export.__main__ import main
from model_export.ablations import OTHER_SEED, WHOLE, ablations
from model_export.ablations_command import PLOT, REPORT
from model_export.datasets.world_schema import SCHEMA
from model_export.encode import select_features
from model_export.plan import Plan, load_plan
from model_export.plan_table import PlanError

PLANS = Path(model_export.__file__).with_name("plans")


def _differences(plan: Plan, other: Plan) -> dict[str, Any]:
    """What the other plan says differently, by table and key."""
    tables, others = plan.to_json(), other.to_json()
    return {
        f"{table}.{key}": others[table].get(key)
        for table, values in tables.items()
        if isinstance(values, dict)
        for key in {**values, **others[table]}
        if values.get(key) != others[table].get(key)
    }


def test_each_plan_goes_without_one_thing(small_plan: Callable[..., Plan]) -> None:
    """Only what is named differs; all of them end with the test."""
    plans = ablations(small_plan())
    whole = plans[WHOLE]
    assert [planned.name for planned in whole.steps][-1] == "test"
    many = 10**9
    assert {name: _differences(whole, plan) for name, plan in plans.items()} == {
        WHOLE: {},
        OTHER_SEED: {"train.seed": 1},
        "without discretizer": {"features.binned": (), "features.raw_log": (*whole.features.raw_log, "*")},
        "without raw values": {"features.raw_log": ()},
        "without inner products": {"features.dots": ()},
        "without normalization": {"train.without": "normalization"},
        "without feature bias": {"train.without": "feature_bias"},
        "without sampling": {"sample.negatives_per_positive": many},
        "without isotonic regression": {"calibrate.positives_min": many},
        "without any calibration": {"test.without": "calibration"},
    }


def test_a_plan_without_products_has_none_to_go_without(small_plan: Callable[..., Plan]) -> None:
    """The line is left out."""
    assert "without inner products" not in ablations(small_plan(features="raw_log = ['*']"))


def test_a_plan_of_bins_alone_has_values_in_their_place(small_plan: Callable[..., Plan]) -> None:
    """Without a line for values, which it goes without anyway."""
    plans = ablations(small_plan(features=""))

    assert "without raw values" not in plans
    assert _differences(plans[WHOLE], plans["without discretizer"]) == {
        "features.binned": (),
        "features.raw_log": ("*",),
    }


@pytest.mark.parametrize("plan", ["default", "smooth", "steps", "tiny"])
def test_the_plans_that_ship_can_do_without_each_part(plan: str) -> None:
    """Every feature that the plan uses still enters in some form."""
    plans = ablations(load_plan(PLANS / f"{plan}.toml"))
    used = {name: select_features(SCHEMA, changed.features).features for name, changed in plans.items()}
    # All of the world's, but that the law `steps` has its own.
    assert len(used[WHOLE]) == (26 if plan == "steps" else len(SCHEMA.features))
    assert all(features == used[WHOLE] for features in used.values())


def test_what_has_to_change_can_not_come_from_another_run(small_plan: Callable[..., Plan]) -> None:
    """Nor is there anything to see without a test."""
    with pytest.raises(PlanError, match="train has to change, but is taken from runs/a"):
        ablations(small_plan(train='from = "runs/a"'))
    plan = small_plan()
    with pytest.raises(PlanError, match="ablations need test"):
        ablations(Plan(plan.split, plan.features, plan.heads, plan.steps[:-2]))


@pytest.mark.slow
def test_the_command_prints_every_figure_of_every_plan(
    small_plan: Callable[..., Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four blocks; calibration alone costs no training; bars are drawn; the whole plan stays in the directory."""
    plan = small_plan(features="raw_log = ['tweet.likes', 'author.*', 'viewer.hours_away', 'tweet.has_image']")
    out = tmp_path / "out"
    assert main(["ablations", str(tmp_path / "plan.toml"), "--out", str(out)]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    plans = ablations(plan)
    names = list(plans)
    assert [block.split()[0] for block in blocks] == ["share", "rce", "pr_auc", "calibration_error"]
    for block in blocks:
        assert [line[: len(name)] for name, line in zip(names, block.splitlines()[1:], strict=True)] == names

    figures = json.loads((out / REPORT).read_text())
    assert list(figures) == names
    assert blocks[1].splitlines()[1].split()[-2:] == [
        f"{figures[WHOLE][head]['rce']:.2f}" for head in ("like", "reply")
    ]
    # All heads train on a tenth of the negatives: taken at its word, the net promises far too much.
    assert figures["without any calibration"]["like"]["calibration_error"] > 0.3
    assert figures["without any calibration"]["like"]["rce"] < figures[WHOLE]["like"]["rce"] - 5
    assert figures["without discretizer"]["like"] != figures[WHOLE]["like"]
    assert len(list(out.glob("train-*"))) == 7
    assert json.loads((out / "run.json").read_text())["plan"] == json.loads(json.dumps(plans[WHOLE].to_json()))
    assert matplotlib.image.imread(out / PLOT).std() > 0.05

    assert main(["ablations", str(tmp_path / "nowhere.toml"), "--out", str(out)]) == 1
    assert "nowhere.toml" in capsys.readouterr().err
