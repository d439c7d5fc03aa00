"""KuaiRand-Pure, a log of a short-video feed, in the record form: user = viewer, video = Tweet.

It is short video, not Twitter, and under CC BY-SA 4.0; the mapping with its reasons is
`docs/decisions/0020-kuairand-mapping.md`.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_export.datasets.history import Ints
from model_export.datasets.kuairand_features import FeatureSource
from model_export.datasets.kuairand_folder import HEADS, TABLES, Folder, read_folder
from model_export.datasets.kuairand_tables import Column
from model_export.datasets.records import DataError, Impressions, RecordSet, create, epoch_date, epoch_day, write_day
from service.schema import GROUPS, Schema


@dataclass(frozen=True)
class KuaiRandData:
    """A plan's choice of KuaiRand-Pure.

    Attributes:
        path: The folder; `$NAME` stands for an environment variable.
        first: Date of the log, such as "2022-04-25".
        last: Likewise; impressions after it are not looked at.
    """

    path: str
    first: str
    last: str

    def __post_init__(self) -> None:
        if not datetime.date.fromisoformat(self.first) <= datetime.date.fromisoformat(self.last):
            raise ValueError("first must not be after last")


def source_files(folder: Path) -> list[Path]:
    """The files of a folder that `convert` reads, those that are there."""
    return [
        *sorted(folder.glob("impressions_*.parquet")),
        *(path for name in TABLES if (path := folder / name).exists()),
    ]


def convert(folder: Path, root: Path, first: datetime.date, last: datetime.date) -> RecordSet:
    """Turns the impressions of the log's dates `first` to `last` into a data set; day = days since 1970-01-01.

    Impressions before `first` serve as history; those after `last` are not looked at. The schema depends on the
    folder's tables alone, so that it is the same for any dates.

    Raises:
        DataError: The folder is not what the reader knows, or has no impressions on one of the days.
    """
    content = read_folder(folder, last)
    source = FeatureSource(content)
    days = np.arange(epoch_day(first), epoch_day(last) + 1)
    starts, ends = np.searchsorted(content.log.day, days), np.searchsorted(content.log.day, days, side="right")
    for day, start, end in zip(days.tolist(), starts, ends, strict=True):
        if start == end:
            raise DataError(f"{folder}: no impressions on {epoch_date(day)}")
        rows = np.arange(start, end)
        columns = source.columns(rows)
        schema = Schema(tuple(feature for feature, _ in columns), tuple(head for head, _ in HEADS))
        if day == days[0]:
            create(root, schema)
        write_day(root, schema, day, _impressions(content, rows, schema, columns))
    return RecordSet.open(root)


def _impressions(folder: Folder, rows: Ints, schema: Schema, columns: list[Column]) -> Impressions:
    log, videos = folder.log, folder.videos
    tables = {group: np.full((len(rows), schema.layouts[group].width), np.nan, np.float32) for group in GROUPS}
    for feature, values in columns:
        tables[feature.group][:, schema.layouts[feature.group].offsets[feature.name]] = values
    ids = {
        "viewer_id": folder.users.ids[log.user[rows]] + 1,  # users count from 0, which is no viewer id
        "author_id": videos.author_ids[videos.author[log.video[rows]]],
        "tweet_id": videos.ids[log.video[rows]],
        "session": log.session[rows],
        "time_ms": log.time_ms[rows],
    }
    return Impressions(ids=ids, tables=tables, labels=log.labels[rows])
