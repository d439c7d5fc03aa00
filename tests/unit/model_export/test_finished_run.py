"""Where a finished run's artifacts are found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from model_export.artifact import ARTIFACT_FILE
from model_export.finished_run import FinishedRun


def artifact(directory: Path, inputs: Mapping[str, str]) -> Path:
    directory.mkdir()
    (directory / ARTIFACT_FILE).write_text(json.dumps({"inputs": inputs}))
    return directory


def test_a_step_of_the_run_is_its_own(tmp_path: Path) -> None:
    """Taken from another run it was made from other artifacts, and is what the plan asks for all the same."""
    sample = artifact(tmp_path / "sample-1", {})
    fitted = artifact(tmp_path / "fit-1", {"sample": "sample-of-another-run"})
    run = FinishedRun(tmp_path, {}, {"sample": sample, "fit": fitted})

    assert run.artifact_beside("fit") == fitted


def test_a_step_that_the_run_does_not_have(tmp_path: Path) -> None:
    """What another plan made in the directory from this run's artifacts; not from others, not half made."""
    sample = artifact(tmp_path / "sample-1", {})
    fitted = artifact(tmp_path / "fit-1", {"sample": "sample-1"})
    artifact(tmp_path / "fit-2", {"sample": "sample-2"})
    (tmp_path / "fit-3").mkdir()
    run = FinishedRun(tmp_path, {}, {"sample": sample})

    assert run.artifact_beside("fit") == fitted
    assert run.artifact_beside("other") is None
