"""Draws the report as one HTML page that needs nothing from anywhere else and runs no script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from model_export.baselines.report import footing
from model_export.discretize import Discretizer
from model_export.evaluate import reliability
from model_export.report.charts import histogram_chart, reliability_chart, sparkline
from model_export.report.importance import Lost
from model_export.report.observe import HISTOGRAM_EDGES, Observed, histograms

_FEATURES_SHOWN = 15
_POSITIVES_FEW = 5_000

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(title: str, sections: Iterable[str]) -> str:
    """The whole page; the title is text, the sections are HTML."""
    style = resources.files("model_export.report").joinpath("page.css").read_text(encoding="utf-8")
    return _PAGE.format(title=escape(title), style=style, body="\n".join(sections))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names its rows; the cells are HTML, the header is text."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return f'<div class="wide card"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(value: float, form: str) -> str:
    """A figure in a format, or a dash where it could not be measured (NaN)."""
    return "–" if math.isnan(value) else format(value, form)


def quality(
    metrics: Mapping[str, Mapping[str, float]],
    methods: Mapping[str, str],
    intervals: Mapping[str, tuple[float, float]],
) -> str:
    """Figures of each head on the test days, beside the reachable ones where these are known.

    Args:
        metrics: By head, as from `model_export.evaluate.evaluate_graph`.
        methods: By head, how it was calibrated.
        intervals: By head, 95 % of its RCE.
    """
    reachable = all("reachable_rce" in figures for figures in metrics.values())
    bars = "".join(_quality_bar(head, figures) for head, figures in metrics.items())
    mark = '<span><i class="mark"></i>the best that anyone could reach</span>' if reachable else ""
    header = [
        "engagement",
        "RCE %",
        "95 %",
        "PR-AUC",
        "calibration error",
        "calibration's gain",
        "positives trained on",
        "tested on",
        "calibrated by",
    ]
    if reachable:
        header[3:4] = ["reachable", "share", "PR-AUC", "reachable"]
    rows = []
    for head, figures in metrics.items():
        row = [escape(head)]
        low, high = intervals[head]
        row += [figure(figures["rce"], ".2f"), f"{figure(low, '.2f')} to {figure(high, '.2f')}"]
        row.append(figure(figures["pr_auc"], ".4f"))
        row.append(figure(figures["calibration_error"], ".1%"))
        row.append(figure(figures.get("calibration_gain", math.nan), "+.2f"))
        row += [f"{figures[name]:,.0f}" for name in ("positives", "evaluated_positives")]
        row.append(methods[head].replace("_", " "))
        if reachable:
            row[3:4] = [
                figure(figures["reachable_rce"], ".2f"),
                figure(figures["share"], ".1%"),
                row[3],
                figure(figures["reachable_pr_auc"], ".4f"),
            ]
        rows.append(row)
    return f"""<h2>How good are its estimates?</h2>
<p>Relative cross-entropy (RCE): how much of the uncertainty about each engagement is gone, compared with always
guessing its average rate. 0 is no better than that guess, 100 would be knowing the future. Measured on the last days,
which the model never saw.</p>
<p class="legend"><span><i class="good"></i>this model</span>{mark}</p>
<div class="card rows">{bars}</div>
<p class="note" style="margin-top:12px">PR-AUC: the mean precision when the likeliest Tweets are picked first.
Calibration error: how far predicted and real rates lie apart, as a share of the average rate. Calibration's
gain: RCE points above those of a net that only has its sampling undone; below zero where rates moved since the days it
was calibrated on, or where these had too few positives. 95 %: where the RCE would
lie for other viewers. {_few_positives(metrics)}</p>
{table(header, rows)}"""


def _few_positives(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Which heads had little to learn from; nothing where none."""
    few = [escape(head) for head, figures in metrics.items() if figures["positives"] < _POSITIVES_FEW]
    return f"Fewer than {_POSITIVES_FEW:,} positives to learn from: {', '.join(few)}." if few else ""


def _quality_bar(head: str, figures: Mapping[str, float]) -> str:
    best = figures.get("reachable_rce")
    mark = "" if best is None else f'<u style="left:{_bounded(best):.1f}%"></u>'
    note = "" if best is None else f"<small>{figure(figures['share'], '.1%')} of reachable</small>"
    width = _bounded(figures["rce"])
    return (
        f'<div class="row"><span>{escape(head)}</span><div class="bar"><i style="width:{width:.1f}%"></i>{mark}</div>'
        f"<b>{figure(figures['rce'], '.1f')} %{note}</b></div>"
    )


def baselines(document: Mapping[str, Any] | None) -> str:
    """RCE, PR-AUC and costs of the models that it was held against; says how to get them where there are none."""
    title = "<h2>Against what it replaces</h2>"
    if document is None:
        return f'{title}<p class="note">Not measured for this run: <code>timeline-trainer baselines</code> does.</p>'
    models = {name: model for name, model in document["models"].items() if model["heads"]}
    heads = list(next(iter(models.values()))["heads"])
    costs = [
        [
            escape(name),
            f"{model['ms_per_500']:.2f}",
            f"{model['cpu_s_per_million'] / 3_600:.2f}",
            f"{model['size_bytes'] / 1e6:.2f}",
            f"{model['train_s']:.0f}",
        ]
        for name, model in models.items()
    ]
    return f"""{title}
<p>Older algorithms on the same days, after the same calibration. A word beside a figure says how that model stands to
the net once chance is allowed for, the range below it by how much (95 %, by viewer). {escape(footing(document))}</p>
<h3>RCE in percent</h3>
{table(["model", *heads], _beside_the_net(models, "rce", ".2f"))}
<h3>PR-AUC</h3>
{table(["model", *heads], _beside_the_net(models, "pr_auc", ".4f"))}
<h3>Cost</h3>
{table(["model", "ms for 500 Tweets, one thread", "core hours a million", "MB", "seconds to train"], costs)}"""


def _beside_the_net(models: Mapping[str, Any], name: str, form: str) -> list[list[str]]:
    """A row per model: one figure of each head, with its verdict where there is one."""
    rows = []
    for model, document in models.items():
        cells = []
        for entry in document["heads"].values():
            difference = entry.get(f"{name}_difference")
            cells.append(figure(entry[name], form) + (_verdict(difference, form) if difference else ""))
        rows.append([escape(model), *cells])
    return rows


def _verdict(difference: Mapping[str, Any], form: str) -> str:
    """A word, and the interval of the difference on a line of its own."""
    low, high = (figure(difference[end], f"+{form}") for end in ("low", "high"))
    return f'<small class="note"> {escape(difference["verdict"])}<br>{low} to {high}</small>'


def calibration(heads: Sequence[str], observed: Observed) -> str:
    """Reliability diagrams before and after calibration, a chart per head."""
    charts = ""
    for j, head in enumerate(heads):
        truth = observed.truth[:, j]
        before, after = reliability(truth, observed.raw[:, j]), reliability(truth, observed.calibrated[:, j])
        title = f"Reliability of {head} before and after calibration"
        charts += f'<div class="card"><h3>{escape(head)}</h3>{reliability_chart(title, before, after)}</div>'
    return f"""<h2>Can its probabilities be taken at their word?</h2>
<p>Each point is a twentieth of {len(observed.truth):,} impressions of the test days, sorted by prediction: across, what
was predicted; up, how often it {"happens by the world's own law" if observed.simulated else "happened"}. On the dashed
line both agree. Training leaves out part of the impressions without the engagement, so that the net promises too much
at first; calibration puts that right.</p>
<p class="legend"><span><i class="other"></i>before calibration</span><span><i class="good"></i>after</span></p>
<div class="grid-of-charts">{charts}</div>"""


def scores(heads: Sequence[str], observed: Observed) -> str:
    """Histograms of calibrated probabilities, a chart per head."""
    charts = ""
    for j, head in enumerate(heads):
        with_it, without = histograms(observed.truth[:, j], observed.calibrated[:, j])
        chart = histogram_chart(f"Predicted probabilities of {head}", HISTOGRAM_EDGES, with_it, without)
        charts += f'<div class="card"><h3>{escape(head)}</h3>{chart}</div>'
    return f"""<h2>Does it tell them apart?</h2>
<p>What it predicted for impressions that got the engagement, and for those that did not, each as shares of its own
kind. The further apart the two shapes, the better.</p>
<p class="legend"><span><i class="good"></i>got the engagement</span><span><i class="other"></i>did not</span></p>
<div class="grid-of-charts">{charts}</div>"""


def importances(heads: Sequence[str], groups: Lost, features: Lost, rows: int) -> str:
    """Permutation importance: bars of the groups and of the features that matter most, and groups by head."""
    by_mean = sorted(features, key=lambda name: -_mean(features[name]))[:_FEATURES_SHOWN]
    top = max([_mean(lost) for lost in (*groups.values(), *features.values())] or [0.0])
    bars = "".join(_lost_bar(f"all of {name}", _mean(groups[name]), top, "row group") for name in groups)
    bars += "".join(_lost_bar(name, _mean(features[name]), top, "row") for name in by_mean)
    cells = [[escape(name), *(figure(value, ".2f") for value in lost)] for name, lost in groups.items()]
    return f"""<h2>What does it look at?</h2>
<p>The points of RCE that are lost, on average over the engagements, when a feature's values are dealt out at random
among {rows:,} impressions of the test days. Whole groups first, then the {len(by_mean)} features that matter most.
Features that say the same can stand in for one another: each of them then looks less important than it is.</p>
<div class="card rows">{bars}</div>
<p class="note" style="margin-top:12px">Points of RCE lost by engagement:</p>
{table(["group", *heads], cells)}"""


def _mean(lost: Any) -> float:
    """Over the heads that could be measured; 0 where none could."""
    measured = [float(value) for value in lost if not math.isnan(value)]
    return sum(measured) / len(measured) if measured else 0.0


def _lost_bar(name: str, lost: float, top: float, kind: str) -> str:
    width = _bounded(100 * lost / top) if top > 0 else 0.0
    return (
        f'<div class="{kind}"><span>{escape(name)}</span><div class="bar"><i style="width:{width:.1f}%"></i></div>'
        f"<b>{lost:.2f}</b></div>"
    )


def discretizer(seen: Discretizer) -> str:
    """What the discretizer saw of each scalar feature: bins, missing rates."""
    groups: dict[str, list[str]] = {}
    for name in seen.features:
        groups.setdefault(name.partition(".")[0], []).append(name)
    summary = []
    for group, names in groups.items():
        missing = [seen.features[name].missing_rate for name in names]
        bins = sum(len(seen.features[name].histogram) for name in names)
        mean = sum(missing) / len(missing)
        never = sum(seen.features[name].boundaries is None for name in names)
        summary.append([escape(group), str(len(names)), f"{bins:,}", f"{mean:.0%}", f"{max(missing):.0%}", str(never)])
    rows = [
        [
            escape(name),
            str(len(bins.histogram)),
            f"{bins.missing_rate:.1%}",
            _number(bins.smallest),
            _number(bins.largest),
            sparkline(bins.histogram),
        ]
        for name, bins in seen.features.items()
    ]
    listed = table(["feature", "bins", "missing", "smallest", "largest", "share of the bins"], rows)
    return f"""<h2>What was in the data?</h2>
<p>Numbers enter the model by bins, cut so that each holds as equal a part of the impressions as their ties allow. A
missing value is in no bin and adds nothing.</p>
{table(["group", "numbers", "bins", "missing on average", "missing at most", "never seen"], summary)}
<details><summary>All {len(rows)} numbers</summary>{listed}</details>"""


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def _bounded(percent: float) -> float:
    """Where a bar ends: inside its track, and at its start for what could not be measured."""
    return 0.0 if math.isnan(percent) else min(max(percent, 0.0), 100.0)
