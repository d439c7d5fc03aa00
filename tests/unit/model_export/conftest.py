"""Random impressions in the record form: small, with every kind of feature and a signal to learn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_export.datasets.records import Impressions, RecordSet, create, write_day
from model_export.plan import Plan, load_plan
from service.schema import GROUPS, Feature, Head, Schema

SMALL_SCHEMA = Schema(
    features=(
        Feature("likes", "tweet", "continuous", "count"),
        Feature("has_image", "tweet", "binary"),
        Feature("topic", "tweet", "categorical", vocabulary=("news", "music", "humor")),
        Feature("text", "tweet", "vector", width=4),
        Feature("strength", "author", "continuous"),
        Feature("never", "author", "continuous"),
        Feature("style", "author", "vector", width=4),
        Feature("hours_away", "viewer", "continuous", "hours"),
        Feature("device", "viewer", "categorical", vocabulary=("ios", "android")),
        Feature("tastes", "viewer", "vector", width=4),
    ),
    heads=(Head("like", 1.0, 1), Head("reply", 2.0, 1)),
)


def _draw(feature: Feature, rows: int, rng: np.random.Generator) -> NDArray[np.float64]:
    match feature.kind:
        case "continuous":
            return np.floor(rng.lognormal(1, 2, (rows, 1)))
        case "vector":
            return rng.normal(0, 1, (rows, feature.width))
        case _:
            return rng.integers(0, len(feature.vocabulary) or 2, (rows, 1)).astype(np.float64)


def _impressions(rows: int, seed: int) -> Impressions:
    rng = np.random.default_rng(seed)
    other_vectors = np.random.default_rng((seed, 1))
    tables = {
        group: np.full((rows, layout.width), np.nan, np.float32) for group, layout in SMALL_SCHEMA.layouts.items()
    }
    for group in GROUPS:
        layout = SMALL_SCHEMA.layouts[group]
        for feature in layout.features:
            start = layout.offsets[feature.name]
            # Vectors that no label depends on have a stream of their own: the labels stay what they are without them.
            source = other_vectors if feature.name in ("style", "tastes") else rng
            present = source.random(rows) < 0.7
            drawn = _draw(feature, rows, source)
            if feature.name != "never":
                tables[group][present, start : start + feature.width] = drawn[present]
    strength = np.nan_to_num(np.log1p(tables["author"][:, 0]))
    logits = np.stack([strength - 3, np.nan_to_num(tables["tweet"][:, 3]) - 4], axis=1)
    reachable = (1 / (1 + np.exp(-logits))).astype(np.float32)
    ids = {name: rng.integers(1, 2**40, rows) for name in ("viewer_id", "author_id", "tweet_id")}
    ids["session"] = np.arange(rows) // 10
    ids["time_ms"] = np.arange(rows)
    # One viewer row a session.
    tables["viewer"] = tables["viewer"][(np.arange(rows) // 10) * 10]
    labels = (rng.random(reachable.shape) < reachable).astype(np.uint8)
    return Impressions(ids, tables, labels, true=reachable, reachable=reachable)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from threads, and lose much where cores are shared."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture
def small_schema() -> Schema:
    return SMALL_SCHEMA


@pytest.fixture
def make_impressions() -> Callable[[int, int], Impressions]:
    """(rows, seed) -> impressions of `small_schema`: sessions of 10 rows with one viewer row each."""
    return _impressions


@pytest.fixture
def make_records(tmp_path: Path) -> Callable[[int, int], RecordSet]:
    """(days, rows a day) -> a data set of `small_schema` on disk."""

    def make(days: int, rows: int) -> RecordSet:
        root = tmp_path / "records"
        create(root, SMALL_SCHEMA)
        for day in range(days):
            write_day(root, SMALL_SCHEMA, day, _impressions(rows, seed=day))
        return RecordSet.open(root)

    return make


@pytest.fixture
def small_plan(
    make_records: Callable[[int, int], RecordSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Plan]:
    """Tables by name -> the whole plan on eight days of small data, in seconds; tables given replace its own."""
    records = make_records(8, 1_500)
    package = f"source_of_{tmp_path.name}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "data.py").write_text(_COPIED_DATA)
    monkeypatch.syspath_prepend(tmp_path)

    def make(**tables: str) -> Plan:
        own = {
            "split": "train = 4\nvalidate = 1\ncalibrate = 1\ntest = 2",
            "data": f"folder = {str(records.root)!r}",
            "features": "raw_log = ['tweet.likes', 'author.*', 'viewer.hours_away']\n"
            "dots = [['tweet.text', 'viewer.tastes']]\n"
            # No label depends on it: left in, it only makes small samples harder to learn from.
            "leave_out = ['author.style']",
            "discretize": "bins = 8",
            "train": "epochs = 2\nbatch_rows = 256\nthreads = 1",
            "train.network": "units = 16\nhidden = [8]\ntower_units = 4\ncross_rank = 4\ncrosses = 1",
            "calibrate": "positives_min = 30\nblock_events_min = 5",
        }
        steps = [f"{package}.data", "discretize", "sample", "train", "export", "calibrate", "test", "verify"]
        if "from" in tables.get("train", ""):
            del own["train.network"]
        text = f"steps = {steps}\n" + "".join(f"[{name}]\n{table}\n" for name, table in (own | tables).items())
        (tmp_path / "plan.toml").write_text(text)
        return load_plan(tmp_path / "plan.toml")

    return make


_COPIED_DATA = """
import shutil
from dataclasses import dataclass
from model_export.plan import Step

@dataclass(frozen=True)
class Parameters:
    folder: str

def run(context):
    shutil.copytree(context.parameters.folder, context.out, dirs_exist_ok=True)
    return "copied"

STEP = Step(version=1, parameters=Parameters, inputs=(), parts=(), run=run)
"""
