"""Carries out a plan: each step's artifact is a directory named by all that went into it, made once.

    <out>/<step>-<hash>/    what the step wrote, and artifact.json: what it was made from
    <out>/run.json          the resolved plan and the artifact of each of its steps

The hash is over the step's parameters, the parts of the plan that it looks at, its version, its inputs' hashes and the
content of files outside the run that it reads: a change reruns what depends on it and nothing before it. Artifacts are
written under another name and then renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_export.artifact import ARTIFACT_FILE, artifact_document
from model_export.plan import Context, Plan, PlannedStep
from model_export.plan_table import PlanError, unknown

RUN_FILE = "run.json"


def run_plan(plan: Plan, out: Path) -> dict[str, Path]:
    """Makes what is missing of a plan's artifacts; one line per step on stderr.

    Args:
        plan: What to do.
        out: Where artifacts are found and put; several plans may share it.

    Returns:
        Artifact of each step, by its name.

    Raises:
        PlanError: A step's source has no such artifact, or another run works in `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    artifacts: dict[str, Path] = {}
    with _only_run_in(out):
        for planned in plan.steps:
            artifacts[planned.name] = _artifact(plan, planned, artifacts, out)
        names = {name: path.name for name, path in artifacts.items()}
        (out / RUN_FILE).write_text(json.dumps({"plan": plan.to_json(), "artifacts": names}, indent=1))
    return artifacts


def _artifact(plan: Plan, planned: PlannedStep, artifacts: Mapping[str, Path], out: Path) -> Path:
    if planned.source is not None:
        path = _taken(planned.name, Path(planned.source), out)
        _report(planned.name, f"from {planned.source}: {artifact_document(path)['summary']}")
        return path
    inputs = {name: artifacts[name] for name in planned.step.inputs}
    document: dict[str, Any] = {
        "step": planned.name,
        "version": planned.step.version,
        "parameters": planned.table,
        "parts": {name: plan.part(name) for name in planned.step.parts},
        "inputs": {name: path.name for name, path in inputs.items()},
    }
    if files := planned.step.files(planned.parameters):
        document["files"] = {name: _sha256(file) for name, file in files.items()}
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    path = out / f"{planned.name}-{digest[:12]}"
    if path.exists():
        _report(planned.name, f"as it was: {artifact_document(path)['summary']}")
        return path
    begin = time.monotonic()
    with _written_whole(path, keep_partial=planned.step.resumable) as partial:
        summary = planned.step.run(Context(plan, planned.parameters, inputs, partial))
        (partial / ARTIFACT_FILE).write_text(json.dumps({**document, "summary": summary}, indent=1))
    _report(planned.name, f"{time.monotonic() - begin:.1f} s: {summary}")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _taken(name: str, run: Path, out: Path) -> Path:
    """The artifact of another run, so that each run stands on its own: linked, or copied from another file system."""
    try:
        artifacts: dict[str, str] = json.loads((run / RUN_FILE).read_text())["artifacts"]
    except FileNotFoundError as error:
        raise PlanError(f"{name}.from: {run} holds no finished run") from error
    if name not in artifacts:
        raise PlanError(f"{name}.from: the run in {run} has no such step: {unknown(name, artifacts)}")
    path = out / artifacts[name]
    if not path.exists():
        with _written_whole(path, keep_partial=False) as partial:
            shutil.copytree(run / artifacts[name], partial, dirs_exist_ok=True, copy_function=_linked)
    return path


def _linked(source: str, target: str) -> None:
    # Nothing changes an artifact once it is there, so two runs can share its bytes.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def _written_whole(path: Path, keep_partial: bool) -> Iterator[Path]:
    """A directory to write that becomes `path` at the end, or never."""
    partial = path.with_name(f"{path.name}.partial")
    if not keep_partial:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    yield partial
    partial.rename(path)


@contextmanager
def _only_run_in(out: Path) -> Iterator[None]:
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PlanError(f"another run works in {out}") from error
        yield


def _report(name: str, line: str) -> None:
    print(f"{name}: {line}", file=sys.stderr, flush=True)
