"""How often impressions of the same user, video, tag, ... led to engagement on the days strictly before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from model_export.datasets.history import Ints, PastTotals, smoothed_rate
from model_export.datasets.kuairand_folder import HEADS, Folder, Log
from model_export.datasets.kuairand_tables import Column, first_tags, scalar
from service.schema import Group

# What rates are taken of. "social": reply, retweet or follow, which are too rare one by one.
OUTCOMES = ("click", "long_view", "like", "profile_click", "social", "negative_feedback", "watch_share")
_COMMON = ("click", "long_view", "like", "watch_share")
_RARE = ("profile_click", "social", "negative_feedback")

DURATION_EDGES_S = np.array([7.0, 12.0, 20.0, 40.0, 80.0, 160.0, 320.0])


class Rates(NamedTuple):
    """Which rates of one key become columns.

    Attributes:
        key: What impressions are counted by.
        group: Of the columns.
        outcomes: Of OUTCOMES.
        windows_days: A column for each; None: since the log begins.
        strength: Imaginary impressions at everyone's rate that a rate is smoothed with.
    """

    key: str
    group: Group
    outcomes: tuple[str, ...]
    windows_days: tuple[int | None, ...]
    strength: float


RATES = (
    Rates("viewer", "viewer", _COMMON, (1, 3, None), 5),
    Rates("viewer", "viewer", _RARE, (None,), 20),
    Rates("author", "author", _COMMON, (3, None), 20),
    Rates("author", "author", _RARE, (None,), 100),
    Rates("viewer_author", "author", _COMMON, (None,), 2),
    Rates("video", "tweet", _COMMON, (1, 3, None), 20),
    Rates("video", "tweet", _RARE, (None,), 100),
    Rates("tag", "tweet", ("click", "long_view", "like", "profile_click"), (3, None), 50),
    Rates("tab", "tweet", ("click", "long_view", "like", "profile_click"), (3, None), 50),
    Rates("viewer_tab", "tweet", _COMMON, (3, None), 5),
    Rates("viewer_tag", "tweet", _COMMON, (None,), 5),
    Rates("viewer_duration", "tweet", _COMMON, (None,), 5),
    Rates("viewer_video", "tweet", ("click",), (None,), 2),
    Rates("video_tab", "tweet", ("click", "long_view", "like", "profile_click"), (None,), 20),
    Rates("tag_duration", "tweet", ("click", "long_view", "like"), (None,), 50),
)

# Key, group and name of columns that say how long ago the key was last seen.
_DAYS_SINCE: tuple[tuple[str, Group, str], ...] = (
    ("viewer", "viewer", "days_since_active"),
    ("viewer_author", "author", "days_since_shown"),
    ("viewer_video", "tweet", "days_since_shown"),
)


def pair(first: Ints, second: Ints, size: int) -> Ints:
    """One code for both, second in [0, size); -1 where either is negative."""
    return np.where((first < 0) | (second < 0), -1, first * size + second)


def duration_bins(folder: Folder) -> Ints:
    """[videos] in [0, len(DURATION_EDGES_S)], -1 where the duration is unknown."""
    duration = folder.videos.duration_s
    return np.where(np.isnan(duration), -1, np.searchsorted(DURATION_EDGES_S, duration, side="right"))


def keys(folder: Folder) -> dict[str, Ints]:
    """For each key of RATES the impressions' codes, [n]; -1 = unknown."""
    log, videos = folder.log, folder.videos
    author, tag = videos.author[log.video], first_tags(folder, 0).codes[log.video]
    duration, durations = duration_bins(folder)[log.video], len(DURATION_EDGES_S) + 1
    tags, tabs = int(tag.max(initial=0)) + 1, int(log.tab.max(initial=0)) + 1
    return {
        "viewer": log.user,
        "author": author,
        "video": log.video,
        "tag": tag,
        "tab": log.tab,
        "viewer_author": pair(log.user, author, len(videos.author_ids)),
        "viewer_video": pair(log.user, log.video, len(videos.ids)),
        "viewer_tab": pair(log.user, log.tab, tabs),
        "viewer_tag": pair(log.user, tag, tags),
        "viewer_duration": pair(log.user, duration, durations),
        "video_tab": pair(log.video, log.tab, tabs),
        "tag_duration": pair(tag, duration, durations),
    }


def outcomes(log: Log) -> Ints:
    """[n, len(OUTCOMES)] whole numbers, watch_share in permille."""
    label = {head.name: log.labels[:, j].astype(np.int64) for j, (head, _) in enumerate(HEADS)}
    social = np.maximum.reduce([label["reply"], label["retweet"], label["follow"]])
    columns = {**label, "social": social, "watch_share": log.watch_permille}
    return np.stack([columns[name] for name in OUTCOMES], axis=1)


@dataclass(frozen=True)
class RateHistory:
    """The log's outcomes, ready to be asked for any impression's past."""

    keys: dict[str, Ints]
    past: dict[str, PastTotals]
    everyone: PastTotals
    past_before: Ints
    first_day: int

    @staticmethod
    def of(folder: Folder) -> RateHistory:
        """Sums up the log once per key."""
        log, values, codes = folder.log, outcomes(folder.log), keys(folder)
        return RateHistory(
            keys=codes,
            past={key: PastTotals.of(column, log.day, values) for key, column in codes.items()},
            everyone=PastTotals.of(np.zeros_like(log.day), log.day, values),
            past_before=log.past_before,
            first_day=int(log.day[0]),
        )

    def columns(self, rows: Ints) -> Iterator[Column]:
        """All of RATES for these impressions, and how many impressions a day there were."""
        for rates in RATES:
            yield from self._columns(rates, rows)
        for key, group, name in _DAYS_SINCE:
            since = self.past[key].days_since(self.keys[key][rows], self.past_before[rows])
            yield scalar(group, name, since, "days")

    def _columns(self, rates: Rates, rows: Ints) -> Iterator[Column]:
        codes, before = self.keys[rates.key][rows], self.past_before[rows]
        # A column of the viewer's table needs no "viewer_" before its name.
        prefix = "" if rates.key == rates.group else f"{rates.key}_"
        for window in rates.windows_days:
            suffix = "" if window is None else f"_{window}d"
            shown, sums = self.past[rates.key].before(codes, before, window)
            shown_all, sums_all = self.everyone.before(np.zeros_like(codes), before, window)
            if "click" in rates.outcomes:
                days = before - self.first_day if window is None else np.minimum(before - self.first_day, window)
                a_day = np.where((days > 0) & (codes >= 0), shown / np.maximum(days, 1), np.nan)
                yield scalar(rates.group, f"{prefix}impressions{suffix}", a_day, "per day")
            for outcome in rates.outcomes:
                j = OUTCOMES.index(outcome)
                unit = 1000 if outcome == "watch_share" else 1
                prior = sums_all[:, j] / np.maximum(shown_all, 1)
                rate = smoothed_rate(sums[:, j], shown, prior, rates.strength) / unit
                name = outcome if outcome == "watch_share" else f"{outcome}_rate"
                yield scalar(rates.group, f"{prefix}{name}{suffix}", rate, "ratio")
