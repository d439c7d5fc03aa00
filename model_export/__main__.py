"""The command `timeline-trainer`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Command -> module with add_arguments(parser) and run(arguments) -> exit status, and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("model_export.run_command", "carry out a training plan, print the path of its bundle"),
    "baselines": ("model_export.baselines_command", "hold a plan's net against logistic regression and trees"),
    "compare": ("model_export.compare_command", "show two runs side by side: their plans and their figures"),
    "report": ("model_export.report_command", "draw a run as one HTML page, print its path"),
    "sample-request": ("model_export.sample_request", "print a request to try a server with"),
    "evaluate": ("model_export.evaluate_command", "say how good a bundle's probabilities are on a world of its own"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="timeline-trainer", description="Trains and exports timeline models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        description = text[0].upper() + text[1:] + "."
        command = commands.add_parser(name, help=text, description=description, allow_abbrev=False)
        if argv and argv[0] == name:  # only what runs is imported: torch takes seconds
            importlib.import_module(module).add_arguments(command)
    arguments = parser.parse_args(argv)
    status: int = importlib.import_module(COMMANDS[arguments.command][0]).run(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
