from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the benchmark needs two cores")
def test_the_benchmark_writes_its_figures(toy_bundle: Path, tmp_path: Path) -> None:
    """A short run on the toy model: every id with value and spread, progress apart from results."""
    figures = tmp_path / "bench.json"
    command = [sys.executable, "-m", "loadtest.bench", "--json", str(figures), "--bundle", str(toy_bundle)]

    done = subprocess.run([*command, "--repetitions", "2"], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    assert "P1, P2: repetition 2 of 2" in done.stderr
    assert "P5, P6: repetition 1 of 1" in done.stderr
    document = json.loads(figures.read_text())
    assert set(document) == {"machine", "commit", "measures"}
    parts = ("", "_us", "_server_us", "_session_us", "_echo_us")
    costs = {f"{name}{part}" for name in ("P1", "P2") for part in parts}
    overload = {"P5", "P5_refusal_cost", "P5_saturating", "P5_goodput", "P5_goodput_2x", "P5_generator"}
    tail = {"P6", "P6_median", "P6_saturating", "P6_generator"}
    assert set(document["measures"]) == costs | overload | tail
    for name, measure in document["measures"].items():
        assert set(measure) == {"value", "min", "max", "unit"}
        least, value, most = (math.inf if measure[key] is None else measure[key] for key in ("min", "value", "max"))
        assert 0 < least <= value <= most
        assert most < math.inf or name == "P6"  # of calls that a busy machine turned away, see loadtest/tail.py
        assert f"\n{name} " in done.stdout


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_counts_that_are_none_are_refused(count: str, tmp_path: Path) -> None:
    """A usage error, named."""
    command = [sys.executable, "-m", "loadtest.bench", "--json", str(tmp_path / "b.json"), f"--repetitions={count}"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert f"argument --repetitions: '{count}' is not a positive whole number" in done.stderr
