"""What KuaiRand's tables and watch lists say about a user, an author or a video: features that no day changes.

A column is a schema feature with its values; features are declared where they are computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.datasets.history import Ints
from model_export.datasets.kuairand_folder import ONEHOT_COLUMNS, Floats, Folder
from service.schema import Feature, Group, Kind

Column = tuple[Feature, NDArray[np.float32]]

# Imaginary watches at the mean rate, against shares of one in one.
_WATCHES_SMOOTHING = 20

# Each watch list with the name of its count.
WATCH_LISTS = {"watch": "watches", "like": "likes", "long_watch": "long_watches"}


def scalar(group: Group, name: str, values: NDArray[Any], unit: str = "", kind: Kind = "continuous") -> Column:
    """A column of numbers; NaN = absent."""
    return Feature(name, group, kind, unit), values.astype(np.float32)


@dataclass(frozen=True)
class Categories:
    """A categorical attribute of a table's rows: `codes` [rows] into `vocabulary`, -1 = absent."""

    vocabulary: tuple[str, ...]
    codes: Ints

    @staticmethod
    def of(values: Iterable[str | None]) -> Categories:
        """All values that there are, in alphabetical order; None is absent."""
        rows = list(values)
        vocabulary = sorted({value for value in rows if value is not None})
        index: dict[str | None, int] = {value: i for i, value in enumerate(vocabulary)}
        return Categories(tuple(vocabulary), np.array([index.get(value, -1) for value in rows], np.int64))

    @staticmethod
    def of_numbers(values: Floats) -> Categories:
        """Whole numbers as categories; NaN is absent."""
        return Categories.of(None if np.isnan(value) else str(int(value)) for value in values)

    def column(self, group: Group, name: str) -> Column:
        """The attribute as a feature."""
        values = np.where(self.codes < 0, np.nan, self.codes).astype(np.float32)
        return Feature(name, group, "categorical", vocabulary=self.vocabulary), values


def first_tags(folder: Folder, position: int) -> Categories:
    """Each video's tag at this position."""
    return Categories.of(tags[position] if len(tags) > position else None for tags in folder.videos.tags)


def user_columns(folder: Folder) -> Iterator[Column]:
    """Viewer features, a row a user."""
    columns = folder.users.columns
    following, followers, friends = (columns[f"{name}_user_num"] for name in ("follow", "fans", "friend"))
    yield scalar("viewer", "following", following, "count")
    yield scalar("viewer", "followers", followers, "count")
    yield scalar("viewer", "friends", friends, "count")
    yield scalar("viewer", "friends_per_following", friends / np.maximum(following, 1), "ratio")
    yield scalar("viewer", "followers_per_following", followers / np.maximum(following, 1), "ratio")
    yield scalar("viewer", "account_age", columns["register_days"], "days")
    for name in ("is_live_streamer", "is_video_author"):
        flag = columns[name]
        # The table writes -124 for unknown.
        yield scalar("viewer", name, np.where((flag == 0) | (flag == 1), flag, np.nan), kind="binary")
    yield Categories.of(columns["user_active_degree"]).column("viewer", "activity")
    for name in ONEHOT_COLUMNS:
        yield Categories.of_numbers(columns[name]).column("viewer", name)

    length = {
        name: np.bincount(watch_list.user, minlength=len(folder.users.ids)).astype(np.float64)
        for name, watch_list in folder.watch_lists.items()
    }
    watches = np.where(length["watch"] > 0, length["watch"], np.nan)
    yield scalar("viewer", "history_watches", folder.history_length, "count")
    for name in ("like", "long_watch"):
        yield scalar("viewer", f"history_{WATCH_LISTS[name]}", np.where(watches > 0, length[name], np.nan), "count")
        yield scalar("viewer", f"history_{name}_share", length[name] / watches, "ratio")
    for name in WATCH_LISTS:
        yield scalar("viewer", f"history_{name}_duration", _typical_duration(folder, name), "seconds")


def _typical_duration(folder: Folder, name: str) -> Floats:
    """[users] geometric mean duration, in seconds, of the videos on a user's list; NaN where there is none."""
    watch_list = folder.watch_lists[name]
    log_duration = np.log(folder.videos.duration_s)[watch_list.video]
    known = ~np.isnan(log_duration)
    users = len(folder.users.ids)
    videos = np.bincount(watch_list.user[known], minlength=users)
    total = np.bincount(watch_list.user[known], log_duration[known], users)
    return np.where(videos > 0, np.exp(total / np.maximum(videos, 1)), np.nan)


def author_columns(folder: Folder) -> Iterator[Column]:
    """Author features, a row an author."""
    author = folder.videos.author
    yield scalar("author", "videos", np.bincount(author), "count")
    for name, count in WATCH_LISTS.items():
        on_lists = np.bincount(author[folder.watch_lists[name].video], minlength=len(folder.videos.author_ids))
        yield scalar("author", f"history_{count}", on_lists, "count")


def video_columns(folder: Folder) -> Iterator[Column]:
    """Tweet features, a row a video."""
    videos = folder.videos
    width, height = videos.columns["server_width"], videos.columns["server_height"]
    yield scalar("tweet", "duration", videos.duration_s, "seconds")
    yield scalar("tweet", "width", width, "pixels")
    yield scalar("tweet", "height", height, "pixels")
    yield scalar("tweet", "aspect_ratio", height / width, "ratio")
    yield scalar("tweet", "tags", np.array([len(tags) for tags in videos.tags]), "count")
    _, music, uses = np.unique(videos.columns["music_id"], return_inverse=True, return_counts=True)
    yield scalar("tweet", "music_uses", uses[music.ravel()], "count")
    yield first_tags(folder, 0).column("tweet", "tag")
    yield first_tags(folder, 1).column("tweet", "tag_second")
    yield Categories.of(videos.columns["upload_type"]).column("tweet", "upload_type")
    yield Categories.of(videos.columns["video_type"]).column("tweet", "video_type")
    yield Categories.of_numbers(videos.columns["music_type"]).column("tweet", "music_type")
    on_lists = {
        name: np.bincount(watch_list.video, minlength=len(videos.ids))
        for name, watch_list in folder.watch_lists.items()
    }
    watches = on_lists["watch"]
    yield scalar("tweet", "history_watches", watches, "count")
    for name in ("like", "long_watch"):
        mean = on_lists[name].sum() / max(watches.sum(), 1)
        share = (on_lists[name] + _WATCHES_SMOOTHING * mean) / (watches + _WATCHES_SMOOTHING)
        yield scalar("tweet", f"history_{name}_share", np.where(watches > 0, share, np.nan), "ratio")
