"""`timeline-trainer evaluate`: how good a bundle's probabilities are in a world that it never saw."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from model_export.datasets.records import RecordSet
from model_export.datasets.world import LAWS, generate
from model_export.evaluate import evaluate_graph
from model_export.score import open_graph
from service.bundle import Bundle, BundleError, read_bundle

DONE, REFUSED = 0, 1
_DAYS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--world-seed", metavar="N", type=int, required=True, help="of the world to evaluate on")
    parser.add_argument("--world-law", choices=LAWS, help="default: the law that the bundle was trained for")
    parser.add_argument(
        "--impressions",
        metavar="M",
        type=int,
        default=1_000_000,
        help=f"of the whole world of {_DAYS} days, of which the last fifth is evaluated; default %(default)s",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Prints the figures of each head."""
    try:
        bundle = read_bundle(arguments.bundle)
        heads = _evaluate(bundle, arguments)
    except (BundleError, ValueError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    if arguments.json:
        print(json.dumps({"heads": heads}, indent=1))
    else:
        _print_table(heads)
    return DONE


def _evaluate(bundle: Bundle, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    law = arguments.world_law or bundle.manifest["law"]
    if law is None:
        raise ValueError("the bundle was trained for no law of the simulated world; name one with --world-law")
    days = range(_DAYS - _DAYS // 5, _DAYS)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generate(root, law, arguments.world_seed, arguments.impressions, _DAYS, only_days=days)
        records = replace(RecordSet.open(root), schema=bundle.schema)
        positives = bundle.manifest["metrics"]["training"]["positives"]
        return evaluate_graph(open_graph(bundle.model), records, records.days, positives)


def _print_table(heads: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(heads.values())))
    print(f"{'head':<20}" + "".join(f"{name:>21}" for name in names))
    for head, figures in heads.items():
        print(f"{head:<20}" + "".join(f"{figures[name]:>21.6g}" for name in names))
