"""Charts are read back as a browser would: as XML with coordinates."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from model_export.report.charts import curve_chart, histogram_chart, reliability_chart, sparkline


def test_points_lie_where_they_should() -> None:
    """Perfect bins lie on the dashed line, and a bin of a tenth of the rate is a decade below it."""
    predicted = np.array([0.001, 0.01, 0.1])
    chart = ET.fromstring(reliability_chart("a < b", (predicted, predicted / 10), (predicted, predicted)))  # noqa: S314  # our own

    x0, y0, x1, y1 = map(float, re.findall(r"[\d.]+", chart.find("path[@class='ideal']").get("d")))  # type: ignore[union-attr, arg-type]  # it is there
    decade_x, decade_y = (x1 - x0) / 4, (y0 - y1) / 4  # from 0.0001, the lowest rate, to 1

    def points(name: str) -> list[tuple[float, float]]:
        circles = chart.findall(f"g[@class='{name}']/circle")
        return [(float(circle.attrib["cx"]), float(circle.attrib["cy"])) for circle in circles]

    expected = [(x0 + i * decade_x, y0 - i * decade_y) for i in (1, 2, 3)]
    assert np.array(points("after")) == pytest.approx(np.array(expected), abs=0.1)
    assert np.array(points("before")) == pytest.approx(np.array(expected) + np.array([0, decade_y]), abs=0.1)
    assert chart.get("aria-label") == "a < b"


def test_a_bin_without_a_positive_is_drawn_at_the_edge() -> None:
    """As a triangle: a logarithmic axis has no zero."""
    line = np.array([0.01, 0.1]), np.array([0.0, 0.1])
    chart = reliability_chart("zero", line, line)

    assert chart.count('class="zero"') == 2
    assert chart.count("<circle") == 2


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_class_only_can_be_drawn(value: float) -> None:
    """Nothing but zeros, or nothing but ones."""
    line = np.array([value]), np.array([value])

    assert "nan" not in reliability_chart("extreme", line, line)


def test_the_higher_histogram_fills_its_chart() -> None:
    """Both share one scale; an empty one stays on the ground."""
    edges = np.logspace(-2, 0, 3)
    chart = ET.fromstring(histogram_chart("scores", edges, np.array([0.0, 0.0]), np.array([0.25, 0.75])))  # noqa: S314  # our own

    ticks = [text.text for text in chart.findall("text[@text-anchor='end']")]
    assert ticks == ["0%", "38%", "75%"]
    assert len(chart.findall("path")) == 3 + 2


def test_a_sparkline_has_a_bar_for_each_bin() -> None:
    """And none for a feature that was never seen."""
    assert sparkline([1.0, 4.0, 2.0]).count("<rect") == 3
    assert sparkline([]) == ""


def test_a_curve_is_drawn_to_scale() -> None:
    """Equal steps of value are equal steps up the page, from the first to the last whole number across."""
    x, y = np.array([0.0, 1.0, 2.0]), np.array([3.0, 2.0, 1.0])
    chart = ET.fromstring(curve_chart("curve", x, y, (np.array([2.0]), np.array([1.0])), "across", "up"))  # noqa: S314  # our own

    line = chart.find("g[@class='after']/path")
    circle = chart.find("g[@class='before']/circle")
    assert line is not None
    assert circle is not None
    points = [tuple(map(float, point.split())) for point in line.attrib["d"].removeprefix("M").split("L")]
    assert np.diff([across for across, _ in points]) == pytest.approx([120.0, 120.0])
    first, second = np.diff([up for _, up in points])
    assert first == pytest.approx(second, abs=0.11)
    assert first > 50
    assert (float(circle.attrib["cx"]), float(circle.attrib["cy"])) == points[2]
    assert [text.text for text in chart.findall("text[@class='tick']")][:3] == ["0", "1", "2"]
    assert [text.text for text in chart.findall("text[@class='label']")] == ["across", "up"]


def test_a_single_point_has_a_chart_too() -> None:
    """No width, no height: the axes still have a range."""
    one = np.array([0.5]), np.array([2.0])
    assert "nan" not in curve_chart("curve", *one, one, "across", "up")
