"""`torchrun -m model_export run PLAN --out DIR` against the same plan in one process, on a folder of Parquet files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.model import load_model

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
DAY_MS = 86_400_000
PLAN = """
steps = ["data", "discretize", "sample", "train", "export", "calibrate", "test", "verify"]
[split]
train = 5
validate = 1
calibrate = 1
test = 1
[features]
raw_log = ["*"]
[data.parquet]
path = "{data}"
train_days = 5
[data.parquet.ids]
viewer_id = "viewer"
author_id = "author"
tweet_id = "tweet"
session = "view"
time_ms = "at"
[data.parquet.labels]
like = "liked"
reply = "replied"
[data.parquet.features]
"tweet.likes" = {{ kind = "continuous", column = "likes" }}
"tweet.topic" = {{ kind = "categorical", column = "topic" }}
"author.strength" = {{ kind = "continuous", column = "strength" }}
"viewer.visits" = {{ kind = "continuous", column = "visits" }}
[train]
epochs = 3
batch_rows = {batch_rows}
threads = 1
learning_rate = 0.005
[train.network]
trunk = "mlp"
units = 16
hidden = [8]
tower_units = 4
"""


def write_impressions(folder: Path, days: int = 8, rows: int = 3_600) -> None:
    """Two files a day, in order of time."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part in range(2 * days):
        n = rows // 2
        likes, strength, visits = (np.floor(rng.lognormal(1, 2, n)) for _ in range(3))
        topic = rng.integers(0, 5, n)
        logit = 0.4 * np.log1p(strength) + 0.5 * (topic == 2) * np.log1p(likes) - 2
        columns: dict[str, Any] = {
            **{name: rng.integers(1, 2**40, n) for name in ("viewer", "author", "tweet", "view")},
            "at": np.sort(rng.integers(0, DAY_MS // 2, n)) + part * DAY_MS // 2,
            "likes": np.where(rng.random(n) < 0.2, np.nan, likes),
            "strength": strength,
            "visits": visits,
            "topic": np.array(["news", "music", "humor", "sports", "art"])[topic],
            "liked": rng.random(n) < 1 / (1 + np.exp(-logit)),
            "replied": rng.random(n) < 1 / (1 + np.exp(2 - logit)),
        }
        pq.write_table(pa.table(columns), folder / f"impressions-{part:03d}.parquet", row_group_size=1_000)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    write_impressions(tmp_path / "impressions")
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(data=tmp_path / "impressions", batch_rows=256))
    return path


def run(plan: Path, out: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, "-m", "model_export", "run", str(plan), "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def artifact(out: Path, step: str) -> Path:
    return out / str(json.loads((out / "run.json").read_text())["artifacts"][step])


@pytest.mark.slow
def test_two_processes_carry_out_a_plan_as_one_does(plan: Path, tmp_path: Path) -> None:
    """Each step once; the same bins and examples; loss within 1 %, RCE within a point; a bundle that serves."""
    alone = run(plan, tmp_path / "alone")
    together = run(plan, tmp_path / "together", *TORCHRUN)

    assert alone.returncode == together.returncode == 0, together.stderr
    bundle = Path(together.stdout.splitlines()[-1])
    load_model(bundle, threads=1)
    assert together.stdout.count("\n") == 1
    for step in ("data", "discretize", "sample", "train", "verify"):
        assert len(re.findall(rf"^{step}: [0-9.]+ s: ", together.stderr, re.MULTILINE)) == 1
    for step, file in (("discretize", "discretizer.json"), ("sample", "sample.json")):
        one, two = (artifact(tmp_path / out, step) / file for out in ("alone", "together"))
        assert one.read_bytes() == two.read_bytes()
    one_history, two_history = (
        json.loads((artifact(tmp_path / out, "train") / "history.json").read_text()) for out in ("alone", "together")
    )
    assert len(one_history) == len(two_history) == 3
    assert two_history[-1]["loss"] == pytest.approx(one_history[-1]["loss"], rel=0.01)
    assert two_history[-1]["rce"] == pytest.approx(one_history[-1]["rce"], abs=1.0)
    assert min(two_history[-1]["rce"]) > 3


@pytest.mark.slow
def test_a_plan_that_two_processes_can_not_share_is_refused(plan: Path, tmp_path: Path) -> None:
    """With the reason, and everybody ends."""
    plan.write_text(plan.read_text().replace("batch_rows = 256", "batch_rows = 255"))

    refused = run(plan, tmp_path / "out", *TORCHRUN)

    assert refused.returncode != 0
    assert "train.batch_rows: 255 is no multiple of 2 processes" in refused.stderr
