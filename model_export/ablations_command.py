"""`timeline-trainer ablations`: what each part of a plan gives, by doing without it."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_export.ablations import WHOLE, ablations
from model_export.plan import load_plan
from model_export.plan_table import PlanError
from model_export.run import run_plan

DONE, REFUSED = 0, 1
REPORT, PLOT = "ablations.json", "ablations.png"
_FORMS = {"share": ".3f", "rce": ".2f", "pr_auc": ".4f", "calibration_error": ".3f"}
# Figures of all plans by head.
Figures = Mapping[str, Mapping[str, Mapping[str, float]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("plan", metavar="PLAN", type=Path, help="a TOML file")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where artifacts are kept")


def run(arguments: argparse.Namespace) -> int:
    """Carries out what is missing of each plan; prints the table, on stderr where JSON and plot are."""
    figures = {}
    try:
        plans = ablations(load_plan(arguments.plan))
        # The whole plan last: it is the run that stays in the directory.
        for name, plan in reversed(plans.items()):
            print(f"-- {name}", file=sys.stderr)
            figures[name] = json.loads((run_plan(plan, arguments.out)["test"] / "metrics.json").read_text())
    except (PlanError, FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    figures = {name: figures[name] for name in plans}
    (arguments.out / REPORT).write_text(json.dumps(figures, indent=1))
    plot(figures, arguments.out / PLOT)
    print(table(figures))
    print(f"{arguments.out / REPORT}\n{arguments.out / PLOT}", file=sys.stderr)
    return DONE


def table(figures: Figures) -> str:
    """A block for each figure, a line for each plan, a column for each head: what it is, and how far from the whole."""
    heads = list(figures[WHOLE])
    blocks = []
    for figure, form in _FORMS.items():
        if figure not in figures[WHOLE][heads[0]]:
            continue  # share, where nothing is known to be reachable
        lines = [(figure, *heads)]
        for name, by_head in figures.items():
            cells = []
            for head in heads:
                value, whole = by_head[head][figure], figures[WHOLE][head][figure]
                change = "" if name == WHOLE else f" ({_shown(value - whole, f'+{form}')})"
                cells.append(_shown(value, form) + change)
            lines.append((name, *cells))
        blocks.append(_aligned(lines))
    return "\n\n".join(blocks)


def _shown(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def plot(figures: Figures, path: Path) -> None:
    """Bars as PNG, a panel per head: the RCE that each plan loses or gains beside the whole one."""
    heads = list(figures[WHOLE])
    names = [name for name in figures if name != WHOLE]
    columns = min(len(heads), 3)
    rows = -(-len(heads) // columns)
    page = Figure(figsize=(3.6 * columns + 1.6, 0.32 * len(names) * rows + 1.0 * rows), layout="constrained")
    panels = page.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for panel, head in zip(panels, heads, strict=False):
        whole = figures[WHOLE][head]["rce"]
        _draw(panel, head, whole, {name: figures[name][head]["rce"] - whole for name in names})
    for panel in panels[len(heads) :]:
        panel.set_visible(False)
    panels[0].invert_yaxis()  # of all: they share it
    page.supxlabel("points of RCE against the whole plan; a bar that touches the frame goes on", fontsize=9)
    page.savefig(path, dpi=120)


def _draw(panel: Axes, head: str, whole: float, changes: Mapping[str, float]) -> None:
    values = list(changes.values())
    colours = ["tab:red" if value < 0 else "tab:green" for value in values]
    panel.barh(list(changes), values, color=colours)
    # What is lost without any calibration would leave nothing to be seen of the rest.
    panel.set_xlim(-max(whole, 1) / 2, max(whole, 1) / 6)
    for row, value in enumerate(values):
        panel.annotate(_shown(value, "+.1f"), (0, row), xytext=(3, 0), textcoords="offset points", va="center", size=7)
    panel.set_title(f"{head}, RCE {_shown(whole, '.1f')} %", fontsize=9)
    panel.tick_params(labelsize=8)
    panel.grid(axis="x", alpha=0.3)
