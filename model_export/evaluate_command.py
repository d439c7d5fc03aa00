"""`timeline-trainer evaluate`: how good a bundle's probabilities are on impressions that it never saw.

Of a simulated world (`--world-seed`), with what could be reached; real ones (`--data`), with 95 % intervals by viewer.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from model_export.baselines.judge import figures, judge
from model_export.datasets.records import RecordSet, epoch_date
from model_export.datasets.world import LAWS, generate
from model_export.evaluate import evaluate_graph
from model_export.plan import load_plan
from model_export.plan_table import PlanError
from model_export.score import open_graph, score
from model_export.steps.data import Parameters as DataPlan
from model_export.steps.data import read_dates
from service.bundle import Bundle, BundleError, read_bundle

DONE, REFUSED, USAGE = 0, 1, 2
_DAYS, _IMPRESSIONS = 20, 1_000_000
# Of the bootstrap by viewer.
_DRAWS, _SEED = 500, 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--world-seed", metavar="N", type=int, help="of the simulated world to evaluate on")
    source.add_argument("--data", metavar="DIR", type=Path, help="real impressions, read as the data of --plan are")
    parser.add_argument("--world-law", choices=LAWS, help="default: the law that the bundle was trained for")
    parser.add_argument(
        "--impressions",
        metavar="M",
        type=int,
        help=f"of the whole world of {_DAYS} days, of which the last fifth is evaluated; default {_IMPRESSIONS:,}",
    )
    parser.add_argument("--plan", metavar="PLAN", type=Path, help="whose table [data] says how to read --data")
    for name, what in (("from", "first"), ("to", "last")):
        parser.add_argument(
            f"--{name}",
            metavar="DATE",
            type=datetime.date.fromisoformat,
            dest=what,
            help=f"the {what} date of --data to evaluate on, such as 2022-05-04",
        )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Prints the figures of each head."""
    of_data = (arguments.plan, arguments.first, arguments.last)
    if arguments.data is None and of_data != (None, None, None):
        print("--plan, --from and --to go with --data", file=sys.stderr)
        return USAGE
    of_a_world = (arguments.world_law, arguments.impressions)
    if arguments.data is not None and (None in of_data or of_a_world != (None, None)):
        print("--data wants --plan, --from and --to, and nothing of a world", file=sys.stderr)
        return USAGE
    try:
        bundle = read_bundle(arguments.bundle)
        heads = _in_a_world(bundle, arguments) if arguments.data is None else _on_data(bundle, arguments)
    except (BundleError, ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    if arguments.json:
        print(json.dumps({"heads": {head: _without_nan(values) for head, values in heads.items()}}, indent=1))
    else:
        _print_table(heads)
    return DONE


def _in_a_world(bundle: Bundle, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    law = arguments.world_law or bundle.manifest["law"]
    if law is None:
        raise ValueError("the bundle was trained for no law of the simulated world; name one with --world-law")
    days = range(_DAYS - _DAYS // 5, _DAYS)
    impressions = _IMPRESSIONS if arguments.impressions is None else arguments.impressions
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generate(root, law, arguments.world_seed, impressions, _DAYS, only_days=days)
        records = replace(RecordSet.open(root), schema=bundle.schema)
        return evaluate_graph(open_graph(bundle.model), records, records.days, _positives(bundle))


def _on_data(bundle: Bundle, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures with 95 % intervals; a word on stderr where the bundle has seen some of the days."""
    plans = [planned.parameters for planned in load_plan(arguments.plan).steps if planned.name == "data"]
    if not plans or not isinstance(plans[0], DataPlan):
        raise PlanError(f"{arguments.plan}: has no step data")
    if arguments.last < arguments.first:
        raise ValueError("--from must not be after --to")
    graph = open_graph(bundle.model)
    with tempfile.TemporaryDirectory() as folder:
        records = read_dates(
            plans[0], arguments.data, bundle.schema, arguments.first, arguments.last, Path(folder) / "records"
        )
        print(f"{records.rows(records.days):,} impressions of {len(records.days)} days", file=sys.stderr)
        _say_what_was_seen(bundle, records.days)
        judged = judge({"bundle": lambda impressions: score(graph, impressions)[1]}, records, records.days)
    by_head = figures(judged, bundle.schema.head_names, "bundle", _DRAWS, _SEED)["bundle"]
    positives = _positives(bundle)
    return {head: {**values, "positives": positives[head]} for head, values in by_head.items()}


def _say_what_was_seen(bundle: Bundle, days: tuple[int, ...]) -> None:
    """Warns of days that the bundle learned from: figures of those are too good."""
    learned: Mapping[str, list[int]] = bundle.manifest["metrics"]["training"].get("days", {})
    if "train" not in learned:
        print("the bundle does not say which days it learned from: they may be among these", file=sys.stderr)
    if start := bundle.manifest["plan"].get("train", {}).get("warm_start"):
        print(f"its training started from the net of {start}, which may know these days", file=sys.stderr)
    for part, (first, last) in learned.items():
        if seen := [day for day in days if first <= day <= last]:
            dates = f"{epoch_date(seen[0])} to {epoch_date(seen[-1])}"
            print(f"{dates}: the bundle used these days to {part}, so its figures are too good there", file=sys.stderr)


def _positives(bundle: Bundle) -> dict[str, int]:
    """By head, in the training data before sampling."""
    positives: dict[str, int] = bundle.manifest["metrics"]["training"]["positives"]
    return positives


def _without_nan(values: Mapping[str, float]) -> dict[str, Any]:
    # JSON has no NaN: what could not be measured is null.
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _print_table(heads: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(heads.values())))
    print(f"{'head':<20}" + "".join(f"{name:>21}" for name in names))
    for head, values in heads.items():
        print(f"{head:<20}" + "".join(f"{values[name]:>21.6g}" for name in names))
