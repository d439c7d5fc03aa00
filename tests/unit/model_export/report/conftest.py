"""A finished run of the small plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model_export.finished_run import FinishedRun
from model_export.plan import Plan
from model_export.run import run_plan


@pytest.fixture
def finished(small_plan: Callable[..., Plan], tmp_path: Path) -> FinishedRun:
    run_plan(small_plan(), tmp_path / "run")
    return FinishedRun.open(tmp_path / "run")
