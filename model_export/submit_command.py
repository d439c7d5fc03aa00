"""`timeline-trainer submit`: renders what a cluster with Kubeflow's training operator needs to run a plan."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import tomli_w
import yaml

from model_export.cluster import manifests
from model_export.plan import load_plan, read_document
from model_export.plan_table import PlanError

DONE, REFUSED, USAGE = 0, 1, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("plan", metavar="PLAN", type=Path, help="a TOML file with a table [cluster]")
    parser.add_argument("--dry-run", action="store_true", help="print the YAML; there is no other way yet")


def run(arguments: argparse.Namespace) -> int:
    """Prints the YAML of a ConfigMap and a PyTorchJob."""
    if not arguments.dry_run:
        print("submit sends nothing itself: submit PLAN --dry-run | kubectl apply -f -", file=sys.stderr)
        return USAGE
    try:
        cluster = load_plan(arguments.plan).cluster
        if cluster is None:
            raise PlanError(f"{arguments.plan}: has no table [cluster], which names the image and the volume_claim")
    except (PlanError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    # One file with all that it extends.
    plan_toml = tomli_w.dumps(read_document(arguments.plan))
    documents = manifests(arguments.plan.stem, plan_toml, cluster)
    print(yaml.dump_all(documents, Dumper=_Readable, sort_keys=False, explicit_start=True), end="")
    return DONE


class _Readable(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """Writes texts of several lines as they are, and what stands twice twice."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)
