"""The table and the plot of the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from model_export.baselines.report import plot, table


def _entry(rce: float, **more: Any) -> dict[str, Any]:
    return {
        "rce": rce,
        "rce_low": rce - 1,
        "rce_high": rce + 1,
        "pr_auc": 0.25,
        "pr_auc_low": 0.2,
        "pr_auc_high": 0.3,
        "calibration_error": 0.04,
        "evaluated_positives": 1234,
        **more,
    }


@pytest.fixture
def document() -> dict[str, Any]:
    costs = {"train_s": 12.0, "size_bytes": 2_000_000, "ms_per_500": 0.5, "cpu_s_per_million": 1800.0}
    behind = {"value": -2.0, "low": -3.0, "high": -1.0, "verdict": "behind"}
    tie = {"value": 0.01, "low": -0.1, "high": 0.1, "verdict": "tie"}
    trees = {
        "like": _entry(8.0, rce_difference=behind, pr_auc_difference=tie, reachable_rce=16.0),
        "reply": _entry(4.0, rce_difference=tie, pr_auc_difference=tie),
    }
    return {
        "simulated": True,
        "train_rows": {"trees": 3_000, "logistic": 2_000, "net": 40_000},
        "products": ["tweet.text x viewer.tastes"],
        "models": {
            "net": {**costs, "heads": {"like": _entry(10.0, reachable_rce=16.0), "reply": _entry(4.0)}},
            "net, plain export": {**costs, "heads": {}},
            "trees": {**costs, "ms_per_500": 25.0, "heads": trees},
        },
    }


def test_a_row_for_each_model_and_head(document: dict[str, Any]) -> None:
    """Costs stand with a model's first head, shares where there is a reachable, verdicts with all but the net."""
    lines = [" ".join(line.split()) for line in table(document).splitlines()]
    assert lines[1:4] == [
        "net like 10.00 9.00 to 11.00 0.625 0.2500 0.2000 to 0.3000 0.040 12 2.00 0.50 0.50",
        "reply 4.00 3.00 to 5.00 - 0.2500 0.2000 to 0.3000 0.040",
        "net, plain export (as above) 12 2.00 0.50 0.50",
    ]
    assert lines[4].startswith("trees like 8.00 7.00 to 9.00 0.500 behind -2.00 0.2500 0.2000 to 0.3000 tie +0.0100")
    assert lines[5].startswith("reply 4.00 3.00 to 5.00 - tie +0.01 0.2500")
    footing = "The net learned from 40,000 rows, trees from 3,000, regressions from 2,000."
    assert lines[6:] == [f"{footing} All have the inner product tweet.text x viewer.tastes as a feature."]
    assert table({**document, "products": []}).splitlines()[-1] == footing


def test_the_plot_is_a_picture(document: dict[str, Any], tmp_path: Path) -> None:
    """It can be read back and is not blank."""
    plot(document, tmp_path / "plot.png")
    picture = matplotlib.image.imread(tmp_path / "plot.png")
    assert min(picture.shape[:2]) > 200
    assert picture.std() > 0.05
