"""The baselines as one table and one plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

_MARKERS = "os^Dv"
_HEADER = (
    "model", "head", "RCE %", "95 %", "of reachable", "to the net", "PR-AUC", "95 %", "to the net", "calibration error",
    "training s", "MB", "ms/500", "CPU h/10^6",
)  # fmt: skip


def table(document: Mapping[str, Any]) -> str:
    """Models by heads in columns of equal width, costs in each one's first line; below, what they learned from."""
    lines = [_HEADER]
    for name, model in document["models"].items():
        costs: tuple[str, ...] = (
            f"{model['train_s']:.0f}",
            f"{model['size_bytes'] / 1e6:.2f}",
            f"{model['ms_per_500']:.2f}",
            f"{model['cpu_s_per_million'] / 3600:.2f}",
        )
        if not model["heads"]:
            lines.append((name, "(as above)", *("",) * (len(_HEADER) - 2 - len(costs)), *costs))
        for head, entry in model["heads"].items():
            lines.append((name, head, *_figures(entry), *costs))
            name, costs = "", ("",) * len(costs)
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADER))]
    return "\n".join([*(_aligned(line, widths) for line in lines), footing(document)])


def footing(document: Mapping[str, Any]) -> str:
    """What the models learned from and what all of them are given, in a sentence or two."""
    by_model = document["train_rows"]
    baselines = f"trees from {by_model['trees']:,}, regressions from {by_model['logistic']:,}"
    rows = f"The net learned from {by_model['net']:,} rows, {baselines}."
    products = ", ".join(document["products"])
    return f"{rows} All have the inner product {products} as a feature." if products else rows


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, numbers to the right."""
    names = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
    return "  ".join([*names, *numbers]).rstrip()


def _figures(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{entry['rce']:.2f}",
        f"{entry['rce_low']:.2f} to {entry['rce_high']:.2f}",
        f"{entry['rce'] / entry['reachable_rce']:.3f}" if "reachable_rce" in entry else "-",
        _verdict(entry, "rce", 2),
        f"{entry['pr_auc']:.4f}",
        f"{entry['pr_auc_low']:.4f} to {entry['pr_auc_high']:.4f}",
        _verdict(entry, "pr_auc", 4),
        f"{entry['calibration_error']:.3f}",
    )


def _verdict(entry: Mapping[str, Any], figure: str, digits: int) -> str:
    difference = entry.get(f"{figure}_difference")
    return "" if difference is None else f"{difference['verdict']} {difference['value']:+.{digits}f}"


def plot(document: Mapping[str, Any], path: Path) -> None:
    """Quality against cost, a panel per head, as PNG: RCE with its interval over ms per 500 rows."""
    models = {name: model for name, model in document["models"].items() if model["heads"]}
    heads = list(next(iter(models.values()))["heads"])
    columns = min(len(heads), 4)
    rows = -(-len(heads) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.0 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for panel, head in zip(panels, heads, strict=False):
        _draw(panel, head, models)
    for panel in panels[len(heads) :]:
        panel.set_visible(False)
    figure.supxlabel("CPU ms per 500 candidates, one thread", fontsize=9)
    figure.supylabel("RCE %, dashed: reachable" if document["simulated"] else "RCE %", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(models), fontsize=8)
    figure.savefig(path, dpi=120)


def _draw(panel: Axes, head: str, models: Mapping[str, Any]) -> None:
    for i, (name, model) in enumerate(models.items()):
        entry = model["heads"][head]
        spread = [[max(entry["rce"] - entry["rce_low"], 0)], [max(entry["rce_high"] - entry["rce"], 0)]]
        marker = _MARKERS[i % len(_MARKERS)]
        panel.errorbar(model["ms_per_500"], entry["rce"], yerr=spread, fmt=marker, capsize=3, label=name)
    if "reachable_rce" in entry:
        panel.axhline(entry["reachable_rce"], color="0.5", linestyle="--", linewidth=1)
    panel.set_title(f"{head}, {entry['evaluated_positives']:,} positives", fontsize=9)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(labelbottom=True, labelsize=8)
    panel.grid(alpha=0.3)
