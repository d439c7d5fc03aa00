"""How training went, and what it and the model cost: sections of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from model_export.baselines.cost import AUTHORS, ROWS, graph_call, race, timelines
from model_export.datasets.records import Impressions
from model_export.report import page
from model_export.report.charts import curve_chart

_ROUNDS = 40


def training(heads: Sequence[str], history: Sequence[Mapping[str, Any]]) -> str:
    """The loss as training went on, and the quality on the validation days after each epoch.

    Args:
        heads: Names.
        history: Of each epoch what `model_export.train.Epoch` says.
    """
    ends = np.arange(1, len(history) + 1, dtype=np.float64)
    losses = [epoch.get("losses") or [epoch["loss"]] for epoch in history]
    x = np.concatenate([i + (np.arange(len(parts)) + 0.5) / len(parts) for i, parts in enumerate(losses)])
    means = np.array([epoch["loss"] for epoch in history])
    chart = curve_chart("Training loss", x, np.concatenate(losses), (ends - 0.5, means), "epochs", "loss")
    best = max(range(len(history)), key=lambda i: float(history[i]["score"]))
    rows = []
    for i, epoch in enumerate(history):
        name = f"{i + 1}, kept" if i == best else str(i + 1)
        rows.append([name, f"{epoch['loss']:.4f}", *(page.figure(value, ".2f") for value in epoch["rce"])])
    return f"""<h2>How did training go?</h2>
<p>The loss that training brings down: the cross-entropy of all engagements together. An epoch is one pass over all
examples; each mark is the mean of one. After every epoch the net was tried on a later day; the best one was kept.</p>
<div class="grid-of-charts"><div class="card">{chart}</div></div>
<p class="note" style="margin-top:12px">RCE in percent on the validation days, after each epoch:</p>
{page.table(["epoch", "loss", *heads], rows)}"""


def score_ms(model: bytes, impressions: Impressions) -> float:
    """Median CPU time of a graph on a timeline of ROWS Tweets by AUTHORS authors, in ms, on one thread."""
    return race({"graph": graph_call(model, timelines(impressions))}, _ROUNDS)["graph"]


def cost(ms: float, sizes: Mapping[str, int], training_s: float, epochs: int) -> str:
    """What it takes to score, to store and to train.

    Args:
        ms: As `score_ms` measures it.
        sizes: Bytes of the bundle's files by name.
        training_s: Seconds of training.
        epochs: How many it had.
    """
    rows = [
        [f"scoring {ROWS} Tweets of {AUTHORS} authors", f"{ms:.2f} ms of one core"],
        ["a million such timelines", f"{ms * 1_000 / 3_600:.2f} core hours"],
        [f"training, {epochs} epochs", f"{training_s:,.0f} s"],
        *([escape(name), f"{size / 1e6:.2f} MB"] for name, size in sizes.items()),
        ["the whole bundle", f"{sum(sizes.values()) / 1e6:.2f} MB"],
    ]
    return f"""<h2>What does it cost?</h2>
<p>Scoring is the graph alone, timed when this page was made: what the server adds to it,
<code>make bench</code> says.</p>
{page.table(["part", "cost"], rows)}"""
