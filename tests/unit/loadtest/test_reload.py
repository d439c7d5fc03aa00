"""Latencies by the second around a reload: by hand, and on a real server."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from loadtest.open_loop import Outcome
from loadtest.reload import Reload, Run, Second, by_second, report
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb


def outcome(
    call: int,
    milliseconds: float,
    code: grpc.StatusCode = grpc.StatusCode.OK,
    degradation: pb.Degradation.ValueType = pb.DEGRADATION_NONE,
) -> Outcome:
    return Outcome(call, milliseconds / 1e3, code, degradation)


def test_calls_count_in_the_second_that_they_were_due_in() -> None:
    """However late they ended, in whatever order; refused and degraded ones are failures."""
    due_s = [0.0, 0.999, 1.0, 2.5, 2.6]
    outcomes = [
        outcome(4, 1, degradation=pb.DEGRADATION_PARTIAL),
        outcome(0, 5_000),
        outcome(2, 7),
        outcome(1, 10),
        outcome(3, 2, grpc.StatusCode.UNAVAILABLE, pb.DEGRADATION_UNSPECIFIED),
    ]
    *seconds, last = by_second(outcomes, due_s, 4)

    assert seconds == [Second(2, 0, 10, 5_000), Second(1, 0, 7, 7), Second(2, 2, 1, 2)]
    assert last[:2] == (0, 0)
    assert math.isnan(last.p50_ms)
    assert math.isnan(last.p99_ms)


def test_seconds_with_a_reload_are_told_apart() -> None:
    """From the second that it was promoted in to the one that it serves in; the others are summed up."""
    seconds = [Second(10, 0, 1.0, p99) for p99 in (3.0, 40.0, 50.0, 5.0, 4.0)]
    lines = report(Run(100.0, seconds, [Reload("2", 1.9, 2.1)])).splitlines()

    assert [line.split("  ")[-1].strip() for line in lines[2:4]] == ["version 2 promoted", "version 2 serves"]
    assert lines[-2:] == [
        "50 calls at 70% of 100 per second, 0 failed",
        "p99 of a second: median 4.0 ms, at most 5.0 ms without a reload; 40.0, 50.0 ms with one",
    ]


def test_a_version_that_serves_after_the_last_second_is_told_of() -> None:
    """A busy machine takes its time; the second that it was promoted in still counts as one with a reload."""
    lines = report(Run(100.0, [Second(10, 0, 1.0, 3.0), Second(10, 0, 1.0, 9.0)], [Reload("2", 1.5, 4.2)])).splitlines()

    assert lines[2].endswith("version 2 promoted")
    assert lines[3].split() == ["4", "version", "2", "serves"]
    assert lines[-1].endswith("without a reload; 9.0 ms with one")


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_versions_change_under_load(toy_bundle: Path, tmp_path: Path) -> None:
    """Both new versions serve in the end, no call failed, and there is a picture of it."""
    picture = tmp_path / "reload.png"
    command = [sys.executable, "-m", "loadtest.reload", "--bundle", str(toy_bundle), "--seconds", "6"]
    done = subprocess.run([*command, "--plot", str(picture)], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert [f"version {version} {event}" in done.stdout for version in (2, 3) for event in ("promoted", "serves")] == [
        True
    ] * 4
    assert ", 0 failed" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_too_short_a_run_is_refused() -> None:
    """There must be time for the promotions."""
    command = [sys.executable, "-m", "loadtest.reload", "--seconds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert "--seconds must be at least 3" in done.stderr
