"""`timeline-ranker verify`: whether a bundle may be served."""

from __future__ import annotations

import argparse
from pathlib import Path

from service.bundle import BundleError
from service.model import load_model

GOOD, FAULTY = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="the bundle")


def run(arguments: argparse.Namespace) -> int:
    """Does with the bundle what a server does before it serves it; prints a line per fault."""
    try:
        model = load_model(arguments.directory, threads=1)
    except BundleError as error:
        for fault in error.faults:
            print(fault)
        return FAULTY
    print(f"{arguments.directory}: good, version {model.version}")
    return GOOD
