"""`timeline-trainer run`: carries out a training plan."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from model_export.distributed import process_group
from model_export.plan import load_plan
from model_export.plan_table import PlanError
from model_export.run import run_plan
from model_export.steps.train import follow, release
from model_export.steps.verify import BUNDLE

DONE, REFUSED = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("plan", metavar="PLAN", type=Path, help="a TOML file")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where artifacts are kept")


def run(arguments: argparse.Namespace) -> int:
    """Runs what is missing; the last line on stdout is the path of the bundle, or of the last step's artifact.

    Where torchrun started several processes, the first one does this and the others take part in training alone.
    """
    try:
        plan = load_plan(arguments.plan)
        with process_group() as peers:
            if not peers.first:
                follow(plan)
                return DONE
            artifacts = run_plan(plan, arguments.out)
            release()
    except (PlanError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    last = list(artifacts.values())[-1]
    print(last / BUNDLE if (last / BUNDLE).is_dir() else last)
    return DONE
