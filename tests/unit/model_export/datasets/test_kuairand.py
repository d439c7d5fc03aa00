"""KuaiRand-Pure in the record form, on a made-up folder and, where it is given, on the real one."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from model_export.datasets.kuairand import convert
from model_export.datasets.records import DataError, Impressions, RecordSet
from service.schema import GROUPS
from tests import kuairand

Row = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kuairand.write_folder(tmp_path_factory.mktemp("kuairand"))


@pytest.fixture(scope="module")
def records(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordSet:
    return _convert(folder, tmp_path_factory.mktemp("records"))


def _convert(folder: Path, root: Path, first: int = 0, last: int = kuairand.DAYS - 1) -> RecordSet:
    return convert(folder, root, kuairand.day(first), kuairand.day(last))


def _day(records: RecordSet, n: int) -> Impressions:
    (impressions,) = records.batches(records.days[n : n + 1])
    return impressions


def _column(records: RecordSet, n: int, group: str, name: str) -> NDArray[np.float32]:
    (group_name,) = (g for g in GROUPS if g == group)
    return _day(records, n).tables[group_name][:, records.schema.layouts[group_name].offsets[name]]


def _log(folder: Path) -> list[Row]:
    """The raw impressions without repeats, by date and time, with the local date of the exposure as `shown`."""
    rows: dict[tuple[int, int, int], Row] = {}
    for row in kuairand.read_impressions(folder).to_pylist():
        rows.setdefault((row["user_id"], row["video_id"], row["time_ms"]), {**row, "shown": _local_date(row)})
    return sorted(rows.values(), key=lambda row: (row["date"], row["time_ms"]))


def _local_date(row: Row) -> int:
    moment = datetime.datetime.fromtimestamp(row["time_ms"] / 1000, datetime.UTC) + datetime.timedelta(hours=8)
    return int(moment.strftime("%Y%m%d"))


def _of_day(folder: Path, n: int) -> list[Row]:
    return [row for row in _log(folder) if row["date"] == int(kuairand.day(n).strftime("%Y%m%d"))]


def test_every_impression_stands_once_on_its_date(folder: Path, records: RecordSet) -> None:
    """Ids, times and outcomes are those of the raw files without repeats; users count from 1 as viewers."""
    assert records.days == tuple((kuairand.day(n) - datetime.date(1970, 1, 1)).days for n in range(kuairand.DAYS))
    outcomes = {
        "click": "is_click",
        "long_view": "long_view",
        "like": "is_like",
        "profile_click": "is_profile_enter",
        "reply": "is_comment",
        "retweet": "is_forward",
        "follow": "is_follow",
        "negative_feedback": "is_hate",
    }
    assert records.schema.head_names == tuple(outcomes)
    for n in range(kuairand.DAYS):
        raw, day = _of_day(folder, n), _day(records, n)
        assert len(raw) == kuairand.ROWS_A_DAY
        assert day.ids["viewer_id"].tolist() == [row["user_id"] + 1 for row in raw]
        assert day.ids["tweet_id"].tolist() == [row["video_id"] for row in raw]
        assert day.ids["author_id"].tolist() == [row["author_id"] for row in raw]
        assert day.ids["time_ms"].tolist() == [row["time_ms"] for row in raw]
        assert day.labels.tolist() == [[row[outcome] for outcome in outcomes.values()] for row in raw]


def test_outcomes_of_a_day_touch_later_days_only(folder: Path, tmp_path: Path, records: RecordSet) -> None:
    """With every outcome of one date turned round, features of that and earlier days stay, the next day's change."""
    changed_day = 1
    spoiled = kuairand.write_folder(tmp_path / "spoiled")
    table = kuairand.read_impressions(folder)
    on_day = np.array(table["date"].to_pylist()) == int(kuairand.day(changed_day).strftime("%Y%m%d"))
    for name in (*kuairand.OUTCOMES, "play_time_ms", "profile_stay_time", "comment_stay_time"):
        values = table[name].to_numpy()
        turned = 1 - values if name in kuairand.OUTCOMES else values * 3 + 1000
        table = table.set_column(table.column_names.index(name), name, pa.array(np.where(on_day, turned, values)))
    for path in spoiled.glob("impressions_*"):
        path.unlink()
    kuairand.write_impressions(spoiled, "all", table)
    other = _convert(spoiled, tmp_path / "records")
    assert other.schema == records.schema
    for n in range(kuairand.DAYS):
        same = all(
            np.array_equal(_day(records, n).tables[group], _day(other, n).tables[group], equal_nan=True)
            for group in GROUPS
        )
        assert same == (n <= changed_day)


def test_a_row_sees_no_day_that_is_not_over_before_it_is_shown(folder: Path, records: RecordSet) -> None:
    """Past click rates are what a loop over earlier dates finds, also where an exposure is booked on the next date."""
    log, smoothing = _log(folder), 5
    booked_late = 0
    for n in range(1, kuairand.DAYS):
        rates = _column(records, n, "viewer", "click_rate")
        for i, row in enumerate(_of_day(folder, n)):
            booked_late += row["shown"] < row["date"]
            past = [r for r in log if r["date"] < row["shown"]]
            own = [r["is_click"] for r in past if r["user_id"] == row["user_id"]]
            if not own:
                assert math.isnan(rates[i])
                continue
            everyone = sum(r["is_click"] for r in past) / len(past)
            assert rates[i] == pytest.approx((sum(own) + smoothing * everyone) / (len(own) + smoothing), rel=1e-5)
    assert booked_late > 3


def test_history_lists_become_shares(folder: Path, records: RecordSet) -> None:
    """The share of a viewer's long watches with the video's first tag, by a loop over the raw lists."""
    sequences = pa.parquet.read_table(folder / "user_sequences.parquet").to_pylist()
    lists = {row["user_id"]: row["long_watch_seq"] for row in sequences}
    videos = pa.csv.read_csv(folder / "video_features_basic_pure.csv").to_pylist()
    first_tag = [(video["tag"] or "").split(",")[0] for video in videos]
    shares = _column(records, 0, "tweet", "viewer_history_tag_long_watch_share")
    for share, row in zip(shares, _of_day(folder, 0), strict=True):
        tag = first_tag[row["video_id"]]
        watched = [first_tag[video] for video in lists.get(row["user_id"], []) if first_tag[video]]
        if tag and watched:
            assert share == pytest.approx(watched.count(tag) / len(watched))
        else:
            assert math.isnan(share)


def test_sessions_end_after_half_an_hour(folder: Path, records: RecordSet) -> None:
    """Position in the session and minutes since the last impression, by a loop over each user's impressions."""
    expected: dict[tuple[int, int, int], tuple[int, float]] = {}
    last: dict[int, tuple[int, int, tuple[int, int]]] = {}
    for row in sorted(_log(folder), key=lambda row: int(row["time_ms"])):
        before_ms, position, dates = last.get(row["user_id"], (-1, -1, (0, 0)))
        own_dates = (row["date"], row["shown"])
        goes_on = dates == own_dates and row["time_ms"] - before_ms < 30 * 60_000
        position = position + 1 if goes_on else 0
        minutes = math.nan if before_ms < 0 else (row["time_ms"] - before_ms) / 60_000
        expected[row["user_id"], row["video_id"], row["time_ms"]] = position, minutes
        last[row["user_id"]] = (row["time_ms"], position, own_dates)
    for n in range(kuairand.DAYS):
        found = zip(
            _column(records, n, "tweet", "session_position"),
            _column(records, n, "tweet", "minutes_since_impression"),
            strict=True,
        )
        raw = [expected[row["user_id"], row["video_id"], row["time_ms"]] for row in _of_day(folder, n)]
        np.testing.assert_allclose(list(found), raw, rtol=1e-5)


def test_viewer_rows_are_constant_in_a_session(records: RecordSet) -> None:
    """So are author rows in a session and author: a request sends each of them once."""
    for n in range(kuairand.DAYS):
        day = _day(records, n)
        for group, keys in (("viewer", ["session"]), ("author", ["session", "author_id"])):
            key = np.stack([day.ids[name] for name in keys], axis=1)
            _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
            table = day.tables["viewer" if group == "viewer" else "author"]
            np.testing.assert_array_equal(table, table[first[inverse.ravel()]])


def test_days_before_the_first_are_history_only(folder: Path, records: RecordSet, tmp_path: Path) -> None:
    """A day's records do not depend on which other days are asked for."""
    alone = _convert(folder, tmp_path, first=2, last=2)
    assert alone.days == records.days[2:3]
    assert alone.schema == records.schema
    for group in GROUPS:
        np.testing.assert_array_equal(_day(alone, 0).tables[group], _day(records, 2).tables[group])


def _without_column(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        kuairand.write_impressions(folder, "a", kuairand.read_impressions(folder).drop_columns([name]))

    return spoil


def _unknown_user(folder: Path) -> None:
    table = kuairand.read_impressions(folder)
    users = pa.array(table["user_id"].to_numpy() + 1_000_000)
    kuairand.write_impressions(folder, "c", table.set_column(table.column_names.index("user_id"), "user_id", users))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "user_sequences.parquet").unlink(), "user_sequences.parquet: not there"),
        (lambda folder: (folder / "user_features_pure.csv").unlink(), "user_features_pure.csv: not there"),
        (lambda folder: [path.unlink() for path in folder.glob("impressions_*")], "no impressions_"),
        (_without_column("is_hate"), "no column 'is_hate'"),
        (_unknown_user, "user_id 10000.. has no row"),
    ],
)
def test_a_broken_folder_is_refused(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    """The error names the file, the column or the id."""
    folder = kuairand.write_folder(tmp_path / "folder")
    spoil(folder)
    with pytest.raises(DataError, match=message):
        _convert(folder, tmp_path / "records")


def test_a_day_without_impressions_is_refused(folder: Path, tmp_path: Path) -> None:
    """The error names the date."""
    with pytest.raises(DataError, match="no impressions on 2022-04-29"):
        _convert(folder, tmp_path, last=kuairand.DAYS)


@pytest.mark.slow
@pytest.mark.skipif("TIMELINE_RANKER_DATA" not in os.environ, reason="TIMELINE_RANKER_DATA names no folder of data")
def test_the_real_log(tmp_path: Path) -> None:
    """All impressions once, rates as published for the whole log, the mapped features."""
    folder = Path(os.environ["TIMELINE_RANKER_DATA"]) / "kuairand_pure"
    records = convert(folder, tmp_path, datetime.date(2022, 4, 25), datetime.date(2022, 5, 4))
    assert len(records.days) == 10
    assert records.rows(records.days) == 166_932
    labels = np.concatenate([impressions.labels for impressions in records.batches(records.days)])
    published = (0.442, 0.311, 0.0171, 0.0185, 0.0025, 0.00085, 0.0013, 0.00083)
    np.testing.assert_allclose(labels.mean(axis=0), published, rtol=0.1)
    scalars = sum(len(layout.scalars) for layout in records.schema.layouts.values())
    categoricals = sum(len(layout.categoricals) for layout in records.schema.layouts.values())
    assert (scalars, categoricals) == (165, 23)
