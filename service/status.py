"""`timeline-ranker status`: what a model repository holds, and what serves."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.repository import Labels, Repository, RepositoryError

READ, UNREADABLE = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("root", metavar="ROOT", type=Path, help="the repository")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints labels and versions; a version that is not sound with what is wrong."""
    repository = Repository(arguments.root)
    try:
        labels = repository.labels()
        versions = sorted({*repository.versions(), *(label.version for label in labels.values())})
    except RepositoryError as error:
        print(f"timeline-ranker status: {error}", file=sys.stderr)
        return UNREADABLE
    faults = {version: repository.faults(version) for version in versions}
    print(to_json(labels, faults) if arguments.json else to_text(labels, faults))
    return READ


def to_json(labels: Labels, faults: Mapping[int, Sequence[str]]) -> str:
    """`labels` as in labels.json; `versions`, each with its `version` and `faults`, a text each."""
    document = {
        "labels": {name: label.to_json() for name, label in labels.items()},
        "versions": [{"version": version, "faults": list(found)} for version, found in faults.items()],
    }
    return json.dumps(document, indent=1)


def to_text(labels: Labels, faults: Mapping[int, Sequence[str]]) -> str:
    """A line per label, then a line per version."""
    lines = [f"{name}: {label}" for name, label in labels.items()]
    lines += [f"version {version}: {'; '.join(found) or 'good'}" for version, found in faults.items()]
    return "\n".join(lines or ["nothing was published"])
