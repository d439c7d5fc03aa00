"""`timeline-trainer report` on a small run."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from model_export.__main__ import main
from model_export.plan import Plan
from model_export.run import RUN_FILE, run_plan

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what would reach out of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.reaching_out: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.reaching_out += [name for name, _ in attrs if name in ("src", "href")] + ([tag] if tag == "script" else [])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_run_becomes_one_page(
    small_plan: Callable[..., Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its path is on stdout; it stands alone, and says the figures of the step `test` and of this model's baselines."""
    artifacts = run_plan(small_plan(), tmp_path / "run")
    own = {name: artifacts[name].name for name in ("data", "train", "calibrate")} | {"fit_baselines": "fit_baselines-1"}
    _put_baselines(tmp_path / "run" / "baselines-1", own, rce=12.34)
    _put_baselines(tmp_path / "run" / "baselines-2", {**own, "train": "train-other"}, rce=56.78)
    (tmp_path / "run" / "baselines-3.partial").mkdir()
    capsys.readouterr()

    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    text = (tmp_path / "page.html").read_text()

    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.reaching_out == []
    assert "url(" not in text
    assert "nan" not in text
    metrics = json.loads((artifacts["test"] / "metrics.json").read_text())
    for figures in metrics.values():
        assert f"<td>{figures['rce']:.2f}</td>" in text
        assert f"<td>{figures['reachable_pr_auc']:.4f}</td>" in text
    assert '<td>12.34<small class="note"> behind<br>-2.00 to -0.50</small></td>' in text
    assert "The net learned from 3 rows, trees from 2, regressions from 1." in text
    assert "<td>0.1234</td>" in text
    assert "56.78" not in text
    # Two diagrams of 20 bins for each of two heads, a zero being a triangle, and a mark for each of two epochs.
    assert text.count("<circle") + text.count('class="zero"') == 2 * 20 * 2 + 2
    assert "ms of one core</td>" in text
    assert "All 5 numbers" in text


def _put_baselines(artifact: Path, inputs: dict[str, str], rce: float) -> None:
    artifact.mkdir()
    (artifact / "artifact.json").write_text(json.dumps({"inputs": inputs}))
    behind = {"value": -1.0, "low": -2.0, "high": -0.5, "verdict": "behind"}
    heads = {"like": {"rce": rce, "pr_auc": 0.1234, "rce_difference": behind}, "reply": {"rce": 1.0, "pr_auc": 0.5}}
    model = {"heads": heads, "ms_per_500": 1.0, "cpu_s_per_million": 1.0, "size_bytes": 1, "train_s": 1.0}
    document = {"models": {"logistic": model}, "train_rows": {"trees": 2, "logistic": 1, "net": 3}, "products": []}
    (artifact / "baselines.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "holds no finished run"),
        ({"plan": {}, "artifacts": {"data": "data-1"}}, "has no step verify"),
        ({"plan": {}, "artifacts": {"verify": "verify-1"}}, "verify-1 is gone"),
    ],
)
def test_no_page_without_a_whole_run(
    document: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, the reason on stderr, no page."""
    if document is not None:
        (tmp_path / RUN_FILE).write_text(json.dumps(document))

    assert main(["report", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert not (tmp_path / "report.html").exists()
