"""Draws a ranked timeline for a terminal."""

from __future__ import annotations

import textwrap

from service.schema import GROUPS
from service.timeline_view import (
    SECTION_TITLES,
    SectionName,
    TimelineView,
    TweetView,
    age_words,
    contribution_words,
    milliseconds_words,
    probability_words,
    score_words,
)

REMAINDER_SHOWN = 5

_BOLD, _DIM, _RESET = "\x1b[1m", "\x1b[2m", "\x1b[0m"
_COLOURS: dict[SectionName, str] = {"icymi": "\x1b[33m", "ranked": "\x1b[36m", "remainder": "\x1b[2m"}

_AGE_WIDTH = 6
_SCORE_WIDTH = 8
_HEAD_WIDTH = 9  # with the gap before it
_TRAITS_WIDTH_MIN, _TRAITS_WIDTH_MAX = 24, 40
_LABEL_WIDTH = 13
_GAP = 2


def render_text(view: TimelineView, width: int, *, colour: bool, whole: bool) -> str:
    """The timeline as lines of at most `width` columns, one a Tweet, with the facts below.

    Args:
        view: What to draw.
        width: Columns of the terminal. Heads that do not fit are left out, the least likely ones first, and named.
        colour: Whether to use ANSI colours.
        whole: Whether to write the whole remainder, not only its first REMAINDER_SHOWN Tweets.
    """
    pen = _Pen(colour)
    layout = _Layout(view, width)
    lines: list[str] = []
    for name, tweets in view.sections.items():
        shown = tweets if whole or name != "remainder" else tweets[:REMAINDER_SHOWN]
        order = "best first" if name == "icymi" else "newest first"
        title = f"{SECTION_TITLES[name]} · {_count(len(tweets), 'Tweet')}" + (f", {order}" if tweets else "")
        lines.append(pen.paint(_crop(title, width), _BOLD + _COLOURS[name]))
        if shown:
            lines.append(pen.paint(layout.header(), _DIM))
            lines += [pen.paint(layout.line(tweet), _DIM if name == "remainder" else "") for tweet in shown]
        if len(shown) < len(tweets):
            more = f"… and {len(tweets) - len(shown)} more (--all shows them)"
            lines.append(pen.paint(_crop(more, width), _DIM))
        lines.append("")
    if layout.heads_hidden:
        names = _printable(", ".join(view.heads[j] for j in layout.heads_hidden))
        lines += [pen.paint(_crop(f"no room for: {names} (a wider terminal shows them)", width), _DIM), ""]
    for label, fact in _facts(view):
        # No narrower than a word: a fact is never cropped.
        wrapped = textwrap.wrap(_printable(fact), max(width - _LABEL_WIDTH, 1), break_long_words=False)
        labels = [pen.paint(label.ljust(_LABEL_WIDTH), _DIM), *[" " * _LABEL_WIDTH] * (len(wrapped) - 1)]
        lines += [label + line for label, line in zip(labels, wrapped, strict=True)]
    return "\n".join(lines) + "\n"


class _Pen:
    """Paints text, or does not."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def paint(self, text: str, codes: str) -> str:
        return f"{codes}{text}{_RESET}" if self._colour and codes else text


class _Layout:
    """Which columns a line has, and how wide they are."""

    def __init__(self, view: TimelineView, width: int) -> None:
        self._width = width
        self._author_width = max([len("author"), *(len(_author(tweet)) for tweet in view.tweets)])
        self._groups = GROUPS if view.explained else ()
        fixed = _AGE_WIDTH + self._author_width + _SCORE_WIDTH + 3 * _GAP + len(self._groups) * _HEAD_WIDTH
        fitting = max((width - fixed - _TRAITS_WIDTH_MIN) // _HEAD_WIDTH, 0)
        by_likelihood = sorted(range(len(view.heads)), key=lambda j: -_mean_probability(view, j))
        self.heads_hidden = tuple(sorted(by_likelihood[fitting:]))
        self._heads = tuple(sorted(by_likelihood[:fitting]))
        self._head_names = tuple(_printable(view.heads[j]) for j in self._heads)
        room = width - fixed - len(self._heads) * _HEAD_WIDTH
        self._traits_width = max(min(room, _TRAITS_WIDTH_MAX), 0)

    def header(self) -> str:
        return self._join("age", "author", "what it is", "score", (*self._groups, *self._head_names))

    def line(self, tweet: TweetView) -> str:
        probabilities = tuple(probability_words(tweet.probabilities[j]) for j in self._heads)
        traits = _printable(" · ".join(tweet.traits))
        groups = tuple(map(contribution_words, tweet.contributions)) or ("",) * len(self._groups)
        numbers = (*groups, *probabilities)
        return self._join(age_words(tweet.age_ms), _author(tweet), traits, score_words(tweet.score), numbers)

    def _join(self, age: str, author: str, traits: str, score: str, numbers: tuple[str, ...]) -> str:
        cells = [
            age.rjust(_AGE_WIDTH),
            author.ljust(self._author_width),
            _crop(traits, self._traits_width).ljust(self._traits_width),
            score.rjust(_SCORE_WIDTH),
        ]
        columns = "".join(_crop(number, _HEAD_WIDTH - 1).rjust(_HEAD_WIDTH) for number in numbers)
        return _crop((" " * _GAP).join(cells) + columns, self._width)


def _facts(view: TimelineView) -> list[tuple[str, str]]:
    arms = "".join(f" · {experiment}={arm}" for experiment, arm in sorted(view.arms.items()))
    features = ", ".join(f"{count} {state}" for state, count in view.features.items())
    stages = " + ".join(f"{stage} {milliseconds_words(us)}" for stage, us in view.stages_us.items())
    total = milliseconds_words(sum(view.stages_us.values()))
    why = [("why", "viewer, author, tweet: the score less what it would be without their features")]
    return [
        *(why if view.explained else []),
        ("model", f"{view.model_version} · policy {view.policy_version}{arms}"),
        ("candidates", f"{_count(len(view.tweets), 'Tweet')} by {_count(view.author_count, 'author')}"),
        ("features", f"{features} (columns)"),
        ("ICYMI", view.icymi),
        ("degradation", view.degradation),
        ("server ms", f"{total} = {stages}"),
        ("round trip", f"{milliseconds_words(view.round_trip_us)} ms"),
    ]


def _author(tweet: TweetView) -> str:
    return f"@{tweet.author_id}"


def _mean_probability(view: TimelineView, head: int) -> float:
    scored = [tweet.probabilities[head] for tweet in view.tweets if tweet.scored]
    return sum(scored) / len(scored) if scored else 0.0


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _printable(text: str) -> str:
    """The text with all signs that could move the cursor or change colours replaced."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _crop(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"[:width]
