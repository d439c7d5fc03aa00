"""`timeline-trainer compare`: two runs side by side, what differs between their plans and what came of it."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model_export.artifact import artifact_document
from model_export.finished_run import FinishedRun
from model_export.plan_table import PlanError

DONE, REFUSED = 0, 1
# Counts of data, not figures of a model.
_COUNTS = ("positives", "evaluated_positives")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs=2, help="the directory of a finished run")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(arguments: argparse.Namespace) -> int:
    """Prints the comparison; a word on stderr where the two were tested on different data."""
    try:
        compared = compare(*(FinishedRun.open(directory) for directory in arguments.runs))
    except (PlanError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    if not compared["same_test"]:
        print("tested on different data or days: figures are not of the same impressions", file=sys.stderr)
    if arguments.json:
        print(json.dumps(compared, indent=1))
    else:
        print(_tables(compared))
    return DONE


def compare(first: FinishedRun, second: FinishedRun) -> dict[str, Any]:
    """What differs between two runs, as JSON values.

    Returns:
        runs: Their directories.
        same_test: Whether their figures are of the same impressions.
        plan: What differs of the plans, by dotted key: [first value, second value], null where one has no such key. A
            step that was taken from another run counts with the parameters that it was made with.
        heads: By head and figure: first, second, difference (second - first). null where one has no such head or
            figure, or it could not be measured.
    """
    plans = [_flat(_made_with(run)) for run in (first, second)]
    keys = list(dict.fromkeys([*plans[0], *plans[1]]))
    metrics = [run.metrics() for run in (first, second)]
    heads: dict[str, dict[str, dict[str, float | None]]] = {}
    for head in dict.fromkeys([*metrics[0], *metrics[1]]):
        names = dict.fromkeys(name for run in metrics for name in run.get(head, {}))
        heads[head] = {name: _beside(*(run.get(head, {}).get(name) for run in metrics)) for name in names}
    return {
        "runs": [str(first.directory), str(second.directory)],
        "same_test": _tested_on(first) == _tested_on(second),
        "plan": {key: [plan.get(key) for plan in plans] for key in keys if plans[0].get(key) != plans[1].get(key)},
        "heads": heads,
    }


def _made_with(run: FinishedRun) -> dict[str, Any]:
    """The plan, each step with the parameters that its artifact was made with."""
    return {**run.plan, **{step: artifact_document(run.artifact(step))["parameters"] for step in run.artifacts}}


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, their keys joined by dots; empty ones are left out."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _tested_on(run: FinishedRun) -> tuple[str, Any]:
    """The data artifact, whose name says what it was made of, and the split."""
    document = artifact_document(run.artifact("test"))
    return document["inputs"]["data"], document["parts"]["split"]


def _beside(first: float | None, second: float | None) -> dict[str, float | None]:
    # JSON has no NaN.
    first, second = (None if value is None or math.isnan(value) else value for value in (first, second))
    difference = None if first is None or second is None else second - first
    return {"first": first, "second": second, "difference": difference}


def _tables(compared: Mapping[str, Any]) -> str:
    runs = compared["runs"]
    plan = [("plan", *runs)] + [(key, *map(_shown, values)) for key, values in compared["plan"].items()]
    if len(plan) == 1:
        plan.append(("(no difference)", "", ""))
    heads = [("head", "figure", *runs, "difference")]
    for head, figures in compared["heads"].items():
        for name, values in figures.items():
            form = ",.0f" if name in _COUNTS else ".4f"
            numbers = [_number(values["first"], form), _number(values["second"], form)]
            heads.append((head, name, *numbers, _number(values["difference"], f"+{form}")))
            head = ""
    return f"{_aligned(plan, 3)}\n\n{_aligned(heads, 2)}"


def _shown(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _aligned(lines: Sequence[Sequence[str]], names: int) -> str:
    """Columns of equal width; the first `names` of them to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
