"""`timeline-trainer report`: a run as one page that can be read without knowing how to train."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from model_export.artifact import artifact_document
from model_export.datasets.records import RecordSet
from model_export.finished_run import FinishedRun
from model_export.plan import Split
from model_export.plan_table import PlanError
from model_export.report import page
from model_export.report.importance import draw, importance
from model_export.report.observe import observe, rce_interval
from model_export.report.training import cost, score_ms, training
from model_export.score import open_graph
from model_export.steps.baselines import REPORT
from model_export.steps.discretize import load_discretizer
from model_export.steps.verify import BUNDLE
from service.bundle import Bundle, BundleError, read_bundle

DONE, REFUSED = 0, 1
_OBSERVED_ROWS = 1_000_000
# Each feature is one more pass over these.
_IMPORTANCE_ROWS = 8_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the directory of a finished run")
    parser.add_argument("--out", metavar="PATH", type=Path, help="the page; default: report.html in the run")


def run(arguments: argparse.Namespace) -> int:
    """Writes the page; its path is all that stands on stdout."""
    path = arguments.out or arguments.run / "report.html"
    try:
        text = report(FinishedRun.open(arguments.run))
        path.write_text(text, encoding="utf-8")
    except (PlanError, BundleError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    print(path)
    return DONE


def report(finished: FinishedRun, observed_rows: int = _OBSERVED_ROWS, importance_rows: int = _IMPORTANCE_ROWS) -> str:
    """The page of a run.

    Args:
        finished: With the steps data, discretize, train, test and verify.
        observed_rows: Impressions of the test days, or a few more, that diagrams and histograms are drawn from.
        importance_rows: Likewise for permutation importance.

    Raises:
        PlanError: A step that it needs is missing.
        BundleError: The run's bundle is not sound.
    """
    bundle = read_bundle(finished.artifact("verify") / BUNDLE)
    metrics, trained = finished.metrics(), finished.artifact("train")
    records = replace(RecordSet.open(finished.artifact("data")), schema=bundle.schema)
    days = Split(**finished.plan["split"]).days(records)["test"]
    graph = open_graph(bundle.model, threads=1)
    observed = observe(graph, records, days, observed_rows)
    few = draw(records, days, importance_rows)
    groups, features = importance(graph, bundle.schema, few)
    heads = bundle.schema.head_names
    methods = {head: fit["method"] for head, fit in bundle.manifest["calibration"].items()}
    intervals = {head: rce_interval(observed, j) for j, head in enumerate(heads)}
    history = json.loads((trained / "history.json").read_text())
    return page.page(
        f"Timeline model {bundle.sha256[:12]}",
        [
            _facts(finished, bundle),
            page.quality(metrics, methods, intervals),
            page.baselines(_baselines(finished)),
            page.calibration(heads, observed),
            page.scores(heads, observed),
            page.importances(heads, groups, features, len(few)),
            page.discretizer(load_discretizer(trained)),
            training(heads, history),
            _cost(finished, bundle, history, score_ms(bundle.model, few)),
        ],
    )


def _facts(finished: FinishedRun, bundle: Bundle) -> str:
    """What was trained on what."""
    split, training = finished.plan["split"], bundle.manifest["metrics"]["training"]
    network = artifact_document(finished.artifact("train"))["parameters"]["network"]
    law = bundle.manifest["law"]
    layers = (
        "" if network["trunk"] == "linear" else f", layers {network['units']}, {', '.join(map(str, network['hidden']))}"
    )
    counts = {group: len(layout.features) for group, layout in bundle.schema.layouts.items()}
    facts = {
        "Data": artifact_document(finished.artifact("data"))["summary"],
        **({"World": f"simulated, law “{law}”"} if law else {}),
        "Days": f"{split['train']} to train, {split['validate']} to watch, {split['calibrate']} to calibrate, "
        f"{split['test']} to test",
        "Learned from": f"{training['examples']:,} of {training['impressions']:,} impressions",
        "Features": ", ".join(f"{count} of the {group}" for group, count in counts.items() if count),
        "Network": f"{network['trunk']}{layers}",
        "Graph": bundle.manifest["graph"]["precision"],
        "Made by": f"{bundle.manifest['created_by']}, plan {bundle.manifest['plan_hash'][:12]}",
    }
    names = [escape(head.name.replace("_", " ")) for head in bundle.schema.heads]
    listed = ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]
    cards = "".join(f'<div class="card"><dt>{name}</dt><dd>{escape(value)}</dd></div>' for name, value in facts.items())
    return f"""<h1>Timeline model {bundle.sha256[:12]}</h1>
<p>For each Tweet that a viewer could be shown, this model estimates how likely each engagement is:
{listed}. This page says what it learned from, how good it is, and what it costs.</p>
<dl class="facts">{cards}</dl>"""


def _baselines(finished: FinishedRun) -> Mapping[str, Any] | None:
    """The newest baselines in the run's directory that were held against this very model."""
    artifact = finished.artifact_beside("baselines")
    if artifact is None:
        return None
    document: dict[str, Any] = json.loads((artifact / REPORT).read_text())
    return document


def _cost(finished: FinishedRun, bundle: Bundle, history: Sequence[Mapping[str, Any]], ms: float) -> str:
    directory = finished.artifact("verify") / BUNDLE
    sizes = {file.name: file.stat().st_size for file in sorted(directory.iterdir())}
    seconds = sum(bundle.manifest["metrics"]["training"]["examples"] / epoch["examples_per_s"] for epoch in history)
    return cost(ms, sizes, seconds, len(history))
