"""`timeline-ranker promote`: lets a published version serve under a label."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from service.repository import STABLE, Repository, RepositoryError

PROMOTED, REFUSED = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("root", metavar="ROOT", type=Path, help="the repository")
    parser.add_argument("version", metavar="VERSION", type=int, help="as publish printed it")
    parser.add_argument("--label", default=STABLE, help="the label to move (default %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Moves the label; prints where it points."""
    try:
        label = Repository(arguments.root).promote(arguments.version, arguments.label)
    except (RepositoryError, OSError) as error:
        print(f"timeline-ranker promote: {error}", file=sys.stderr)
        return REFUSED
    print(f"{arguments.label}: {label}")
    return PROMOTED
