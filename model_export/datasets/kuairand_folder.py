"""The KuaiRand-Pure folder as arrays.

It holds `impressions_*.parquet`, `user_sequences.parquet`, `user_features_pure.csv` and
`video_features_basic_pure.csv`.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model_export.datasets.history import Ints
from model_export.datasets.records import DataError, epoch_day
from service.schema import Head

Floats = NDArray[np.float64]

# Each head with the outcome that it stands for.
HEADS: tuple[tuple[Head, str], ...] = (
    (Head("click", 0.5, 1), "is_click"),
    (Head("long_view", 0.5, 1), "long_view"),
    (Head("like", 1.0, 1), "is_like"),
    (Head("profile_click", 3.0, 1), "is_profile_enter"),
    (Head("reply", 5.0, 1), "is_comment"),
    (Head("retweet", 4.0, 1), "is_forward"),
    (Head("follow", 4.0, 1), "is_follow"),
    (Head("negative_feedback", 40.0, -1), "is_hate"),
)

# What the folder holds beside impressions_*.parquet.
TABLES = USERS, VIDEOS, SEQUENCES = "user_features_pure.csv", "video_features_basic_pure.csv", "user_sequences.parquet"
SESSION_GAP_MS = 30 * 60_000
LOCAL_OFFSET_MS = 8 * 3_600_000  # China Standard Time, which the log's dates are in
_DAY_MS = 86_400_000
_IMPRESSION_COLUMNS = (
    "user_id", "video_id", "date", "hourmin", "time_ms", "tab", "duration_ms", "play_time_ms",
    *(outcome for _, outcome in HEADS),
)  # fmt: skip
# The anonymous categories of users that are read. Left out are 3, 7 and 8, which have 118 to 1,471 values of a few
# users each: with them every model learned the users by heart and did worse on later days.
ONEHOT_COLUMNS = tuple(f"onehot_feat{j}" for j in (0, 1, 2, 4, 5, 6, *range(9, 18)))
_USER_COLUMNS = (
    "user_id", "user_active_degree", "is_live_streamer", "is_video_author", "follow_user_num", "fans_user_num",
    "friend_user_num", "register_days", *ONEHOT_COLUMNS,
)  # fmt: skip
_VIDEO_COLUMNS = (
    "video_id", "author_id", "video_type", "upload_type", "video_duration", "server_width", "server_height",
    "music_id", "music_type", "tag",
)  # fmt: skip


@dataclass(frozen=True)
class Log:
    """n impressions without repeats, in order of day, then time.

    Attributes:
        user, video: [n] rows of the user and of the video table.
        tab: [n] which surface of the app, 0 to 14.
        time_ms: [n] exposure, Unix ms.
        day: [n] days since 1970-01-01 of the log's own date.
        past_before: [n] the first day whose outcomes the features may not see: the local date of the exposure, which
            is the day before `day` where the log booked an exposure of late evening on the next date.
        previous: [n] row of the user's previous impression, -1 where there is none.
        session: [n] impressions of one user with gaps below SESSION_GAP_MS; constant in user, day and past_before.
        session_start: [n] row of the session's first impression.
        session_position: [n] 0 for that one.
        labels: uint8 [n, heads].
        watch_permille: [n] the part of the video that was played, at most 1000; 0 where its duration is unknown.
    """

    user: Ints
    video: Ints
    tab: Ints
    time_ms: Ints
    day: Ints
    past_before: Ints
    previous: Ints
    session: Ints
    session_start: Ints
    session_position: Ints
    labels: NDArray[np.uint8]
    watch_permille: Ints


@dataclass(frozen=True)
class Users:
    """The user table in order of id: ids [u] and the columns as they are, null = None or NaN."""

    ids: Ints
    columns: dict[str, Any]


@dataclass(frozen=True)
class Videos:
    """The video table in order of id.

    Attributes:
        ids: [v].
        author: [v] codes, the row of `author_ids`.
        author_ids: [a] in rising order.
        tags: For each video its tags, at most three, most important first; empty where unknown.
        duration_s: [v], NaN = unknown.
        columns: The other columns as they are.
    """

    ids: Ints
    author: Ints
    author_ids: Ints
    tags: list[list[str]]
    duration_s: Floats
    columns: dict[str, Any]


@dataclass(frozen=True)
class WatchList:
    """The last videos (at most 50 a user) that users watched, liked or watched for long before the log begins.

    Attributes:
        user, video: [s] rows of the tables; a video stands as often as it was watched.
    """

    user: Ints
    video: Ints


@dataclass(frozen=True)
class Folder:
    """Everything in the folder.

    Attributes:
        history_length: [u] videos that a user had watched before the log, NaN = user without history.
        history_end_ms: [u] when the last of them was, NaN = user without history.
        watch_lists: "watch", "like" and "long_watch".
    """

    log: Log
    users: Users
    videos: Videos
    history_length: Floats
    history_end_ms: Floats
    watch_lists: dict[str, WatchList]


def read_folder(root: Path, last: datetime.date) -> Folder:
    """Reads it, impressions up to the log's date `last`; memory grows with them, about 200 bytes each.

    Raises:
        DataError: A file or column is missing, or an impression's user or video is in no table.
    """
    users = _read_users(root / USERS)
    videos = _read_videos(root / VIDEOS)
    log = _read_log(root, users, videos, epoch_day(last))
    table = _columns(root / SEQUENCES, ("user_id", "history_len", "last_time_ms"))
    user = _rows_of("user_id", table["user_id"], users.ids)
    length, end_ms = np.full(len(users.ids), np.nan), np.full(len(users.ids), np.nan)
    length[user], end_ms[user] = table["history_len"], table["last_time_ms"]
    watch_lists = {
        name: _read_watch_list(root / SEQUENCES, f"{name}_seq", user, videos)
        for name in ("watch", "like", "long_watch")
    }
    return Folder(log, users, videos, length, end_ms, watch_lists)


def _read_log(root: Path, users: Users, videos: Videos, last_day: int) -> Log:
    paths = sorted(root.glob("impressions_*.parquet"))
    if not paths:
        raise DataError(f"{root}: no impressions_*.parquet")
    parts = [_columns(path, _IMPRESSION_COLUMNS) for path in paths]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in _IMPRESSION_COLUMNS}
    columns["day"] = _days(columns["date"])
    keep = _first_of_repeats(columns)
    keep = keep[columns["day"][keep] <= last_day]
    if not len(keep):
        raise DataError(f"{root}: no impressions")
    columns = {name: column[keep] for name, column in columns.items()}

    user, day = _rows_of("user_id", columns["user_id"], users.ids), columns["day"]
    past_before = np.minimum(day, (columns["time_ms"] + LOCAL_OFFSET_MS) // _DAY_MS)
    duration_ms = columns["duration_ms"]
    played = columns["play_time_ms"] * 1000 // np.maximum(duration_ms, 1)
    return Log(
        user=user,
        video=_rows_of("video_id", columns["video_id"], videos.ids),
        tab=columns["tab"],
        time_ms=columns["time_ms"],
        day=day,
        past_before=past_before,
        **_sessions(user, columns["time_ms"], day, past_before),
        labels=np.stack([columns[outcome] for _, outcome in HEADS], axis=1).astype(np.uint8),
        watch_permille=np.where(duration_ms > 0, np.minimum(played, 1000), 0),
    )


def _first_of_repeats(columns: dict[str, Ints]) -> Ints:
    """Rows to keep, in order of date, then time: of each (user, video, time) the one that was logged first."""
    order = np.lexsort([columns[name] for name in ("hourmin", "date", "time_ms", "video_id", "user_id")])
    key = np.stack([columns[name][order] for name in ("user_id", "video_id", "time_ms")])
    first = np.ones(len(order), bool)
    first[1:] = (key[:, 1:] != key[:, :-1]).any(axis=0)
    kept = order[first]
    return kept[np.lexsort([columns[name][kept] for name in ("video_id", "user_id", "time_ms", "date")])]


def _sessions(user: Ints, time_ms: Ints, day: Ints, past_before: Ints) -> dict[str, Ints]:
    """Finds each impression's predecessor and session, as Log has them."""
    rows = np.arange(len(user))
    order = np.lexsort([rows, time_ms, user])
    same_user = np.diff(user[order], prepend=-1) == 0
    near = np.diff(time_ms[order], prepend=0) < SESSION_GAP_MS
    same_day = (np.diff(day[order], prepend=-1) == 0) & (np.diff(past_before[order], prepend=-1) == 0)
    starts = ~(same_user & near & same_day)
    start = np.maximum.accumulate(np.where(starts, rows, 0))
    in_order = {
        "previous": np.where(same_user, np.roll(order, 1), -1),
        "session": np.cumsum(starts) - 1,
        "session_start": order[start],
        "session_position": rows - start,
    }
    back = np.argsort(order)
    return {name: values[back] for name, values in in_order.items()}


def _read_users(path: Path) -> Users:
    table = _table(path, _USER_COLUMNS).sort_by("user_id")
    return Users(table["user_id"].to_numpy(), {name: _values(table[name]) for name in table.column_names})


def _read_videos(path: Path) -> Videos:
    table = _table(path, _VIDEO_COLUMNS).sort_by("video_id")
    author_ids, author = np.unique(table["author_id"].to_numpy(), return_inverse=True)
    return Videos(
        ids=table["video_id"].to_numpy(),
        author=author.astype(np.int64),
        author_ids=author_ids,
        tags=[[tag for tag in (tags or "").split(",") if tag] for tags in table["tag"].to_pylist()],
        duration_s=_values(table["video_duration"]) / 1000,
        columns={name: _values(table[name]) for name in table.column_names},
    )


def _read_watch_list(path: Path, name: str, user: Ints, videos: Videos) -> WatchList:
    lists = pq.read_table(path, columns=[name])[name].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    return WatchList(np.repeat(user, lengths), _rows_of("video_id", lists.flatten().to_numpy(), videos.ids))


def _table(path: Path, names: Sequence[str]) -> pa.Table:
    if not path.exists():
        raise DataError(f"{path}: not there")
    table = pyarrow.csv.read_csv(path)
    _require(path, table.column_names, names)
    return table.select(list(names))


def _require(path: Path, there: Sequence[str], names: Sequence[str]) -> None:
    if missing := sorted(set(names) - set(there)):
        raise DataError(f"{path}: no column {missing[0]!r}")


def _values(column: pa.ChunkedArray) -> Any:
    """Numbers as float64 with NaN for null, anything else as a list."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.cast(pa.float64(), safe=False).to_numpy()
    return column.to_pylist()


def _columns(path: Path, names: Sequence[str]) -> dict[str, Ints]:
    """Integer columns of a Parquet file without nulls."""
    if not path.exists():
        raise DataError(f"{path}: not there")
    _require(path, pq.read_schema(path).names, names)
    table = pq.read_table(path, columns=list(names))
    for name in names:
        if table[name].null_count:
            raise DataError(f"{path}: nulls in column {name!r}")
    return {name: table[name].to_numpy().astype(np.int64) for name in names}


def _rows_of(name: str, ids: Ints, known: Ints) -> Ints:
    """Row of each id in `known`, which rises."""
    rows = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    unknown = known[rows] != ids
    if unknown.any():
        raise DataError(f"{name} {ids[unknown][0]} has no row in its table")
    return rows.astype(np.int64)


def _days(dates: Ints) -> Ints:
    """Days since 1970-01-01 of dates written as yyyymmdd."""
    distinct, inverse = np.unique(dates, return_inverse=True)
    days = [epoch_day(datetime.date(d // 10_000, d // 100 % 100, d % 100)) for d in distinct.tolist()]
    return np.array(days, np.int64)[inverse.ravel()]
