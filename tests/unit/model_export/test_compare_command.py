"""`timeline-trainer compare` on small runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_export.__main__ import main
from model_export.plan import Plan
from model_export.run import RUN_FILE, run_plan


def test_two_runs_stand_side_by_side(
    small_plan: Callable[..., Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what differs of the plans, also behind a step taken from elsewhere; every figure with its difference."""
    first, second = tmp_path / "first", tmp_path / "second"
    discretizer = run_plan(small_plan(discretize="bins = 4"), tmp_path / "elsewhere")["discretize"]
    tested = [
        json.loads((run_plan(plan, run)["test"] / "metrics.json").read_text())
        for plan, run in (
            (small_plan(), first),
            (small_plan(discretize=f"from = {str(tmp_path / 'elsewhere')!r}", calibrate="positives_min = 40"), second),
        )
    ]
    assert (second / discretizer.name).is_dir()
    capsys.readouterr()

    assert main(["compare", str(first), str(second), "--json"]) == 0
    captured = capsys.readouterr()
    compared = json.loads(captured.out)
    assert captured.err == ""
    assert compared["runs"] == [str(first), str(second)]
    assert compared["same_test"]
    assert compared["plan"] == {
        "discretize.bins": [8, 4],
        "calibrate.positives_min": [30, 40],
        "calibrate.block_events_min": [5, 20],
    }
    assert list(compared["heads"]) == ["like", "reply"]
    for head, figures in compared["heads"].items():
        assert set(figures) == set(tested[0][head])
        for name, values in figures.items():
            one, other = (figures_of_run[head][name] for figures_of_run in tested)
            assert values == {"first": one, "second": other, "difference": pytest.approx(other - one)}
    assert compared["heads"]["like"]["rce"]["difference"] != 0

    assert main(["compare", str(first), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rce = compared["heads"]["like"]["rce"]
    assert ["discretize.bins", "8", "4"] in [line.split() for line in lines]
    expected = ["like", "rce", f"{rce['first']:.4f}", f"{rce['second']:.4f}", f"{rce['difference']:+.4f}"]
    assert expected in [line.split() for line in lines]

    assert main(["compare", str(first), str(first)]) == 0
    assert "(no difference)" in capsys.readouterr().out


def _put_run(run: Path, data: str, metrics: dict[str, Any]) -> None:
    (run / "test-1").mkdir(parents=True)
    document = {"parameters": {}, "inputs": {"data": data}, "parts": {"split": {"test": 1}}}
    (run / "test-1" / "artifact.json").write_text(json.dumps(document))
    (run / "test-1" / "metrics.json").write_text(json.dumps(metrics))
    (run / RUN_FILE).write_text(json.dumps({"plan": {"steps": ["test"]}, "artifacts": {"test": "test-1"}}))


def test_what_one_run_lacks_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So are figures that could not be measured; other data is said on stderr."""
    _put_run(tmp_path / "a", "data-1", {"like": {"rce": 20.0, "pr_auc": float("nan")}})
    _put_run(tmp_path / "b", "data-2", {"like": {"rce": 21.5, "pr_auc": 0.5}, "reply": {"rce": 3.0}})

    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    captured = capsys.readouterr()
    compared = json.loads(captured.out)
    assert "different data" in captured.err
    assert not compared["same_test"]
    assert compared["heads"] == {
        "like": {
            "rce": {"first": 20.0, "second": 21.5, "difference": 1.5},
            "pr_auc": {"first": None, "second": 0.5, "difference": None},
        },
        "reply": {"rce": {"first": None, "second": 3.0, "difference": None}},
    }

    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert ["reply", "rce", "-", "3.0000", "-"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_a_directory_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1, the reason on stderr."""
    _put_run(tmp_path / "a", "data-1", {})

    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "nothing")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nothing holds no finished run" in captured.err
