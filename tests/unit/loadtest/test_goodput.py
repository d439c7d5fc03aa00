"""What becomes of calls, counted by hand; and on a real server, with a picture of it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import grpc
import pytest

from loadtest.goodput import KINDS, LOADS, Point, Repetition, kind, measures, point, report
from loadtest.measures import Measure
from loadtest.open_loop import Offered, Outcome
from loadtest.overload import Saturation
from loadtest.picture import picture
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb

FULL, PARTIAL, NONE = pb.DEGRADATION_NONE, pb.DEGRADATION_PARTIAL, pb.DEGRADATION_UNSPECIFIED
OK, REFUSED, LATE = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("code", "degradation", "latency_s", "expected"),
    [
        (OK, FULL, 0.5, "full"),
        (OK, FULL, 0.51, "late"),
        (OK, PARTIAL, 0.5, "degraded"),
        (OK, pb.DEGRADATION_REVERSE_CHRONOLOGICAL, 0.1, "degraded"),
        (OK, PARTIAL, 0.51, "late"),
        (REFUSED, NONE, 0.6, "refused"),
        (LATE, NONE, 0.1, "late"),
        (grpc.StatusCode.UNAVAILABLE, NONE, 0.1, "failed"),
        (grpc.StatusCode.INTERNAL, NONE, 0.6, "failed"),
    ],
)
def test_what_became_of_a_call(
    code: grpc.StatusCode, degradation: pb.Degradation.ValueType, latency_s: float, expected: str
) -> None:
    """An answer that nobody waited for is none, however good; a refusal is one whenever it comes."""
    assert kind(Outcome(0, latency_s, code, degradation), deadline_s=0.5) == expected


def test_a_load_by_hand() -> None:
    """Ten calls in two seconds: four in full, one of them late, a degraded one, five refused."""
    outcomes = [Outcome(0, 0.1, OK, FULL)] * 3 + [Outcome(0, 0.9, OK, FULL), Outcome(0, 0.1, OK, PARTIAL)]
    found = point(Offered([*outcomes, *[Outcome(0, 0.1, REFUSED, NONE)] * 5], 2.0, 0.3), 0.5)

    assert found == Point(5.0, {"full": 0.3, "degraded": 0.1, "refused": 0.5, "late": 0.1, "failed": 0.0}, 0.3)
    assert found.goodput == pytest.approx(1.5)


def constant(saturating: float, full: float) -> Repetition:
    """Every load has the same share of calls in full, and all others are refused."""
    shares = dict.fromkeys(KINDS, 0.0) | {"full": full, "refused": 1 - full}
    return Repetition(Saturation(saturating, 0.02), [Point(times * saturating, shares, 0.25) for times in LOADS])


def test_goodput_is_a_share_of_that_at_saturation_in_the_same_repetition() -> None:
    """However fast the machine was in it: with as many in full at each load, goodput grows like load."""
    found = measures([constant(100, 0.5), constant(300, 0.75), constant(200, 0.1)])

    assert found["saturating"] == Measure(200, 100, 300, "calls/s")
    assert found["deadline"].value == pytest.approx(20)
    assert found["goodput_2x"] == Measure(100, 40, 450, "calls/s")
    assert found["goodput_share_2x"] == Measure(2, 2, 2, "ratio")
    full = found["full_0.5x"]
    assert full.value == pytest.approx(0.45)
    assert (full.min, full.max) == (0.1, 0.75)
    lines = report(found).splitlines()
    assert lines[3].split() == ["load", "goodput/s", "of", "saturation", *KINDS, "callers'", "core"]
    assert lines[-1].split() == ["3x", "150.0", "300%", "45.0%", "0.0%", "55.0%", "0.0%", "0.0%", "25%"]


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_server_under_more_and_more_calls(toy_bundle: Path, tmp_path: Path) -> None:
    """All calls are accounted for at each load, progress is apart from the table, and there is a picture."""
    figures, drawn = tmp_path / "goodput.json", tmp_path / "goodput.png"
    command = [sys.executable, "-m", "loadtest.goodput", "--bundle", str(toy_bundle), "--repetitions", "2"]
    more = ["--seconds", "0.2", "--json", str(figures), "--plot", str(drawn)]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "repetition 2 of 2, 3 x saturation" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[4:]] == [f"{times:g}x" for times in LOADS]
    found = json.loads(figures.read_text())["measures"]
    assert found["goodput_share_1x"]["value"] == 1
    for times in LOADS:
        assert found[f"failed_{times:g}x"]["max"] == 0
        assert 0 < found[f"full_{times:g}x"]["max"] <= 1
    assert drawn.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_no_time_is_refused(seconds: str) -> None:
    """A usage error."""
    command = [sys.executable, "-m", "loadtest.goodput", f"--seconds={seconds}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert "--seconds must be more than 0" in done.stderr


def test_where_a_picture_may_go(tmp_path: Path) -> None:
    """A PNG in a folder that is there; anything else is refused before there is something to draw."""
    assert picture(str(tmp_path / "p.png")) == tmp_path / "p.png"
    for text in (str(tmp_path / "p.doc"), str(tmp_path / "none" / "p.png"), str(tmp_path)):
        with pytest.raises(ArgumentTypeError, match=r"is not the path of a \.png in a folder that is there"):
            picture(text)


def test_a_picture_without_what_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ArgumentTypeError, match=r"matplotlib draws it, .*: pip install '.\[loadtest\]'"):
        picture(str(tmp_path / "p.png"))
