"""The command `timeline-trainer`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from service.commands import run_command

# As `run_command` takes them.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("model_export.run_command", "carry out a training plan, print the path of its bundle"),
    "baselines": ("model_export.baselines_command", "hold a plan's net against logistic regression and trees"),
    "ablations": ("model_export.ablations_command", "show what each part of a plan gives, by doing without it"),
    "compare": ("model_export.compare_command", "show two runs side by side: their plans and their figures"),
    "report": ("model_export.report_command", "draw a run as one HTML page, print its path"),
    "served-log": ("model_export.served_log_command", "turn a served log into a Parquet file"),
    "bench": ("model_export.bench_command", "time a run's graph beside what it replaces, and hold it against the net"),
    "submit": ("model_export.submit_command", "render a plan as a job for a Kubernetes cluster"),
    "sample-request": ("model_export.sample_request", "print a request to try a server with"),
    "evaluate": ("model_export.evaluate_command", "say how good a bundle's probabilities are on a world or on data"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    return run_command(
        "timeline-trainer", "Trains and exports timeline models.", COMMANDS, sys.argv[1:] if argv is None else argv
    )


if __name__ == "__main__":
    sys.exit(main())
