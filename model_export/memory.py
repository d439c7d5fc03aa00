"""How much memory each step of a plan takes as data grows.

    python -m model_export.memory [--rows 200000] [--factors 1 4 16] [--folder DIR]

Impressions are drawn at random and written as anyone's Parquet, with as many days at every size and ever more rows a
day. Each step runs in a process of its own; the table gives the largest resident memory it had, in MB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

STEPS = ("data", "discretize", "sample", "train", "export", "calibrate", "test")
DAYS = 10
NUMBERS = 16
TOPICS = ("news", "music", "humor", "sports", "art")

_DAY_MS = 86_400_000
_PART_ROWS = 65_536
_VECTOR_WIDTH = 8

# What each step's bounds are reached with at the smallest size already, so that growth is not hidden behind them.
_TABLES = {
    "data.parquet": 'path = "{path}"\ntrain_days = 7',
    "data.parquet.ids": "\n".join(f'{name} = "{name}"' for name in ("viewer_id", "author_id", "tweet_id", "session"))
    + '\ntime_ms = "time_ms"',
    "data.parquet.labels": 'like = "like"\nreply = "reply"',
    "data.parquet.features": "\n".join(
        [f'"tweet.n{i}" = {{ kind = "continuous", column = "n{i}" }}' for i in range(NUMBERS)]
        + ['"tweet.topic" = { kind = "categorical", column = "topic" }']
        + [f'"tweet.text" = {{ kind = "vector", column = "text", width = {_VECTOR_WIDTH} }}']
    ),
    "discretize": "bins = 16\nsample_rows = 20_000",
    "sample": "negatives_per_positive = 1e6\nvalidation_rows = 10_000",
    "train": "epochs = 1\nthreads = 1",
    "train.network": 'trunk = "mlp"\nunits = 16\nhidden = [8]\ntower_units = 4',
}


def write_impressions(folder: Path, rows: int) -> None:
    """Writes `rows` impressions over DAYS days, a file a day, in parts of at most _PART_ROWS."""
    folder.mkdir()
    for day in range(DAYS):
        rows_of_day = rows * (day + 1) // DAYS - rows * day // DAYS
        parts = np.array_split(np.arange(rows_of_day), -(-rows_of_day // _PART_ROWS))
        writer: pq.ParquetWriter | None = None
        for number, part in enumerate(parts):
            table = pa.table(_columns(np.random.default_rng((day, number)), day * _DAY_MS + part))
            writer = writer or pq.ParquetWriter(folder / f"day-{day:02d}.parquet", table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _columns(rng: np.random.Generator, time_ms: NDArray[np.int64]) -> dict[str, Any]:
    n = len(time_ms)
    numbers = rng.lognormal(0, 2, (n, NUMBERS)).astype(np.float32)
    numbers[rng.random(numbers.shape) < 0.3] = np.nan
    logits = np.nan_to_num(np.log1p(numbers[:, :2])) - 3
    liked = rng.random((n, 2)) < 1 / (1 + np.exp(-logits))
    vectors = pa.array(rng.normal(size=n * _VECTOR_WIDTH).astype(np.float32))
    return {
        **{name: rng.integers(1, 2**40, n) for name in ("viewer_id", "author_id", "tweet_id", "session")},
        "time_ms": time_ms,
        **{f"n{i}": numbers[:, i] for i in range(NUMBERS)},
        "topic": np.array(TOPICS)[rng.integers(0, len(TOPICS), n)],
        "text": pa.FixedSizeListArray.from_arrays(vectors, _VECTOR_WIDTH),
        "like": liked[:, 0],
        "reply": liked[:, 1],
    }


def plan_text(data: Path, steps: Sequence[str]) -> str:
    """A plan over a folder that `write_impressions` filled, up to the last of these steps."""
    lines = [f"steps = {list(steps)}", "[split]\ntrain = 7\nvalidate = 1\ncalibrate = 1\ntest = 1", "[features]"]
    lines.append("raw_log = ['tweet.n*']")
    for name, table in _TABLES.items():
        if name.partition(".")[0] in steps:
            lines.append(f"[{name}]\n{table.replace('{path}', str(data))}")
    return "\n".join(lines)


# A child's own high-water mark: what wait4 reports begins at the parent's.
_REPORT_PEAK = """
import atexit, pathlib, re
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: print("\\n" + re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]))
"""


def peak_mb(code: str, *arguments: str) -> float:
    """Largest resident memory of a process that runs Python code, in MB; Linux only.

    Raises:
        RuntimeError: The process failed; with what it said.
    """
    command = [sys.executable, "-c", _REPORT_PEAK + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603  # our own interpreter and code
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return int(done.stdout.splitlines()[-1]) * 1024 / 1e6


def measure(folder: Path, rows: int) -> dict[str, float]:
    """Peak of each step on so many rows, in MB; `imports` is what a step starts from."""
    folder.mkdir(parents=True)
    write_impressions(folder / "impressions", rows)
    plan = folder / "plan.toml"
    run = "import sys; from model_export.__main__ import main; sys.exit(main(sys.argv[1:]))"
    peaks = {"imports": peak_mb("import model_export.run_command")}
    for last, step in enumerate(STEPS):
        plan.write_text(plan_text(folder / "impressions", STEPS[: last + 1]))
        peaks[step] = peak_mb(run, "run", str(plan), "--out", str(folder / "run"))
        print(f"{rows:,} rows: {step} {peaks[step]:.0f} MB", file=sys.stderr, flush=True)
    return peaks


def table(peaks: Mapping[int, Mapping[str, float]]) -> str:
    """Markdown: a row per step, a column per number of impressions."""

    def row(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [row(["peak MB", *(f"{rows:,} impressions" for rows in peaks)]), "|---|" + "---:|" * len(peaks)]
    steps = next(iter(peaks.values()))
    lines += [row([step, *(f"{of_step[step]:.0f}" for of_step in peaks.values())]) for step in steps]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m model_export.memory", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="impressions at factor 1")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--folder", type=Path, help="where data and runs go for the time being")
    arguments = parser.parse_args(argv)
    peaks = {}
    for factor in arguments.factors:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            rows = arguments.rows * factor
            peaks[rows] = measure(Path(folder) / "measured", rows)
    print(table(peaks))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
