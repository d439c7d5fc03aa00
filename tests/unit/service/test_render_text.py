from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.render_text import REMAINDER_SHOWN, render_text
from service.timeline_view import TimelineView, timeline_view
from tests import timelines

EXAMPLE = """\
In case you missed it · 1 Tweet, best first
   age  author  what it is                               score     like negativ…
    2d  @900    reply                                   1.2500    50.0%    25.0%

Top Tweets · 1 Tweet, newest first
   age  author  what it is                               score     like negativ…
    5m  @901    reply · link card · en                  0.5000    12.5%   <0.01%

Everything else · 2 Tweets, newest first
   age  author  what it is                               score     like negativ…
 in 1m  @901                                                 –        –        –
    3h  @900    ja                                     -0.2500    3.12%    0.05%

model        abc123 · policy def456 · ranker=b
candidates   4 Tweets by 2 authors
features     5 present, 2 absent, 3 unknown (columns)
ICYMI        shown
degradation  partial: only the newest candidates scored
server ms    1.00 = decode 0.10 + queue 0.00 + align 0.02 + score 0.70 + combine
             0.03 + build 0.15
round trip   2.35 ms
"""

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def view_of(request: pb.RankTimelineRequest, response: pb.RankTimelineResponse) -> TimelineView:
    return timeline_view(request, response, now_ms=timelines.NOW_MS, round_trip_us=2_345)


@pytest.fixture
def view() -> TimelineView:
    return view_of(timelines.request(), timelines.response())


def long_remainder() -> TimelineView:
    """120 Tweets, none of them ranked."""
    ids = range(1, 121)
    request = pb.RankTimelineRequest(
        viewer_id=1,
        candidates=pb.Candidates(tweet_ids=ids, created_at_ms=ids, author_index=[0] * 120, author_ids=[5]),
    )
    response = pb.RankTimelineResponse(
        remainder=pb.Section(tweet_ids=reversed(ids), scores=[0.5] * 120, probabilities=[0.5] * 120), heads=["like"]
    )
    return view_of(request, response)


def test_draws_three_sections_and_the_facts(view: TimelineView) -> None:
    """The whole of a small example, as a person reads it."""
    assert render_text(view, 80, colour=False, whole=False) == EXAMPLE


def test_an_explained_answer_says_what_each_group_adds() -> None:
    """Of the Tweets that are shown for it; probabilities have the room that is left."""
    lines = render_text(view_of(timelines.request(), timelines.explained()), 100, colour=False, whole=False).split("\n")

    assert [line.split() for line in lines[1:3]] == [
        ["age", "author", "what", "it", "is", "score", "viewer", "author", "tweet", "like", "negativ…"],
        ["2d", "@900", "reply", "1.2500", "+0.2500", "+1.1250", "-0.1250", "50.0%", "25.0%"],
    ]
    assert lines[6].split()[-6:] == ["0.5000", "+0.0000", "+0.5000", "+0.0312", "12.5%", "<0.01%"]
    assert lines[11].split()[-4:] == ["ja", "-0.2500", "3.12%", "0.05%"]
    assert lines[13].startswith("why          viewer, author, tweet: ")


def test_colour_changes_no_letter(view: TimelineView) -> None:
    """With the codes taken out the text is the same."""
    coloured = render_text(view, 80, colour=True, whole=False)

    assert coloured != EXAMPLE
    assert ANSI.sub("", coloured) == EXAMPLE


def test_a_long_remainder_is_abbreviated_with_its_count() -> None:
    """The first few, and how many more."""
    text = render_text(long_remainder(), 80, colour=False, whole=False)

    assert text.count("@5") == REMAINDER_SHOWN == 5
    assert "… and 115 more (--all shows them)\n" in text


def test_the_whole_remainder_is_shown_when_asked_for() -> None:
    """Nothing is left out, and nothing says so."""
    text = render_text(long_remainder(), 80, colour=False, whole=True)

    assert text.count("@5") == 120
    assert "more" not in text


def test_heads_that_do_not_fit_are_named() -> None:
    """The most likely ones stay, in the model's order."""
    response = timelines.response()
    response.heads[:] = ["negative_feedback", "like"]

    text = render_text(view_of(timelines.request(), response), 66, colour=False, whole=False)

    assert "score negativ…\n" in text
    assert "no room for: like (a wider terminal shows them)\n" in text


@given(width=st.integers(min_value=24, max_value=200))
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """However narrow it is, as long as a word of a fact fits."""
    view = long_remainder()

    lines = render_text(view, width, colour=False, whole=False).splitlines()

    assert max(len(line) for line in lines) <= width


def test_signs_that_steer_a_terminal_are_not_written() -> None:
    """Neither from the request nor from the answer."""
    request, response = timelines.request(), timelines.response()
    request.candidates.tweets.categorical[0].vocabulary[0] = "\x1b[2Jen"
    response.heads[0] = "li\x1bke"
    response.served_by.model_version = "\x9b31m"

    text = render_text(view_of(request, response), 80, colour=False, whole=True)

    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "\N{REPLACEMENT CHARACTER}[2Jen" in text


def test_an_empty_timeline_is_three_empty_sections() -> None:
    """No table heads without a table."""
    text = render_text(view_of(pb.RankTimelineRequest(), pb.RankTimelineResponse()), 80, colour=False, whole=False)

    assert text.startswith("In case you missed it · 0 Tweets\n\nTop Tweets · 0 Tweets\n\nEverything else · 0 Tweets\n")
    assert "what it is" not in text
