"""Features of KuaiRand impressions: what the tables say, what came before, never what comes out.

Rates come from outcomes on days strictly before the exposure; that and when earlier impressions happened is known at
once. Viewer columns are constant within a session, author columns within a session and author.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from model_export.datasets.history import Ints, counts
from model_export.datasets.kuairand_folder import LOCAL_OFFSET_MS, Folder, WatchList
from model_export.datasets.kuairand_rates import RateHistory, duration_bins, pair
from model_export.datasets.kuairand_tables import (
    WATCH_LISTS,
    Categories,
    Column,
    author_columns,
    first_tags,
    scalar,
    user_columns,
    video_columns,
)

_HOUR_MS = 3_600_000
_TABS = tuple(str(tab) for tab in range(15))
_HOURS = tuple(str(hour) for hour in range(24))
# A user's times and codes in one number: times stay below 2**42 ms until the year 2109.
_TIME_RANGE = 1 << 42


class FeatureSource:
    """Computes the features of a folder's impressions, a day at a time; what does not change is computed once."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.by_user = list(user_columns(folder))
        self.by_author = list(author_columns(folder))
        self.by_video = list(video_columns(folder))
        self.rates = RateHistory.of(folder)
        self.tastes = {
            "tag": _Tastes(folder, first_tags(folder, 0).codes),
            "duration": _Tastes(folder, duration_bins(folder)),
            "upload_type": _Tastes(folder, Categories.of(folder.videos.columns["upload_type"]).codes),
        }
        self.on_list = {
            name: (
                np.sort(pair(of.user, of.video, len(folder.videos.ids))),
                np.sort(pair(of.user, folder.videos.author[of.video], len(folder.videos.author_ids))),
            )
            for name, of in folder.watch_lists.items()
        }
        self.exposures = np.sort(folder.log.user * _TIME_RANGE + folder.log.time_ms)

    def columns(self, rows: Ints) -> list[Column]:
        """All features of these impressions, always in the same order."""
        log = self.folder.log
        author = self.folder.videos.author[log.video[rows]]
        return [
            *((feature, values[log.user[rows]]) for feature, values in self.by_user),
            *((feature, values[author]) for feature, values in self.by_author),
            *((feature, values[log.video[rows]]) for feature, values in self.by_video),
            *self._visit(rows),
            *self._on_lists(rows),
            *self._affinity(rows),
            *self._situation(rows),
            *self.rates.columns(rows),
        ]

    def _visit(self, rows: Ints) -> Iterator[Column]:
        """When the session began, and how long after the viewer's last impression or watch."""
        log, start = self.folder.log, self.folder.log.session_start[rows]
        previous = log.previous[start]
        last_ms = np.where(previous >= 0, log.time_ms[previous], self.folder.history_end_ms[log.user[rows]])
        hours = (log.time_ms[start] - last_ms) / _HOUR_MS
        # A few users' history ends within the log's first hour, after their first impression.
        yield scalar("viewer", "hours_since_visit", np.where(hours >= 0, hours, np.nan), "hours")
        hour = (log.time_ms[start] + LOCAL_OFFSET_MS) // _HOUR_MS % 24
        yield Categories(_HOURS, hour).column("viewer", "hour")

    def _on_lists(self, rows: Ints) -> Iterator[Column]:
        """How often this very video, and this author, stand on the viewer's lists; absent for a viewer without any."""
        folder, log = self.folder, self.folder.log
        user, video = log.user[rows], log.video[rows]
        by_video = pair(user, video, len(folder.videos.ids))
        by_author = pair(user, folder.videos.author[video], len(folder.videos.author_ids))
        known = ~np.isnan(folder.history_length[user])
        for name, (videos, authors) in self.on_list.items():
            count = WATCH_LISTS[name]
            of_author = np.where(known, counts(authors, by_author), np.nan)
            yield scalar("author", f"viewer_history_{count}", of_author, "count")
            yield scalar("tweet", f"viewer_history_{count}", np.where(known, counts(videos, by_video), np.nan), "count")

    def _affinity(self, rows: Ints) -> Iterator[Column]:
        """What part of the viewer's lists is like this video."""
        log = self.folder.log
        user, video = log.user[rows], log.video[rows]
        for attribute, tastes in self.tastes.items():
            for name in WATCH_LISTS:
                yield scalar(
                    "tweet", f"viewer_history_{attribute}_{name}_share", tastes.share(name, user, video), "ratio"
                )
            long = tastes.relative("long_watch", user, video)
            yield scalar("tweet", f"viewer_history_{attribute}_long_watches_per_watch", long, "ratio")
        duration = self.folder.videos.duration_s[video]
        for feature, values in self.by_user:
            if feature.name.endswith("_duration"):
                yield scalar("tweet", f"duration_per_viewer_{feature.name}", duration / values[user], "ratio")

    def _situation(self, rows: Ints) -> Iterator[Column]:
        """Where and after what the video was shown."""
        log, folder = self.folder.log, self.folder
        yield Categories(_TABS, np.where(log.tab[rows] < len(_TABS), log.tab[rows], -1)).column("tweet", "tab")
        yield scalar("tweet", "session_position", log.session_position[rows], "count")
        previous = log.previous[rows]
        follows = previous >= 0
        minutes = (log.time_ms[rows] - log.time_ms[previous]) / 60_000
        yield scalar("tweet", "minutes_since_impression", np.where(follows, minutes, np.nan), "minutes")
        tag, video = first_tags(folder, 0).codes, log.video
        same_tag = tag[video[rows]] == tag[video[previous]]
        yield scalar("tweet", "same_tag_as_previous", np.where(follows, same_tag, np.nan), kind="binary")
        same_tab = log.tab[rows] == log.tab[previous]
        yield scalar("tweet", "same_tab_as_previous", np.where(follows, same_tab, np.nan), kind="binary")
        now = log.user[rows] * _TIME_RANGE + log.time_ms[rows]
        for name, hours in (("1h", 1), ("1d", 24)):
            shown = np.searchsorted(self.exposures, now) - np.searchsorted(self.exposures, now - hours * _HOUR_MS)
            yield scalar("tweet", f"viewer_impressions_{name}", shown, "count")


class _Tastes:
    """How many videos of each kind (a tag, a duration bin, ...) stand on each user's lists."""

    def __init__(self, folder: Folder, kinds: Ints) -> None:
        """Counts `kinds` [videos], -1 = unknown."""
        self.kinds = kinds
        self.counts = {name: _by_user(of, kinds, len(folder.users.ids)) for name, of in folder.watch_lists.items()}

    def share(self, name: str, user: Ints, video: Ints) -> NDArray[np.float64]:
        """Of the videos of known kind on the user's list the part that is of this video's; NaN where either is none."""
        total = self.counts[name].sum(axis=1)[user]
        count = self.counts[name][user, self.kinds[video]]
        return np.where((total > 0) & (self.kinds[video] >= 0), count / np.maximum(total, 1), np.nan)

    def relative(self, name: str, user: Ints, video: Ints) -> NDArray[np.float64]:
        """Videos of this kind on the list, per one of them that was watched; NaN where none was watched."""
        kind = self.kinds[video]
        watched = self.counts["watch"][user, kind]
        count = self.counts[name][user, kind]
        return np.where((watched > 0) & (kind >= 0), count / np.maximum(watched, 1), np.nan)


def _by_user(of: WatchList, kinds: Ints, users: int) -> Ints:
    """[users, kinds] counts."""
    width = int(kinds.max(initial=0)) + 1
    kind = kinds[of.video]
    cells = (of.user * width + kind)[kind >= 0]
    return np.bincount(cells, minlength=users * width).reshape(users, width)
