"""A finished run of the small plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model_export.datasets.records import RecordSet
from model_export.finished_run import FinishedRun
from model_export.plan import Plan
from model_export.run import run_plan
from model_export.steps.verify import BUNDLE
from service.bundle import Bundle, read_bundle


@pytest.fixture
def finished(small_plan: Callable[..., Plan], tmp_path: Path) -> FinishedRun:
    run_plan(small_plan(), tmp_path / "run")
    return FinishedRun.open(tmp_path / "run")


@pytest.fixture
def bundle(finished: FinishedRun) -> Bundle:
    """The run's."""
    return read_bundle(finished.artifact("verify") / BUNDLE)


@pytest.fixture
def records(finished: FinishedRun, bundle: Bundle) -> RecordSet:
    """The run's data, with the features that its bundle takes."""
    return replace(RecordSet.open(finished.artifact("data")), schema=bundle.schema)
