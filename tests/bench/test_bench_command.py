from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the benchmark needs two cores")
def test_the_benchmark_writes_its_figures(toy_bundle: Path, tmp_path: Path) -> None:
    """A short run on the toy model: every id with value and spread, progress apart from results."""
    figures = tmp_path / "bench.json"
    command = [sys.executable, "-m", "loadtest.bench", "--json", str(figures), "--bundle", str(toy_bundle)]

    done = subprocess.run([*command, "--repetitions", "2"], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    assert "repetition 2 of 2" in done.stderr
    document = json.loads(figures.read_text())
    assert set(document) == {"machine", "commit", "measures"}
    parts = ("", "_us", "_server_us", "_session_us", "_echo_us")
    assert set(document["measures"]) == {f"{name}{part}" for name in ("P1", "P2") for part in parts}
    for name, measure in document["measures"].items():
        assert set(measure) == {"value", "min", "max", "unit"}
        assert 0 < measure["min"] <= measure["value"] <= measure["max"]
        assert f"\n{name} " in done.stdout


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_counts_that_are_none_are_refused(count: str, tmp_path: Path) -> None:
    """A usage error, named."""
    command = [sys.executable, "-m", "loadtest.bench", "--json", str(tmp_path / "b.json"), f"--repetitions={count}"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert f"argument --repetitions: '{count}' is not a positive whole number" in done.stderr
