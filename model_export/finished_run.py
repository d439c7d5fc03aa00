"""Looks at a run that `run_plan` finished, without its plan's code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_export.artifact import ARTIFACT_FILE, artifact_document
from model_export.plan import Context, FeaturePlan, HeadPlan, Plan, Split
from model_export.plan_table import PlanError, parse_table
from model_export.run import RUN_FILE


@dataclass(frozen=True)
class FinishedRun:
    """What run.json says.

    Attributes:
        directory: The run's.
        plan: The resolved plan as JSON values.
        artifacts: Directory of each step's artifact, by the step's name.
    """

    directory: Path
    plan: Mapping[str, Any]
    artifacts: Mapping[str, Path]

    @staticmethod
    def open(directory: Path) -> FinishedRun:
        """Opens a run; raises PlanError where none has finished."""
        try:
            document = json.loads((directory / RUN_FILE).read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise PlanError(f"{directory} holds no finished run") from error
        artifacts = {step: directory / name for step, name in document["artifacts"].items()}
        return FinishedRun(directory, document["plan"], artifacts)

    def artifact(self, step: str) -> Path:
        """The artifact of a step; raises PlanError where the run has no such step or it is no longer there."""
        if step not in self.artifacts:
            raise PlanError(f"the run in {self.directory} has no step {step}")
        if not self.artifacts[step].is_dir():
            raise PlanError(f"{self.artifacts[step]} is gone; carry out the plan again")
        return self.artifacts[step]

    def artifact_beside(self, step: str) -> Path | None:
        """The run's artifact of a step; else the newest in the directory that was made from this run's artifacts.

        Inputs that the run has no step for do not count: a run without its baselines is held against them all the same.
        """
        if step in self.artifacts:  # it may be another run's, made from other artifacts
            return self.artifact(step)
        found = []
        for path in self.directory.glob(f"{step}-*"):
            if not (path / ARTIFACT_FILE).exists():
                continue  # not finished
            inputs = artifact_document(path)["inputs"]
            if all(self.artifacts[name].name == made for name, made in inputs.items() if name in self.artifacts):
                found.append(path)
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)

    def context(self, parameters: Any) -> Context:
        """What a step with these parameters would be run with, its plan without steps."""
        heads = {name: HeadPlan(**head) for name, head in self.plan["heads"].items()}
        features = parse_table(FeaturePlan, self.plan["features"], "features")
        plan = Plan(Split(**self.plan["split"]), features, heads, steps=())
        return Context(plan, parameters, self.artifacts, self.directory)

    def metrics(self) -> dict[str, dict[str, float]]:
        """Figures of each head on the test days, by head: see `model_export.evaluate.evaluate_graph`."""
        figures: dict[str, dict[str, float]] = json.loads((self.artifact("test") / "metrics.json").read_text())
        return figures
