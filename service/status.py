"""`timeline-ranker status`: what a model repository holds, and what serves."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import grpc

from service.client import add_tls_arguments, host_and_port, open_channel
from service.commands import write_out
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from service.repository import Labels, Repository, RepositoryError

READ, UNREADABLE = 0, 1
TIMEOUT_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("root", metavar="ROOT", type=Path, help="the repository")
    parser.add_argument("--target", metavar="HOST:PORT", type=host_and_port, help="a server to ask what it made of it")
    add_tls_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints labels and versions, a version that is not sound with what is wrong; then what the server says.

    The server is asked, too, where the repository can not be read: that is when one wants to know.
    """
    repository = Repository(arguments.root)
    labels: Labels = {}
    versions: list[int] = []
    status = READ
    try:
        labels = repository.labels()
        versions = sorted({*repository.versions(), *(label.version for label in labels.values())})
    except RepositoryError as error:
        print(f"timeline-ranker status: {error}", file=sys.stderr)
        if not arguments.target:
            return UNREADABLE
        status = UNREADABLE
    try:
        served = ask(arguments) if arguments.target else None
    except grpc.RpcError as error:
        call = cast(grpc.Call, error)  # what a call raises is also the call
        print(f"timeline-ranker status: {call.code().name}: {call.details()}", file=sys.stderr)
        return UNREADABLE
    faults = {version: repository.faults(version) for version in versions}
    if arguments.json:
        write_out(to_json(labels, faults, served) + "\n")
    else:
        write_out(to_text(labels, faults, served, arguments.target) + "\n")
    return status


def ask(arguments: argparse.Namespace) -> pb.DescribeModelResponse:
    """What the server at `arguments.target` says of its models; raises grpc.RpcError."""
    with open_channel(arguments) as channel:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        return stub.DescribeModel(pb.DescribeModelRequest(), timeout=TIMEOUT_S)


def to_json(labels: Labels, faults: Mapping[int, Sequence[str]], served: pb.DescribeModelResponse | None) -> str:
    """`labels` as in labels.json; `versions`, each with its `version` and `faults`, a text each.

    With a server, `target`: its `serving`, label -> version, and `loads`, each with `version`, `faults` and `at_ms`.
    """
    document: dict[str, Any] = {
        "labels": {name: label.to_json() for name, label in labels.items()},
        "versions": [{"version": version, "faults": list(found)} for version, found in faults.items()],
    }
    if served is not None:
        loads = [{"version": load.version, "faults": list(load.faults), "at_ms": load.at_ms} for load in served.loads]
        document["target"] = {"serving": dict(served.serving), "loads": loads}
    return json.dumps(document, indent=1)


def to_text(
    labels: Labels, faults: Mapping[int, Sequence[str]], served: pb.DescribeModelResponse | None, target: str
) -> str:
    """A line per label, a line per version; with a server a line for each label that it serves, and for each load."""
    lines = [f"{name}: {label}" for name, label in labels.items()]
    lines += [f"version {version}: {'; '.join(found) or 'good'}" for version, found in faults.items()]
    if not lines and served is None:
        lines = ["nothing was published"]
    if served is not None:
        lines += [f"{target} serves {label}: version {version}" for label, version in sorted(served.serving.items())]
        for load in served.loads:
            why = f"refused version {load.version}: {'; '.join(load.faults)}"
            lines.append(f"{target} {why if load.faults else f'loaded version {load.version}'}")
    return "\n".join(lines)
