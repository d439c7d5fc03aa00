"""`timeline-ranker publish`: puts a bundle into a model repository."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from service.bundle import BundleError
from service.model import load_model
from service.repository import Repository, RepositoryError

PUBLISHED, REFUSED = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the bundle")
    parser.add_argument("root", metavar="ROOT", type=Path, help="the repository; made if missing")


def run(arguments: argparse.Namespace) -> int:
    """Verifies the bundle and publishes it under no label; prints its version, or a line per fault on stderr."""
    try:
        load_model(arguments.bundle, threads=1)
        print(Repository(arguments.root).publish(arguments.bundle))
    except BundleError as error:
        for fault in error.faults:
            print(f"timeline-ranker publish: {fault}", file=sys.stderr)
        return REFUSED
    except (RepositoryError, OSError) as error:
        print(f"timeline-ranker publish: {error}", file=sys.stderr)
        return REFUSED
    return PUBLISHED
