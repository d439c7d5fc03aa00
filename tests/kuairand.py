"""Makes up a folder with the files and columns of KuaiRand-Pure: small, with repeats, nulls and rare outcomes."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

FIRST = datetime.date(2022, 4, 25)
USERS, VIDEOS, DAYS, ROWS_A_DAY = 30, 25, 4, 150
OUTCOMES = {
    "is_click": 0.4, "long_view": 0.3, "is_like": 0.1, "is_profile_enter": 0.1,
    "is_comment": 0.03, "is_forward": 0.03, "is_follow": 0.03, "is_hate": 0.03,
}  # fmt: skip


def day(n: int) -> datetime.date:
    """The log's n-th date, from 0."""
    return FIRST + datetime.timedelta(days=n)


def write_folder(root: Path, seed: int = 0) -> Path:
    """Writes the folder and returns it."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    _write_users(root, rng)
    videos = _write_videos(root, rng)
    _write_sequences(root, rng)
    half = DAYS // 2
    for name, days in (("a", range(half)), ("b", range(half, DAYS))):
        write_impressions(root, name, pa.concat_tables([_impressions(n, videos, rng) for n in days]))
    return root


def write_impressions(root: Path, name: str, table: pa.Table) -> None:
    """Writes one file of impressions."""
    pq.write_table(table, root / f"impressions_{name}.parquet")


def read_impressions(root: Path) -> pa.Table:
    """All impressions of a folder, in no order."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(root.glob("impressions_*.parquet"))])


def _impressions(n: int, videos: pa.Table, rng: np.random.Generator) -> pa.Table:
    rows = ROWS_A_DAY
    midnight_ms = (
        int(datetime.datetime.combine(day(n), datetime.time(), datetime.UTC).timestamp() * 1000) - 8 * 3_600_000
    )
    # Some exposures of the evening before are booked on the day, as in the real log.
    time_ms = np.sort(midnight_ms + rng.integers(-3_000_000, 86_000_000, rows))
    video = rng.integers(0, VIDEOS, rows)
    duration_ms = np.nan_to_num(videos["video_duration"].to_numpy())[video].astype(np.int64)
    columns: dict[str, Any] = {
        "user_id": rng.integers(0, USERS, rows),
        "video_id": video,
        "date": np.full(rows, int(day(n).strftime("%Y%m%d"))),
        "hourmin": np.maximum((time_ms - midnight_ms) // 3_600_000, 0).astype(np.int32) * 100,
        "time_ms": time_ms,
        "duration_ms": duration_ms,
        "play_time_ms": rng.integers(0, 60_000, rows),
        "profile_stay_time": np.zeros(rows, np.int64),
        "comment_stay_time": np.zeros(rows, np.int64),
        "is_rand": np.zeros(rows, np.int64),
        "tab": rng.integers(0, 5, rows),
        "author_id": videos["author_id"].to_numpy()[video],
        "tag": [tag or "unknown" for tag in np.array(videos["tag"].to_pylist())[video]],
        "upload_date": np.full(rows, 20220410),
        "video_duration": videos["video_duration"].to_numpy()[video],
        "freshness_days": np.full(rows, 14 + n + 1),
    }
    for name, rate in OUTCOMES.items():
        columns[name] = (rng.random(rows) < rate).astype(np.int64)
    table = pa.table(columns)
    return pa.concat_tables([table, table.slice(10, 5)])  # repeats


def _write_users(root: Path, rng: np.random.Generator) -> None:
    columns: dict[str, Any] = {
        "user_id": np.arange(USERS),
        "user_active_degree": rng.choice(["full_active", "high_active", "UNKNOWN"], USERS),
        "is_lowactive_period": np.zeros(USERS, np.int64),
        "is_live_streamer": rng.choice([1, -124], USERS),
        "is_video_author": rng.integers(0, 2, USERS),
    }
    for name in ("follow_user_num", "fans_user_num", "friend_user_num", "register_days"):
        columns[name] = rng.integers(0, 1000, USERS)
        columns[f"{name}_range"] = ["[0,1k)"] * USERS
    for j in range(18):
        values = rng.integers(0, 5, USERS).astype(np.float64)
        null = rng.random(USERS) < (0.1 if j in (4, *range(12, 18)) else 0)
        columns[f"onehot_feat{j}"] = pa.array(values, mask=null)
    pyarrow.csv.write_csv(pa.table(columns), root / "user_features_pure.csv")


def _write_videos(root: Path, rng: np.random.Generator) -> pa.Table:
    duration = rng.integers(5, 200, VIDEOS) * 1000.0
    table = pa.table(
        {
            "video_id": np.arange(VIDEOS),
            "author_id": rng.choice([7, 70, 700, 7000, 70_000, 700_000], VIDEOS),
            "video_type": rng.choice(["NORMAL", "AD"], VIDEOS),
            "upload_dt": [datetime.date(2022, 4, 10)] * VIDEOS,
            "upload_type": rng.choice(["Web", "LongImport", "Kmovie"], VIDEOS),
            "visible_status": np.zeros(VIDEOS),
            "video_duration": pa.array(duration, mask=np.arange(VIDEOS) == 3),
            "server_width": np.full(VIDEOS, 720.0),
            "server_height": rng.choice([720.0, 1280.0], VIDEOS),
            "music_id": rng.integers(0, 10, VIDEOS) + 9_000_000_000,
            "music_type": pa.array(rng.choice([4.0, 9.0], VIDEOS), mask=np.arange(VIDEOS) == 5),
            "tag": rng.choice(["39", "3", "12,62", "12,65,60", ""], VIDEOS),
        }
    )
    pyarrow.csv.write_csv(table, root / "video_features_basic_pure.csv")
    return table


def _write_sequences(root: Path, rng: np.random.Generator) -> None:
    users = np.arange(USERS - 3)  # a few users have no history
    end_ms = int(datetime.datetime.combine(FIRST, datetime.time(), datetime.UTC).timestamp() * 1000) - 12 * 3_600_000
    columns: dict[str, Any] = {
        "user_id": users,
        "history_len": rng.integers(10, 100, len(users)),
        "last_time_ms": end_ms - rng.integers(0, 10**9, len(users)),
    }
    for name, length_max in (("watch", 10), ("like", 3), ("long_watch", 6)):
        lists = [rng.integers(0, VIDEOS, rng.integers(name == "watch", length_max)).tolist() for _ in users]
        columns[f"{name}_seq"] = pa.array(lists, pa.list_(pa.int64()))
    pq.write_table(pa.table(columns), root / "user_sequences.parquet")
