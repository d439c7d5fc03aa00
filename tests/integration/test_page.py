from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.render_html import render_html
from service.timeline_view import timeline_view
from tests import timelines

pytestmark = pytest.mark.foreign

# Chromium's narrowest window; phones are narrower still, and below the same breakpoint.
PHONE, DESKTOP = 500, 1400

# What the browser made of the page, put where --dump-dom prints it.
LOOK = """<script>
const box = id => { const b = document.getElementById(id).getBoundingClientRect();
                    return {left: b.left, right: b.right, height: b.height}; };
const seen = {width: innerWidth, scrollWidth: document.documentElement.scrollWidth,
              ranking: box("ranking"), newestFirst: box("newest-first"),
              tabs: document.querySelector(".tabs").getBoundingClientRect().height,
              background: getComputedStyle(document.body).backgroundColor};
document.title = JSON.stringify(seen);
</script></body>"""


@pytest.fixture
def page() -> str:
    """A page with long names in every place, without the policy that would stop the script that looks at it."""
    request, response = timelines.request(), timelines.response()
    request.candidates.tweets.categorical[0].vocabulary[0] = "a category with a name that is longer than most are"
    response.heads[1] = "a_kind_of_engagement_with_a_long_name"
    response.served_by.arms["an_experiment_with_a_long_name"] = "an_arm_with_a_long_name"
    response.icymi_decision = pb.ICYMI_DECISION_BELOW_FLOOR
    written = render_html(timeline_view(request, response, now_ms=timelines.NOW_MS, round_trip_us=2_345))
    without_policy, count = re.subn(r"<meta http-equiv=[^>]*>", "", written)
    assert count == 1
    return without_policy.replace("</body>", LOOK)


def look(page: str, width: int, directory: Path, *flags: str) -> dict[str, Any]:
    """Where the parts of the page are in a window of this width."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    (directory / "page.html").write_text(page)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", *flags]
    command += [f"--user-data-dir={directory / 'profile'}", f"--window-size={width},900", "--dump-dom"]
    done = subprocess.run(
        [*command, (directory / "page.html").as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr
    seen: dict[str, Any] = json.loads(html.unescape(title[1]))
    assert seen["width"] == width
    return seen


def test_a_desktop_shows_both_timelines_side_by_side(page: str, tmp_path: Path) -> None:
    """Nothing overflows, and there is nothing to switch."""
    seen = look(page, DESKTOP, tmp_path)

    assert seen["scrollWidth"] == DESKTOP
    assert 0 < seen["ranking"]["right"] < seen["newestFirst"]["left"]
    assert seen["tabs"] == 0


def test_a_phone_shows_one_timeline_and_a_switch(page: str, tmp_path: Path) -> None:
    """As wide as the screen and no wider; the other one is a tap away."""
    seen = look(page, PHONE, tmp_path)

    assert seen["scrollWidth"] == PHONE
    assert seen["ranking"]["height"] > 0
    assert seen["newestFirst"]["height"] == 0
    assert seen["tabs"] > 0


def test_the_switch_shows_the_other_timeline(page: str, tmp_path: Path) -> None:
    """With no script of the page's own."""
    switched = page.replace("<script>", "<script>document.getElementById('tab-newest-first').click();", 1)

    seen = look(switched, PHONE, tmp_path)

    assert seen["ranking"]["height"] == 0
    assert seen["newestFirst"]["height"] > 0


def test_a_dark_system_gets_a_dark_page(page: str, tmp_path: Path) -> None:
    """By the browser's own preference."""
    light = look(page, DESKTOP, tmp_path)
    dark = look(page, DESKTOP, tmp_path, "--blink-settings=preferredColorScheme=0")

    assert (light["background"], dark["background"]) == ("rgb(245, 246, 248)", "rgb(15, 18, 24)")
