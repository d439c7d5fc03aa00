"""Small charts as inline SVG, their colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_WIDTH, _HEIGHT = 320.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 18.0, 8.0, 38.0


def reliability_chart(title: str, before: tuple[Floats, Floats], after: tuple[Floats, Floats]) -> str:
    """Reliability diagram on logarithmic axes, before and after calibration.

    Args:
        title: Read to those who can not see it.
        before: (mean prediction, rate) of each bin, as from `model_export.evaluate.reliability`.
        after: Likewise. A zero is drawn at the edge of the chart, a triangle in place of a point.
    """
    positive = np.concatenate([*before, *after])
    positive = positive[positive > 0]
    low = min(math.floor(math.log10(positive.min())), -1) if len(positive) else -1
    axes = _axes(low, low, "predicted", "happened")
    diagonal = f'<path class="ideal" d="M{_x(low, low):.1f} {_y(low, low):.1f}L{_x(0, low):.1f} {_y(0, low):.1f}"/>'
    points = _points(before, low, "before") + _points(after, low, "after")
    return _svg(title, axes + diagonal + points)


def histogram_chart(title: str, edges: Floats, with_it: Floats, without: Floats) -> str:
    """Two histograms over a logarithmic axis, each a share of its own kind of impressions; `edges` end at 1."""
    exponents = np.log10(edges)
    low = float(exponents[0])
    top = max(float(with_it.max()), float(without.max())) or 1.0
    shapes = ""
    for values, name in ((without, "without"), (with_it, "with")):
        steps = "".join(
            f"L{_x(left, low):.1f} {_of_height(value / top):.1f}L{_x(right, low):.1f} {_of_height(value / top):.1f}"
            for left, right, value in zip(exponents[:-1], exponents[1:], values, strict=True)
        )
        shapes += f'<path class="area {name}" d="M{_x(low, low):.1f} {_of_height(0):.1f}{steps}V{_of_height(0):.1f}Z"/>'
    ticks = "".join(
        f'<text class="tick" x="{_LEFT - 6}" y="{_of_height(share) + 4:.1f}" text-anchor="end">{share * top:.0%}</text>'
        for share in (0.0, 0.5, 1.0)
    )
    return _svg(title, _axes(int(low), None, "predicted probability", "share") + ticks + shapes)


def curve_chart(title: str, x: Floats, y: Floats, marks: tuple[Floats, Floats], label_x: str, label_y: str) -> str:
    """A curve y over x from 0 on linear axes, x ticked at whole numbers, and marks in another colour.

    Args:
        title: Read to those who can not see it.
        x: Rising.
        y: Likewise long; at least one value.
        marks: (x, y).
        label_x: Of the axis.
        label_y: Likewise.
    """
    values = np.concatenate([y, marks[1]])
    low, high = float(values.min()), float(values.max())
    room = 0.06 * (high - low) or 0.5
    low, high = low - room, high + room
    end = max(math.ceil(np.max(np.concatenate([x, marks[0]]))), 1)

    def place(at: float, value: float) -> tuple[float, float]:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at / end, _of_height((value - low) / (high - low))

    bottom = _HEIGHT - _BOTTOM
    parts = []
    for tick in range(end + 1):
        across, _ = place(tick, low)
        parts.append(f'<path class="grid" d="M{across:.1f} {_TOP}V{bottom}"/>')
        parts.append(f'<text class="tick" x="{across:.1f}" y="{bottom + 14}" text-anchor="middle">{tick}</text>')
    for value in np.linspace(low + room, high - room, 4):
        _, up = place(0, float(value))
        parts.append(f'<path class="grid" d="M{_LEFT} {up:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    line = "L".join("{:.1f} {:.1f}".format(*place(*point)) for point in zip(x.tolist(), y.tolist(), strict=True))
    points = (place(*point) for point in zip(marks[0].tolist(), marks[1].tolist(), strict=True))
    circles = "".join(f'<circle cx="{across:.1f}" cy="{up:.1f}" r="3.5"/>' for across, up in points)
    shapes = f'<g class="after"><path class="line" d="M{line}"/></g><g class="before">{circles}</g>'
    return _svg(title, "".join(parts) + _labels(label_x, label_y) + shapes)


def sparkline(histogram: Sequence[float]) -> str:
    """Bars of a histogram, without axes; empty for no bins."""
    if not histogram:
        return ""
    top = max(histogram) or 1.0
    width = 100 / len(histogram)
    bars = "".join(
        f'<rect x="{i * width:.2f}" y="{20 - 20 * value / top:.2f}" width="{width * 0.85:.2f}" '
        f'height="{20 * value / top:.2f}"/>'
        for i, value in enumerate(histogram)
    )
    return f'<svg class="spark" viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">{bars}</svg>'


def _points(line: tuple[Floats, Floats], low: int, name: str) -> str:
    """A line through the bins and a mark on each."""
    places, marks = [], ""
    for predicted, rate in zip(*line, strict=True):
        x = _x(math.log10(predicted) if predicted > 0 else low, low)
        y = _y(math.log10(rate) if rate > 0 else low, low)
        places.append(f"{x:.1f} {y:.1f}")
        if predicted > 0 and rate > 0:
            marks += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
        else:
            marks += f'<path class="zero" d="M{x - 4:.1f} {y - 7:.1f}h8l-4 7z"/>'
    return f'<g class="{name}"><path class="line" d="M{"L".join(places)}"/>{marks}</g>'


def _axes(low_x: int, low_y: int | None, label_x: str, label_y: str) -> str:
    """Grid and labels; decades from 10^low to 1. Without `low_y` the upright axis has no grid."""
    bottom = _HEIGHT - _BOTTOM
    parts = []
    for exponent in _decades(low_x):
        x = _x(exponent, low_x)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{_percent(exponent)}</text>'
        )
    for exponent in _decades(low_y) if low_y is not None else ():
        y = _y(exponent, low_x)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_percent(exponent)}</text>'
        )
    return "".join(parts) + _labels(label_x, label_y)


def _labels(label_x: str, label_y: str) -> str:
    across, up = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    return (
        f'<text class="label" x="{across}" y="{_HEIGHT - 5}" text-anchor="middle">{label_x}</text>'
        f'<text class="label" transform="translate(11 {up}) rotate(-90)" text-anchor="middle">{label_y}</text>'
    )


def _percent(exponent: int) -> str:
    """A power of ten as a percentage."""
    return f"{10.0 ** (exponent + 2):g}%"


def _decades(low: int) -> range:
    """Exponents to label; every second one where they are many."""
    return range(0, low - 1, -1 if low >= -5 else -2)


def _x(exponent: float, low: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (exponent - low) / -low


def _y(exponent: float, low: float) -> float:
    return _of_height((exponent - low) / -low)


def _of_height(share: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share


def _svg(title: str, content: str) -> str:
    box = f"0 0 {_WIDTH:g} {_HEIGHT:g}"
    return f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(title)}">{content}</svg>'
