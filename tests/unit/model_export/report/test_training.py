"""Sections on training and cost."""

from __future__ import annotations

import re
from typing import Any

from model_export.report.training import cost, training


def _epoch(loss: float, rce: list[float], **more: Any) -> dict[str, Any]:
    return {"loss": loss, "rce": rce, "score": rce[0], "examples_per_s": 1.0, **more}


def test_the_loss_is_drawn_as_finely_as_it_was_kept() -> None:
    """Two epochs of three parts each: six points in order, falling on the page as the loss falls, and two marks."""
    history = [
        _epoch(3.0, [1.5, float("nan")], losses=[5.0, 2.5, 1.5]),
        _epoch(1.0, [1.25, 2.0], losses=[1.25, 1.0, 0.75]),
    ]
    section = training(["<like>", "reply"], history)

    path = re.search(r'class="line" d="M([^"]+)"', section)
    assert path is not None
    points = [tuple(map(float, point.split())) for point in path[1].split("L")]
    assert len(points) == 6
    assert points == sorted(points)
    assert [y for _, y in points] == sorted(y for _, y in points)  # down the page
    assert section.count("<circle") == 2
    assert '<th scope="row">1, kept</th><td>3.0000</td><td>1.50</td><td>–</td>' in section
    assert "&lt;like&gt;" in section


def test_runs_that_kept_epochs_alone_are_drawn_too() -> None:
    """A point an epoch, even a single one."""
    assert training(["like"], [_epoch(2.0, [1.0])]).count("<circle") == 1


def test_a_million_timelines_are_counted_in_hours() -> None:
    """By hand: 1.8 ms each are 1,800 s, half an hour; sizes add up."""
    section = cost(1.8, {"model.onnx": 1_500_000, "manifest.json": 20_000}, training_s=61.0, epochs=2)
    for said in ("1.80 ms of one core", "0.50 core hours", "training, 2 epochs", "61 s", "1.50 MB", "1.52 MB"):
        assert f"{said}</" in section
