"""`timeline-ranker rollback`: has a label point to the version that served before."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from service.repository import STABLE, Repository, RepositoryError

ROLLED_BACK, REFUSED = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("root", metavar="ROOT", type=Path, help="the repository")
    parser.add_argument("--label", default=STABLE, help="the label to move (default %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Moves the label back; prints where it points."""
    try:
        label = Repository(arguments.root).rollback(arguments.label)
    except (RepositoryError, OSError) as error:
        print(f"timeline-ranker rollback: {error}", file=sys.stderr)
        return REFUSED
    print(f"{arguments.label}: {label}")
    return ROLLED_BACK
