"""`timeline-trainer baselines`: the net of a plan beside what it replaces."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from model_export.baselines.report import table
from model_export.plan import Plan, PlannedStep, load_plan
from model_export.plan_table import PlanError
from model_export.run import run_plan
from model_export.steps import baselines, fit_baselines
from model_export.steps.baselines import PLOT, REPORT

DONE, REFUSED = 0, 1
_STEPS = {"fit_baselines": fit_baselines, "baselines": baselines}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("plan", metavar="PLAN", type=Path, help="a TOML file")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where artifacts are kept")


def run(arguments: argparse.Namespace) -> int:
    """Makes what is missing of the plan and its baselines; prints the table, on stderr where JSON and plot are."""
    try:
        artifact = run_plan(with_baselines(load_plan(arguments.plan)), arguments.out)["baselines"]
    except (PlanError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    print(table(json.loads((artifact / REPORT).read_text())))
    print(f"{artifact / REPORT}\n{artifact / PLOT}", file=sys.stderr)
    return DONE


def with_baselines(plan: Plan) -> Plan:
    """The plan with the steps `fit_baselines` and `baselines` at its end, unless it has them.

    Raises:
        PlanError: The plan has no step that they need.
    """
    for name, module in _STEPS.items():
        names = [planned.name for planned in plan.steps]
        if name in names:
            continue
        for needed in module.STEP.inputs:
            if needed not in names:
                raise PlanError(f"steps: {name} needs {needed}")
        plan = replace(plan, steps=(*plan.steps, PlannedStep(name, module.STEP, module.Parameters(), None)))
    return plan
