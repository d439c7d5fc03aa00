"""The step `data`: one source of those that there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import model_export
from model_export.datasets.records import RecordSet
from model_export.plan import Plan, load_plan
from model_export.plan_table import PlanError
from model_export.run import run_plan
from service.schema import Head, Schema
from tests import kuairand

SPLIT = "[split]\ntrain = 1\nvalidate = 1\ncalibrate = 1\ntest = 1\n"
KUAIRAND = '[data.kuairand]\npath = "$FOLDER"\nfirst = "2022-04-25"\nlast = "2022-04-28"\n'
WORLD = '[data.world]\nlaw = "tastes"\nseed = 1\nimpressions = 800\ndays = 4\n'
PARQUET = """
[data.parquet]
path = "$FOLDER/sorted.parquet"
train_days = {train_days}
ids.viewer_id = "user_id"
ids.author_id = "author_id"
ids.tweet_id = "video_id"
ids.session = "user_id"
ids.time_ms = "time_ms"
labels = {{click = "is_click"}}
features = {{"tweet.duration" = {{kind = "continuous", column = "duration_ms", unit = "ms"}}}}
"""


def _plan(tmp_path: Path, tables: str) -> Plan:
    (tmp_path / "plan.toml").write_text(f'steps = ["data"]\n{SPLIT}{tables}')
    return load_plan(tmp_path / "plan.toml")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up KuaiRand folder, which plans call $FOLDER, with its impressions once more in order of time."""
    monkeypatch.setenv("FOLDER", str(tmp_path / "kuairand"))
    root = kuairand.write_folder(tmp_path / "kuairand")
    pq.write_table(kuairand.read_impressions(root).sort_by("time_ms"), root / "sorted.parquet")
    return root


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("tables", "days", "feature"),
    [(KUAIRAND, 4, "click_rate"), (WORLD, 4, "sessions_1d"), (PARQUET.format(train_days=1), 5, "duration")],
)
def test_each_source_gives_records(tables: str, days: int, feature: str, tmp_path: Path) -> None:
    """Days in the record form, with the source's features."""
    artifact = run_plan(_plan(tmp_path, tables), tmp_path / "out")["data"]
    records = RecordSet.open(artifact)
    assert len(records.days) == days
    assert feature in {f.name for f in records.schema.features}
    assert sum(map(len, records.batches(records.days))) > 100


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ("", "wants one table of"),
        (KUAIRAND + WORLD, "wants one table of"),
        (KUAIRAND.replace("2022-04-28", "2022-04-24"), "first must not be after last"),
        (KUAIRAND.replace("2022-04-28", "2022-04-31"), "data.kuairand: day"),
        (KUAIRAND.replace("2022-04-28", "2022-04-30"), "data: .*no impressions on 2022-04-29"),
        (KUAIRAND.replace("$FOLDER", "$NO_SUCH_FOLDER"), "data: .*variable in it is not set"),
        (PARQUET.format(train_days=2), "train_days are more than the split's"),
    ],
)
def test_a_source_that_can_not_be_read_is_refused(tables: str, message: str, tmp_path: Path) -> None:
    """As an error of the plan, which the command line prints."""
    with pytest.raises(PlanError, match=message):
        run_plan(_plan(tmp_path, tables), tmp_path / "out")


@pytest.mark.usefixtures("folder")
def test_only_what_a_plan_says_of_its_source_names_the_artifact(tmp_path: Path) -> None:
    """The sources that it does not use have no part in it: a new kind of source reruns nothing."""
    artifact = run_plan(_plan(tmp_path, WORLD), tmp_path / "out")["data"]
    assert '"kuairand"' not in (artifact / "artifact.json").read_text()


def test_the_plan_for_kuairand_is_split_by_dates() -> None:
    """Trained to the end of April, tested on the last two days that it reads, nothing in between left out."""
    plan = load_plan(Path(model_export.__file__).parent / "plans" / "kuairand.toml")
    source = plan.steps[0].parameters.kuairand
    days = np.arange(np.datetime64(source.first), np.datetime64(source.last) + 1).astype(str).tolist()
    split = plan.split.days(RecordSet(Path(), Schema((), (Head("like", 1, 1),)), tuple(range(len(days)))))
    assert days[split["train"][-1]] == "2022-04-30"
    assert [days[day] for day in split["test"]] == ["2022-05-03", "2022-05-04"]
