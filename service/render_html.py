"""Draws a ranked timeline as one self-contained page, beside the same Tweets in reverse-chronological order."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib import resources

from service.schema import GROUPS
from service.timeline_view import (
    SECTION_TITLES,
    TimelineView,
    TweetView,
    age_words,
    contribution_words,
    milliseconds_words,
    probability_words,
    score_words,
)

# Colours of authors go round the wheel by the golden angle, so that neighbouring ids look different.
_GOLDEN_ANGLE_DEGREES = 137.508

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<h1>{title} <span class="note">request {request_id}</span></h1>
{facts}
{timings}
<div class="tabs" role="group" aria-label="Which timeline to show">
<label><input type="radio" name="tab" id="tab-ranking" checked>Ranked</label>
<label><input type="radio" name="tab" id="tab-newest-first">Newest first</label>
</div>
<main>
<div class="column" id="ranking">
<h2>Ranked</h2>
{ranking}
</div>
<div class="column" id="newest-first">
<h2>Newest first <span class="note">the same Tweets without ranking</span></h2>
{newest_first}
</div>
</main>
</body>
</html>
"""


def render_html(view: TimelineView) -> str:
    """The timeline as an HTML page that needs nothing from anywhere else and runs no script."""
    scores = [tweet.score for tweet in view.tweets if tweet.scored]
    cards = _Cards(view.heads, min([0.0, *scores]), max(scores, default=0.0))
    newest_first = view.newest_first()
    return _PAGE.format(
        title=f"Timeline of viewer {view.viewer_id}",
        request_id=escape(view.request_id),
        style=resources.files("service").joinpath("render_html.css").read_text(encoding="utf-8"),
        facts=_facts(view),
        timings=_timings(view),
        ranking=_ranking(view, cards),
        newest_first=_list(cards.in_time_order(tweet) for tweet in newest_first) or _EMPTY,
    )


_EMPTY = '<p class="empty">No Tweets.</p>'


class _Cards:
    """Draws one Tweet, in either column.

    A Tweet that leads somewhere (ICYMI or ranked) gets its score and its probabilities drawn out; one of the remainder
    is a single line.
    """

    def __init__(self, heads: tuple[str, ...], score_min: float, score_max: float) -> None:
        self._heads = heads
        self._score_min = score_min
        self._score_range = score_max - score_min

    def in_ranking(self, tweet: TweetView) -> str:
        place = f'<a class="place" href="#t{tweet.tweet_id}">#{tweet.time_place:,} by time</a>'
        return self._card(tweet, f"r{tweet.tweet_id}", place)

    def in_time_order(self, tweet: TweetView) -> str:
        words = {"icymi": f"ICYMI {tweet.place}", "ranked": "Top Tweets", "remainder": ""}[tweet.section]
        place = f'<a class="place badge" href="#r{tweet.tweet_id}">{words}</a>' if words else ""
        return self._card(tweet, f"t{tweet.tweet_id}", place)

    def _card(self, tweet: TweetView, anchor: str, place: str) -> str:
        hue = tweet.author_id * _GOLDEN_ANGLE_DEGREES % 360
        traits = "".join(f'<span class="trait">{escape(trait)}</span>' for trait in tweet.traits)
        who = (
            f'<i class="avatar" style="background:hsl({hue:.0f} 60% 55%)"></i><b>@{tweet.author_id}</b>'
            f'<span class="age">{age_words(tweet.age_ms)}</span>{traits}'
        )
        if tweet.section == "remainder":
            score = f'<span class="place">{score_words(tweet.score)}</span>'
            return f'<li class="tweet remainder" id="{anchor}"><div class="who">{who}{score}</div></li>'
        return (
            f'<li class="tweet {tweet.section}" id="{anchor}"><div class="who">{who}{place}</div>'
            f"{self._score(tweet)}{self._probabilities(tweet)}{_contributions(tweet)}</li>"
        )

    def _score(self, tweet: TweetView) -> str:
        """The score, and a bar: full for the best, empty for 0 or, where there are negative scores, for the worst."""
        share = (tweet.score - self._score_min) / self._score_range if self._score_range > 0 else 0.0
        width = 100 * share
        return (
            f'<div class="score"><b>{score_words(tweet.score)}</b>'
            f'<div class="bar"><i style="width:{width:.1f}%"></i></div></div>'
        )

    def _probabilities(self, tweet: TweetView) -> str:
        words = map(probability_words, tweet.probabilities)
        return f'<div class="heads">{_cells(self._heads, words)}</div>'


def _contributions(tweet: TweetView) -> str:
    """What each group of features adds to the score, where the answer explains it."""
    if not tweet.contributions:
        return ""
    return f'<div class="heads why">{_cells(GROUPS, map(contribution_words, tweet.contributions))}</div>'


def _cells(names: Iterable[str], words: Iterable[str]) -> str:
    return "".join(
        f"<div><span>{escape(name)}</span>{escape(word)}</div>" for name, word in zip(names, words, strict=True)
    )


def _ranking(view: TimelineView, cards: _Cards) -> str:
    parts = []
    for name, tweets in view.sections.items():
        title = f'{SECTION_TITLES[name]} <span class="note">{_count_and_order(name, len(tweets))}</span>'
        rows = _list(cards.in_ranking(tweet) for tweet in tweets)
        if name == "remainder":
            parts.append(f"<details><summary>{title}</summary>{rows or _EMPTY}</details>")
        else:
            empty = f'<p class="empty">{escape(view.icymi)}</p>' if name == "icymi" else _EMPTY
            parts.append(f'<section class="{name}"><h3>{title}</h3>{rows or empty}</section>')
    return "\n".join(parts)


def _count_and_order(name: str, count: int) -> str:
    return f"{count:,} · {'best first' if name == 'icymi' else 'newest first'}"


def _list(items: Iterable[str]) -> str:
    joined = "\n".join(items)
    return f"<ol>\n{joined}\n</ol>" if joined else ""


def _facts(view: TimelineView) -> str:
    arms = [f"{experiment}={arm}" for experiment, arm in sorted(view.arms.items())]
    features = ", ".join(f"{count} {state}" for state, count in view.features.items())
    total = milliseconds_words(sum(view.stages_us.values()))
    tiles: list[tuple[str, ...]] = [
        ("Candidates", f"{len(view.tweets):,} Tweets", f"by {view.author_count:,} authors"),
        ("Time", f"{total} ms in the server", f"{milliseconds_words(view.round_trip_us)} ms round trip"),
        ("Model", view.model_version, f"policy {view.policy_version}", *arms),
        ("ICYMI", view.icymi.partition(": ")[0], view.icymi.partition(": ")[2] or "by score, best first"),
        ("Degradation", view.degradation.partition(": ")[0], view.degradation.partition(": ")[2]),
        ("Feature columns", f"{view.features['present']} present", features.partition(", ")[2]),
    ]
    cells = "".join(
        f"<div><dt>{escape(label)}</dt><dd><b>{escape(fact)}</b>{_lines(more)}</dd></div>"
        for label, fact, *more in tiles
    )
    return f'<dl class="facts">{cells}</dl>'


def _lines(texts: Iterable[str]) -> str:
    return "".join(f"<span>{escape(text)}</span>" for text in texts)


def _timings(view: TimelineView) -> str:
    bars = "".join(
        f'<i class="stage-{j}" style="flex-grow:{us}"></i>' for j, us in enumerate(view.stages_us.values()) if us
    )
    legend = "".join(
        f'<span><i class="stage-{j}"></i>{escape(stage)} {milliseconds_words(us)} ms</span>'
        for j, (stage, us) in enumerate(view.stages_us.items())
    )
    return f'<div class="timings"><div class="stages">{bars}</div><div class="legend">{legend}</div></div>'
