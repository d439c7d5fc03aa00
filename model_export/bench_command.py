"""`timeline-trainer bench`: how fast a run's graph is, and how near to the net, as P3, P4 and Q4."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtest.measures import Measure, positive, table, write
from model_export.baselines.cost import ROWS, calls_of, graph_call, timelines
from model_export.baselines.models import Baseline, fit_fast, load_all
from model_export.bench import speed, time_models
from model_export.bundle import signed_weights
from model_export.datasets.records import Impressions, RecordSet
from model_export.fidelity import answers_of_day, fidelity
from model_export.finished_run import FinishedRun
from model_export.graph import build_plain
from model_export.plan import Context
from model_export.plan_table import PlanError
from model_export.score import open_graph
from model_export.steps import fit_baselines
from model_export.steps.calibrate import load_knots
from model_export.steps.sample import open_records
from model_export.steps.train import load_trained
from model_export.steps.verify import BUNDLE
from service.bundle import BundleError, read_bundle

DONE, REFUSED = 0, 1
_TIMELINES = 64  # rotated over


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the directory of a finished run")
    parser.add_argument("--json", metavar="PATH", type=Path, help="write the figures there as well")
    parser.add_argument("--repetitions", metavar="N", type=positive, default=31, help="default %(default)s")
    parser.add_argument(
        "--baseline-rows",
        metavar="N",
        type=positive,
        default=500_000,
        help="trees and regression learn from about so many rows, unless the run has its own; default %(default)s",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints a table of the figures."""
    try:
        found = bench(FinishedRun.open(arguments.run), arguments.repetitions, arguments.baseline_rows)
    except (PlanError, BundleError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    if arguments.json:
        write(found, arguments.json)
    print(table(found))
    return DONE


def bench(finished: FinishedRun, repetitions: int, baseline_rows: int) -> dict[str, Measure]:
    """All figures of a run.

    P3 and P4 are of timelines with values of the test days, P4 with `P4_train_rows` to learn from; Q4 is of all
    impressions of the test days.

    Raises:
        PlanError: A step that it needs is missing.
        BundleError: The run's bundle is not sound.
    """
    context = finished.context(fit_baselines.Parameters(rows_max=baseline_rows, validation_rows=baseline_rows))
    records = open_records(context.plan, finished.artifact("data"))
    network = load_trained(finished.artifact("train"), records.schema)
    calibration = load_knots(finished.artifact("calibrate"))
    graph = read_bundle(finished.artifact("verify") / BUNDLE).model
    days = context.plan.split.days(records)["test"]

    baselines, train_rows = _baselines(finished, context, records)
    products = fit_baselines.make_products(records, context.plan.features)
    held_out = next(records.batches(days, rows_max=_TIMELINES * ROWS))
    plain = build_plain(records.schema, network.to_weights(), calibration)
    feeds = timelines(held_out)
    models = {"graph": {"": graph_call(graph, feeds)}, "plain": {"": graph_call(plain, feeds)}}
    models |= _baseline_calls(baselines, products.add(held_out))
    timed = time_models(models, repetitions)
    print(f"fastest forms: trees by {timed['trees'][0]}, logistic by {timed['logistic'][0]}", file=sys.stderr)
    found = speed({name: us for name, (_, us) in timed.items()})
    found["P4_train_rows"] = Measure(train_rows, train_rows, train_rows, "rows")

    session = open_graph(graph, threads=1)
    answers = [answers_of_day(network, session, calibration, records, day) for day in days]
    return found | fidelity(answers, signed_weights(records.schema))


def _baselines(finished: FinishedRun, context: Context, records: RecordSet) -> tuple[Sequence[Baseline], int]:
    """The run's baselines, or some fitted for the occasion, and how many rows they learned from."""
    artifact = finished.artifact_beside("fit_baselines")
    if artifact is not None:
        print(f"trees and regression of {artifact}", file=sys.stderr)
        return load_all(artifact), fit_baselines.train_rows(artifact)["trees"]
    lesson = fit_baselines.draw_lesson(context, records)
    parameters: fit_baselines.Parameters = context.parameters
    print(f"the run has no baselines: fitting trees and regression on {len(lesson.train.x):,} rows", file=sys.stderr)
    return fit_fast(lesson, parameters.logistic, parameters.trees), len(lesson.train.x)


def _baseline_calls(
    baselines: Sequence[Baseline], held_out: Impressions
) -> dict[str, dict[str, Callable[[int], object]]]:
    """Calls of the forms of trees and logistic regression; `held_out` has the plan's products as columns."""
    feeds = timelines(held_out)
    by_name = {baseline.name: calls_of(baseline.graphs, baseline.boosters, feeds) for baseline in baselines}
    return {"trees": by_name["trees (LightGBM)"], "logistic": by_name["logistic"]}
