"""The step `data`: one source of those that there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import model_export
from model_export.datasets.records import RecordSet, epoch_date
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


@pytest.mark.parametrize(
    ("tables", "file"), [(KUAIRAND, "video_features_basic_pure.csv"), (PARQUET.format(train_days=1), "sorted.parquet")]
)
def test_a_file_that_changed_is_read_again(tables: str, file: str, folder: Path, tmp_path: Path) -> None:
    """By its content: a new date of the file alone, or a file that the source does not read, changes nothing."""
    before = run_plan(_plan(tmp_path, tables), tmp_path / "out")["data"]

    (folder / file).touch()
    (folder / "notes.txt").write_text("none of its files")
    assert run_plan(_plan(tmp_path, tables), tmp_path / "out")["data"] == before

    content = (folder / file).read_bytes()
    if file.endswith(".csv"):
        (folder / file).write_bytes(content.replace(b"NORMAL", b"AD"))
    else:
        pq.write_table(pq.read_table(folder / file).slice(5), folder / file)
    after = run_plan(_plan(tmp_path, tables), tmp_path / "out")["data"]
    assert after != before
    assert any(
        (after / name.name).read_bytes() != name.read_bytes()
        for name in before.iterdir()
        if name.name != "artifact.json"
    )

    (folder / file).write_bytes(content)
    assert run_plan(_plan(tmp_path, tables), tmp_path / "out")["data"] == before


WINDOW = """
first = "2022-04-27"
last = "2022-04-28"
[data.parquet.features]
"tweet.duration" = {kind = "continuous", column = "duration_ms", unit = "ms"}
"tweet.tag" = {kind = "categorical", column = "tag"}
"""


def test_new_days_are_read_with_the_schema_of_a_run(folder: Path, tmp_path: Path) -> None:
    """Its categories, in its order, though the new days have others."""
    tables = PARQUET.format(train_days=1).split("features")[0] + WINDOW
    table = pq.read_table(folder / "sorted.parquet")
    first = RecordSet.open(run_plan(_plan(tmp_path, tables.replace("04-27", "04-25")), tmp_path / "first")["data"])
    tags = table.column_names.index("tag")
    pq.write_table(table.set_column(tags, "tag", [["new", "39"] * (len(table) // 2)]), folder / "sorted.parquet")

    later = tables.replace("train_days = 1", f"schema_from = {str(tmp_path / 'first')!r}")
    records = RecordSet.open(run_plan(_plan(tmp_path, later), tmp_path / "later")["data"])

    assert records.schema == first.schema
    assert "new" not in records.schema.features[1].vocabulary
    assert [str(epoch_date(day)) for day in records.days] == ["2022-04-27", "2022-04-28"]
    tag = np.concatenate([part.tables["tweet"][:, 1] for part in records.batches(records.days)])
    assert set(tag[~np.isnan(tag)]) == {records.schema.features[1].vocabulary.index("39")}
    assert 0.4 < np.isnan(tag).mean() < 0.6

    (tmp_path / "first" / "run.json").unlink()
    with pytest.raises(PlanError, match="holds no finished run"):
        run_plan(_plan(tmp_path, later), tmp_path / "later")


def test_the_plan_for_kuairand_is_split_by_dates() -> None:
    """Trained to the end of April, tested on the last two days that it reads, nothing in between left out."""
    plan = load_plan(Path(model_export.__file__).parent / "plans" / "kuairand.toml")
    source = plan.steps[0].parameters.kuairand
    days = np.arange(np.datetime64(source.first), np.datetime64(source.last) + 1).astype(str).tolist()
    split = plan.split.days(RecordSet(Path(), Schema((), (Head("like", 1, 1),)), tuple(range(len(days)))))
    assert days[split["train"][-1]] == "2022-04-30"
    assert [days[day] for day in split["test"]] == ["2022-05-03", "2022-05-04"]
