"""Sections of the page that a small run does not show."""

from __future__ import annotations

import numpy as np

from model_export.report.page import baselines, importances, quality


def test_what_could_not_be_measured_is_a_dash() -> None:
    """A head without positives on real data: no NaN, no bar, and no word of what is reachable."""
    nan = float("nan")
    empty = {"rce": nan, "pr_auc": nan, "calibration_error": nan, "positives": 3, "evaluated_positives": 0}

    section = quality({"<share>": empty}, {"<share>": "prior_correction"}, {"<share>": (nan, nan)})

    assert "nan" not in section
    assert section.count("<td>–</td>") == 4
    assert "<td>– to –</td>" in section
    assert "Fewer than 5,000 positives to learn from: &lt;share&gt;." in section
    assert "width:0.0%" in section
    assert "reachable" not in section
    assert "&lt;share&gt;" in section
    assert "prior correction" in section


def test_what_calibration_lost_is_shown() -> None:
    """With its sign."""
    figures = {"rce": 5.0, "pr_auc": 0.1, "calibration_error": 0.2, "positives": 3, "evaluated_positives": 1}
    metrics = {"like": figures | {"calibration_gain": -0.25}, "reply": figures | {"calibration_gain": 0.5}}

    section = quality(metrics, dict.fromkeys(metrics, "isotonic"), dict.fromkeys(metrics, (1.0, 9.0)))

    assert "<td>-0.25</td>" in section
    assert "<td>+0.50</td>" in section


def test_features_are_listed_by_what_is_lost() -> None:
    """On average over the heads that could be measured; a bar is a share of the longest."""
    lost = {"tweet.a": np.array([1.0, np.nan]), "tweet.b": np.array([1.0, 3.0])}

    section = importances(["like", "reply"], {"tweet": np.array([4.0, 4.0])}, lost, 1_000)

    assert section.index("all of tweet") < section.index("tweet.b") < section.index("tweet.a")
    assert [section.count(f"width:{width}%") for width in ("100.0", "50.0", "25.0")] == [1, 1, 1]
    assert "nan" not in section


def test_without_baselines_the_page_says_how_to_get_them() -> None:
    """The command is named."""
    assert "timeline-trainer baselines" in baselines(None)
