from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.render_html import render_html
from service.timeline_view import timeline_view
from tests import timelines

VOID = {"meta", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what stands where.

    Attributes:
        cards: Id of each Tweet's card -> the words in it, in page order.
        links: Targets of links.
        attributes: Names and values of all attributes.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cards: dict[str, str] = {}
        self.links: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._open: list[str] = []
        self._card = ""
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        values = dict(attrs)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "li":
            self._card = values["id"] or ""
            assert self._card not in self.cards
            self.cards[self._card] = ""
        if tag == "a":
            self.links.append(values["href"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "li":
            self._card = ""

    def handle_data(self, data: str) -> None:
        if self._card:
            self.cards[self._card] += data.strip() + " "


def page_of(request: pb.RankTimelineRequest, response: pb.RankTimelineResponse) -> Page:
    return Page(render_html(timeline_view(request, response, now_ms=timelines.NOW_MS, round_trip_us=2_345)))


def test_shows_every_tweet_in_both_orders() -> None:
    """Ranked on one side (r), newest first on the other (t)."""
    page = page_of(timelines.request(), timelines.response())

    assert list(page.cards) == ["r13", "r11", "r14", "r12", "t14", "t11", "t12", "t13"]


def test_a_card_says_who_when_what_and_how_likely() -> None:
    """The same facts as the terminal's line."""
    page = page_of(timelines.request(), timelines.response())

    assert page.cards["r11"].split() == [
        "@901", "5m", "reply", "link", "card", "en", "#2", "by", "time", "0.5000", "like", "12.5%", "negative",
        "feedback", "<0.01%",
    ]  # fmt: skip
    assert page.cards["t13"].split()[:5] == ["@900", "2d", "reply", "ICYMI", "1"]
    assert page.cards["r14"].split() == ["@901", "in", "1m", "–"]


def test_an_explained_card_says_what_each_group_adds() -> None:
    """Where a Tweet is drawn out, and nowhere else."""
    page = page_of(timelines.request(), timelines.explained())

    for card in ("r13", "t13"):
        assert page.cards[card].split()[-6:] == ["viewer", "+0.2500", "author", "+1.1250", "tweet", "-0.1250"]
    assert page.cards["r12"].split() == page_of(timelines.request(), timelines.response()).cards["r12"].split()


def test_every_arm_has_a_line() -> None:
    """Under the model and the policy that they come to."""
    response = timelines.response()
    response.served_by.arms["colours"] = "many"
    html = render_html(timeline_view(timelines.request(), response, now_ms=0, round_trip_us=5))

    assert "<b>abc123</b><span>policy def456</span><span>colours=many</span><span>ranker=b</span></dd>" in html


def test_links_lead_to_the_same_tweet_in_the_other_column() -> None:
    """No link leads nowhere."""
    page = page_of(timelines.request(), timelines.response())

    assert page.links == ["#t13", "#t11", "#r11", "#r13"]
    assert all(link[1:] in page.cards for link in page.links)


def test_the_page_asks_nobody_for_anything() -> None:
    """No script, no address but its own anchors, and a policy that would stop one."""
    html = render_html(timeline_view(timelines.request(), timelines.response(), now_ms=0, round_trip_us=5))
    page = Page(html)

    assert not {name for name, _ in page.attributes} & {"src", "srcset", "action"}
    assert not any(word in html for word in ("<script", "<link", "http:", "https:", "url(", "@import"))
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


@pytest.mark.parametrize("field", ["category", "head", "model", "request"])
def test_text_of_others_stays_text(field: str) -> None:
    """Markup in any name is shown, not obeyed."""
    request, response = timelines.request(), timelines.response()
    hostile = '<img src="x">&amp;'
    if field == "category":
        request.candidates.tweets.categorical[0].vocabulary[0] = hostile
    elif field == "head":
        response.heads[0] = hostile
    elif field == "model":
        response.served_by.model_version = hostile
    else:
        response.request_id = hostile
    html = render_html(timeline_view(request, response, now_ms=0, round_trip_us=5))

    assert "<img" not in html
    assert "&lt;img src=&quot;x&quot;&gt;&amp;amp;" in html


def test_bars_span_from_the_worst_to_the_best_score() -> None:
    """1.25, 0.5 and -0.25: the ranked Tweet is half way."""
    html = render_html(timeline_view(timelines.request(), timelines.response(), now_ms=0, round_trip_us=5))

    assert re.findall(r'class="bar"><i style="width:([^"]*)"', html) == ["100.0%", "50.0%", "50.0%", "100.0%"]


def test_an_empty_module_says_why() -> None:
    """The decision stands where its Tweets would."""
    response = timelines.response()
    response.icymi.Clear()
    response.icymi_decision = pb.ICYMI_DECISION_TOO_RECENT

    html = render_html(timeline_view(timelines.request(), response, now_ms=0, round_trip_us=5))

    assert '<p class="empty">not shown: last visit too recent</p>' in html


def test_an_empty_timeline_is_a_page_too() -> None:
    """Both columns say that there is nothing."""
    html = render_html(timeline_view(pb.RankTimelineRequest(), pb.RankTimelineResponse(), now_ms=0, round_trip_us=5))

    assert Page(html).cards == {}
    assert html.count("No Tweets.") == 3
