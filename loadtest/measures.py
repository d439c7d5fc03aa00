"""Figures of a benchmark: what they were measured on, and the form that they are kept in.

{"machine": ..., "commit": ..., "measures": {id: {"value", "min", "max", "unit"}}}

JSON has no infinity: null stands for it, a latency that never ended.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnxruntime

from service.bundle import MANIFEST_FILE


@dataclass(frozen=True)
class Measure:
    """A figure with its spread over the repetitions; `value` is their median, but where the maker says otherwise."""

    value: float
    min: float
    max: float
    unit: str

    @staticmethod
    def of(values: Sequence[float], unit: str) -> Measure:
        """Summarises one value per repetition."""
        return Measure(statistics.median(values), min(values), max(values), unit)


def write(measures: Mapping[str, Measure], path: Path) -> None:
    """Writes the figures as JSON, with the machine and the commit."""
    found = {
        name: {key: None if value == math.inf else value for key, value in asdict(measure).items()}
        for name, measure in measures.items()
    }
    document = {"machine": machine(), "commit": commit(), "measures": found}
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def table(measures: Mapping[str, Measure]) -> str:
    """The same for people."""
    lines = [f"{machine()}, commit {commit()}", "", f"{'':18}{'median':>12}{'min':>12}{'max':>12}"]
    for name, measure in measures.items():
        lines.append(f"{name:18}{measure.value:12.3f}{measure.min:12.3f}{measure.max:12.3f}  {measure.unit}")
    return "\n".join(lines)


def machine() -> str:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}"
    )


def commit() -> str:
    """The commit that was measured, "-dirty" if files differ from it; "unknown" outside of a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)  # noqa: S603 - fixed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def bundle_directory(text: str) -> Path:
    """The directory of a bundle from the command line; whether it is a sound one is for the server to say."""
    path = Path(text)
    if not (path / MANIFEST_FILE).is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a bundle: it has no {MANIFEST_FILE}")
    return path


def positive(text: str) -> int:
    """A positive whole number from the command line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)
