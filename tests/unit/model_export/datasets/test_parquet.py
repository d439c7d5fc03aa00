"""A user's own Parquet impressions in the record form."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.datasets.parquet import Frequencies, ParquetData, convert, find_days, learn_schema, write_days
from model_export.datasets.records import DataError
from model_export.plan_table import PlanError, parse_table

DAY_MS = 86_400_000
NOON_MS = DAY_MS // 2
FIRST_DAY = 20_000
MAPPING: dict[str, Any] = {
    "train_days": 2,
    "ids": {"viewer_id": "user", "author_id": "by", "tweet_id": "item", "session": "view", "time_ms": "at"},
    "labels": {"like": "liked", "reply": "answered"},
    "features": {
        "tweet.likes": {"kind": "continuous", "column": "n_likes", "unit": "count"},
        "tweet.has_image": {"kind": "binary", "column": "image"},
        "tweet.topic": {"kind": "categorical", "column": "topic"},
        "tweet.text": {"kind": "vector", "column": "embedding", "width": 2},
        "viewer.region": {"kind": "categorical", "column": "region"},
    },
}


def _source(path: Path, **changes: Any) -> ParquetData:
    return parse_table(ParquetData, {"path": str(path), **MAPPING, **changes}, "data.parquet")


def _table(**changes: Any) -> pa.Table:
    """Six impressions on three days, two each."""
    columns: dict[str, Any] = {
        "user": [1, 1, 2, 2, 3, 3],
        "by": [5, 6, 5, 6, 5, 6],
        "item": [11, 12, 13, 14, 15, 16],
        "view": [0, 0, 1, 1, 2, 2],
        "at": [(FIRST_DAY + i // 2) * DAY_MS + NOON_MS + i for i in range(6)],
        "liked": [True, False, True, False, False, True],
        "answered": pa.array([0, 0, 0, 1, 0, 0], pa.int8()),
        "n_likes": [3, None, 0, 7, 1, 2],
        "image": [True, False, None, True, True, False],
        "topic": ["music", "news", "music", None, "chess", "music"],
        "embedding": [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 10.0]],
        "region": pa.array([40, 40, 7, 40, 7, 9], pa.int16()),
    }
    return pa.table({**columns, **changes})


def _write(path: Path, table: pa.Table | None = None) -> Path:
    pq.write_table(_table() if table is None else table, path / "impressions.parquet")
    return path / "impressions.parquet"


def test_columns_become_records(tmp_path: Path) -> None:
    """Every value stands where the layout says; null is absent; a category not seen in training is absent."""
    records = convert(_source(_write(tmp_path)), tmp_path / "records")
    assert records.days == (FIRST_DAY, FIRST_DAY + 1, FIRST_DAY + 2)
    assert [(f.name, f.vocabulary) for f in records.schema.features if f.kind == "categorical"] == [
        ("topic", ("music", "news")),
        ("region", ("40", "7")),
    ]
    parts = list(records.batches(records.days))
    nan = np.nan
    # likes, has_image, topic, text
    np.testing.assert_array_equal(
        np.concatenate([part.tables["tweet"] for part in parts]),
        [
            [3, 1, 0, 1, 2],
            [nan, 0, 1, nan, nan],
            [0, nan, 0, 3, 4],
            [7, 1, nan, 5, 6],
            [1, 1, nan, 7, 8],
            [2, 0, 0, 9, 10],
        ],
    )
    np.testing.assert_array_equal(np.concatenate([part.tables["viewer"] for part in parts])[:, 0], [0, 0, 1, 0, 1, nan])
    assert np.concatenate([part.labels for part in parts]).T.tolist() == [[1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0]]
    assert np.concatenate([part.ids["tweet_id"] for part in parts]).tolist() == [11, 12, 13, 14, 15, 16]
    assert parts[0].ids["time_ms"].tolist() == [FIRST_DAY * DAY_MS + NOON_MS, FIRST_DAY * DAY_MS + NOON_MS + 1]


def test_a_folder_of_files_is_read_in_order_of_their_paths(tmp_path: Path) -> None:
    """Files below the folder go on where the one before ended, also within a day; timestamps are times."""
    moments = [
        datetime.datetime(2024, 10, 4, 12, tzinfo=datetime.UTC) + datetime.timedelta(hours=8 * i) for i in range(6)
    ]
    table = _table(at=pa.array(moments, pa.timestamp("us", "UTC")))
    for name, part in (("a/0.parquet", table.slice(0, 3)), ("b/0.parquet", table.slice(3, 3))):
        (tmp_path / name).parent.mkdir()
        pq.write_table(part, tmp_path / name)
    records = convert(_source(tmp_path), tmp_path / "records")
    assert records.days == (FIRST_DAY, FIRST_DAY + 1, FIRST_DAY + 2)
    assert [records.rows([day]) for day in records.days] == [2, 3, 1]
    times = np.concatenate([part.ids["time_ms"] for part in records.batches(records.days)])
    assert times.tolist() == [round(moment.timestamp() * 1000) for moment in moments]


def test_later_days_are_read_with_the_vocabulary_of_a_model(tmp_path: Path) -> None:
    """Asked for one day only, with a schema learned before: nothing is learned again."""
    source = _source(_write(tmp_path))
    schema = learn_schema(source, [FIRST_DAY])
    records = write_days(source, schema, tmp_path / "records", [FIRST_DAY + 2])
    assert records.days == (FIRST_DAY + 2,)
    (day,) = records.batches(records.days)
    topic = day.tables["tweet"][:, schema.layouts["tweet"].offsets["topic"]]
    np.testing.assert_array_equal(topic, [np.nan, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": {**MAPPING["ids"], "vieuwer_id": "user"}}, "'vieuwer_id' is not known; did you mean 'viewer_id'"),
        (
            {"features": {"tweat.likes": MAPPING["features"]["tweet.likes"]}},
            "'tweat' is not known; did you mean 'tweet'",
        ),
        ({"features": {"likes": MAPPING["features"]["tweet.likes"]}}, "'likes' is not <group>.<feature>"),
        ({"features": {"tweet.likes": {"kind": "continous", "column": "n_likes"}}}, "did you mean 'continuous'"),
        ({"features": {"tweet.likes": {"kind": "binary", "column": "liked"}}}, "'liked', which is a label"),
        ({"features": {"tweet.text": {"kind": "binary", "column": "image", "width": 2}}}, "width 2 does not fit"),
        ({"vocabulary_max": 20_000}, "vocabulary_max"),
        ({"labels": {}}, "at least one column"),
        ({"train_days": 0}, "train_days"),
        ({"schema_from": "runs/a"}, "either train_days or schema_from"),
        ({"first": "2024-10-05", "last": "2024-10-04"}, "first must not be after last"),
        ({"first": "yesterday"}, "yesterday"),
    ],
)
def test_a_mapping_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    """The error names the key and, for a misspelt one, the nearest that there is."""
    with pytest.raises(PlanError, match=message):
        _source(Path("anywhere"), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_likes": ["a"] * 6}, "'n_likes' is of type string, not a number"),
        ({"n_likes": [1e300] * 6}, "'n_likes' has infinite values"),
        ({"image": [0, 1, 2, 0, 1, 0]}, "'image' is binary"),
        ({"liked": [0, 1, 2, 0, 1, 0]}, "'liked' is a label"),
        ({"liked": [True, None, True, True, True, True]}, "'liked' has nulls"),
        ({"topic": [0.5] * 6}, "'topic' is of type double, not text"),
        ({"topic": pa.nulls(6, pa.string())}, "'tweet.topic' has no value on the training days"),
        ({"embedding": [[1.0]] * 6}, "'embedding' has lists of another length than 2"),
        ({"embedding": [[1.0, None]] * 6}, "'embedding' has vectors that are partly missing"),
        ({"user": ["a"] * 6}, "'user' is of type string, not a whole number"),
        ({"item": [1, None, 3, 4, 5, 6]}, "'item' has nulls"),
        ({"at": [6, 5, 4, 3, 2, 1]}, "not in order of 'at'"),
    ],
)
def test_values_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The error names the column and what is wrong with it."""
    source = _source(_write(tmp_path, _table(**changes)))
    with pytest.raises(DataError, match=message):
        convert(source, tmp_path / "records")


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The error names the key of the plan, the column and the nearest one that there is."""
    source = _source(_write(tmp_path, _table().rename_columns({"n_likes": "n_like"})))
    with pytest.raises(DataError, match=r"features.tweet.likes: column 'n_likes' is not known; did you mean 'n_like'"):
        find_days(source)


def test_nothing_at_the_path_is_refused(tmp_path: Path) -> None:
    """Neither a file nor a folder with one."""
    for path in (tmp_path, tmp_path / "missing.parquet"):
        with pytest.raises(DataError, match="no Parquet there"):
            find_days(_source(path))


def test_the_path_may_name_an_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a plan can be shared without anyone's folders in it."""
    _write(tmp_path)
    monkeypatch.setenv("IMPRESSIONS", str(tmp_path))
    assert len(find_days(_source(Path("$IMPRESSIONS/impressions.parquet")))) == 3


@given(st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=30), max_size=6), st.integers(1, 12))
def test_counts_are_short_by_at_most_their_bound(batches: list[list[str]], capacity: int) -> None:
    """Against exact counts; with room for all values they are exact."""
    exact: Counter[str] = Counter()
    frequencies = Frequencies(capacity)
    for batch in batches:
        exact.update(batch)
        frequencies.add(Counter(batch))
    short_max = exact.total() / capacity if len(exact) > capacity else 0
    kept = frequencies.most_frequent(20)
    assert len(kept) <= capacity
    assert {value for value, count in exact.items() if count > short_max} <= set(kept)
    if len(exact) <= capacity:
        assert kept == sorted(exact, key=lambda value: (-exact[value], value))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """Eight times the rows of a day take no more than a tenth more memory."""
    program = textwrap.dedent(
        """
        import json, resource, sys
        from pathlib import Path
        from model_export.datasets.parquet import ParquetData, convert
        from model_export.plan_table import parse_table
        source = parse_table(ParquetData, json.loads(sys.argv[1]), "data")
        convert(source, Path(sys.argv[2]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        """
    )
    peaks = []
    for times in (1, 8):
        path = tmp_path / f"{times}.parquet"
        with pq.ParquetWriter(path, _table().schema) as writer:
            for _ in range(times * 2):
                part = pa.concat_tables([_table().slice(0, 1)] * 100_000).combine_chunks()
                writer.write_table(part, row_group_size=50_000)
        mapping = {"path": str(path), **MAPPING}
        command = [sys.executable, "-c", program, json.dumps(mapping), str(tmp_path / f"records{times}")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.1 * peaks[0]
