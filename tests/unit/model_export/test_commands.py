"""The commands of the trainer, as they are called."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import model_export
from model_export.__main__ import COMMANDS, main
from service.bundle import read_bundle

TINY = Path(model_export.__file__).parent / "plans" / "tiny.toml"
FIGURES = {
    "rce",
    "reachable_rce",
    "share",
    "pr_auc",
    "reachable_pr_auc",
    "calibration_error",
    "positives",
    "evaluated_positives",
}


@pytest.mark.slow
def test_tiny_plan_runs_and_its_bundle_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line on stdout is the bundle; evaluate reads it and prints the contract's JSON and nothing else."""
    assert main(["run", str(TINY), "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    bundle = Path(captured.out.splitlines()[-1])
    assert [line.split(":")[0] for line in captured.err.splitlines() if " s: " in line] == [
        "data",
        "discretize",
        "sample",
        "train",
        "export",
        "calibrate",
        "test",
        "verify",
    ]

    assert main(["evaluate", str(bundle), "--world-seed", "77", "--impressions", "20000", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)["heads"]

    manifest = read_bundle(bundle).manifest
    assert list(evaluated) == [head["name"] for head in manifest["schema"]["heads"]]
    for head, figures in evaluated.items():
        assert set(figures) == FIGURES
        assert figures["positives"] == manifest["metrics"]["training"]["positives"][head]
        assert figures["share"] == pytest.approx(figures["rce"] / figures["reachable_rce"])
        assert figures["reachable_rce"] > figures["rce"]
        assert all(math.isfinite(value) for value in figures.values())

    # Another law's world is another task; a table is for people.
    assert main(["evaluate", str(bundle), "--world-seed", "77", "--impressions", "20000", "--world-law", "steps"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + len(evaluated)
    assert "share" in table[0]
    assert f"{evaluated['like']['rce']:.6g}" not in table[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no.toml", "--out", "runs"], "no.toml"),
        (["evaluate", "nothing", "--world-seed", "1"], "nothing is not a directory"),
    ],
)
def test_what_is_not_there_is_said(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit status 1, the reason on stderr, nothing on stdout."""
    monkeypatch.chdir(tmp_path)

    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--help names its arguments."""
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])

    assert stopped.value.code == 0
    assert f"timeline-trainer {command}" in capsys.readouterr().out


def test_without_a_command_usage_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, as argparse has it."""
    with pytest.raises(SystemExit) as stopped:
        main([])

    assert stopped.value.code == 2
    assert "COMMAND" in capsys.readouterr().err
