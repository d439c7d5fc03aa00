"""A training plan: data, features, heads and steps in order, as TOML says them.

    extends = "default.toml"      what is not said here is as it is there (tables are merged, lists replaced)
    steps = ["data", "discretize", ...]
    [split] [features] [heads.<name>]
    [cluster]                     for `submit`: see `model_export.cluster.ClusterPlan`
    [<step>]                      the step's parameters; `from = "runs/a"` takes its artifact from another run instead

A step is a module with a `STEP`: the name of one in `model_export.steps`, or the dotted path of any other.
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from model_export.cluster import ClusterPlan
from model_export.datasets.records import RecordSet
from model_export.plan_table import PlanError, parse_table, unknown
from service.schema import Head, Schema


@dataclass(frozen=True)
class Split:
    """How many of the data's days, in order of time, each part gets; together they are all days.

    Attributes:
        train: Days that the discretizer and the net are fitted on; 0 where both come from another run.
        validate: Days that training is watched on; likewise.
        calibrate: Days that probabilities are calibrated on.
        test: Days that the finished graph is tested on.
    """

    train: int
    validate: int
    calibrate: int
    test: int

    def __post_init__(self) -> None:
        if min(self.train, self.validate) < 0 or min(self.calibrate, self.test) < 1:
            raise ValueError("calibrate and test need at least one day each, and no part has fewer than none")

    def days(self, records: RecordSet) -> dict[str, tuple[int, ...]]:
        """The days of each part that has any, by its name: asking for another raises PlanError.

        Raises:
            PlanError: They are not all days of the data.
        """
        if (wanted := sum(asdict(self).values())) != len(records.days):
            raise PlanError(f"split: {wanted} days, but the data has {len(records.days)}")
        parts, start = _Days(), 0
        for name, count in asdict(self).items():
            if count:
                parts[name] = records.days[start : start + count]
            start += count
        return parts


class _Days(dict[str, tuple[int, ...]]):
    """A part without days can not be learned from."""

    def __missing__(self, part: str) -> tuple[int, ...]:
        raise PlanError(f"split: there are no days to {part} on")


@dataclass(frozen=True)
class FeaturePlan:
    """Which features the model reads, and how. Every entry is a pattern of `<group>.<feature>`, `*` standing for any.

    Attributes:
        use: Features to read.
        leave_out: Features not to read after all.
        binned: Scalars that enter by their bin.
        raw: Scalars that enter by value.
        raw_log: Scalars that enter by sign(value) * log(1 + |value|): the heavy-tailed ones.
        dots: Pairs of vectors, by their full names, whose inner product enters by value: one of the Tweet and one of
            the viewer or the author, of one width. Absent where either is.
    """

    use: tuple[str, ...] = ("*",)
    leave_out: tuple[str, ...] = ()
    binned: tuple[str, ...] = ("*",)
    raw: tuple[str, ...] = ()
    raw_log: tuple[str, ...] = ()
    dots: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class HeadPlan:
    """What a head counts in the relevance: see `service.schema.Head`."""

    weight: float
    sign: int = 1


# What a step looks at besides its own parameters: the split, the features, the heads' names, their weights.
Part = Literal["split", "features", "heads", "weights"]


@dataclass(frozen=True)
class Context:
    """What a step is run with.

    Attributes:
        plan: The whole plan; a step looks at the parts that it declares.
        parameters: The step's own, of its declared type.
        inputs: The artifact of each step that it declares.
        out: An existing directory, to write the artifact into.
    """

    plan: Plan
    parameters: Any
    inputs: Mapping[str, Path]
    out: Path


def no_files(_parameters: Any) -> Mapping[str, Path]:
    """For a step that reads nothing but its inputs."""
    return {}


@dataclass(frozen=True)
class Step:
    """One kind of step.

    Attributes:
        version: Raised when the code changes what the step makes of the same inputs.
        parameters: A frozen dataclass; its fields are the keys of the step's table.
        inputs: Names of the steps whose artifacts it reads.
        parts: Parts of the plan that it looks at.
        run: Writes the artifact and returns a line that sums it up.
        resumable: What an interrupted run left in `out` is there again in the next.
        files: From the parameters, files outside the run that the step reads, by a name of theirs: their content has a
            part in the artifact's name. May raise PlanError.
    """

    version: int
    parameters: type
    inputs: tuple[str, ...]
    parts: tuple[Part, ...]
    run: Callable[[Context], str]
    resumable: bool = False
    files: Callable[[Any], Mapping[str, Path]] = no_files


@dataclass(frozen=True)
class PlannedStep:
    """A step of a plan.

    Attributes:
        name: Its module's last name; names its table and its artifact.
        step: What it does.
        parameters: Of the step's type.
        source: A run's directory to take its artifact from; None to make it.
    """

    name: str
    step: Step
    parameters: Any
    source: str | None

    @property
    def table(self) -> dict[str, Any]:
        """The parameters as JSON values; those without a value (None) are not there."""
        return {name: value for name, value in asdict(self.parameters).items() if value is not None}


@dataclass(frozen=True)
class Plan:
    """A plan. No `heads` means all of the data's, with its weights; `cluster` is where it may be carried out."""

    split: Split
    features: FeaturePlan
    heads: Mapping[str, HeadPlan]
    steps: tuple[PlannedStep, ...]
    cluster: ClusterPlan | None = None

    def part(self, name: Part) -> Any:
        """A part as JSON values."""
        if name == "split":
            return asdict(self.split)
        if name == "features":
            return asdict(self.features)
        if name == "heads":
            return list(self.heads)
        return {head: asdict(plan) for head, plan in self.heads.items()}

    def to_json(self) -> dict[str, Any]:
        """The resolved plan, every default written out; not where it is carried out, which changes nothing."""
        tables = {planned.name: {"from": planned.source} if planned.source else planned.table for planned in self.steps}
        shared = {"split": self.part("split"), "features": self.part("features"), "heads": self.part("weights")}
        return {"steps": [planned.name for planned in self.steps], **shared, **tables}

    def with_heads(self, schema: Schema) -> Schema:
        """The schema with the plan's heads; raises PlanError for a head that the data lacks."""
        for name in self.heads:
            if name not in schema.head_names:
                raise PlanError(f"heads: {unknown(name, schema.head_names)}")
        heads = tuple(Head(name, head.weight, head.sign) for name, head in self.heads.items())
        return Schema(schema.features, heads or schema.heads)


@dataclass(frozen=True)
class _Shared:
    """The tables of a plan that belong to no step."""

    split: Split
    steps: tuple[str, ...]
    features: FeaturePlan = field(default_factory=FeaturePlan)
    heads: dict[str, HeadPlan] = field(default_factory=dict)
    cluster: ClusterPlan | None = None


def load_plan(path: Path) -> Plan:
    """Reads a plan.

    Raises:
        PlanError: It can not be carried out as it stands; the message says where and what.
        OSError: The file can not be read.
    """
    document = read_document(path)
    steps = document.get("steps", [])
    if not isinstance(steps, list) or not all(isinstance(name, str) for name in steps):
        raise PlanError(f"{path.name}: steps is not a list of names")
    names = [name.rpartition(".")[2] for name in steps]
    if len(set(names)) != len(names):
        raise PlanError(f"{path.name}: a step twice")
    shared_keys = ("split", "steps", "features", "heads", "cluster")
    for key in document:
        if key in _own_steps() and key not in names:
            raise PlanError(f"{path.name}: has a table {key!r}, a step that `steps` does not name")
        if key not in (*shared_keys, *names):
            raise PlanError(f"{path.name}: {unknown(key, ('extends', *shared_keys, *names))}")
    shared = parse_table(_Shared, {key: document[key] for key in shared_keys if key in document}, path.name)
    planned = tuple(_plan_step(module, document.get(name, {})) for module, name in zip(steps, names, strict=True))
    for i, step in enumerate(planned):
        missing = [name for name in step.step.inputs if name not in names[:i]]
        if missing and step.source is None:
            raise PlanError(f"steps: {step.name} needs {missing[0]} before it")
    return Plan(shared.split, shared.features, shared.heads, planned, shared.cluster)


def read_document(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's tables laid over those of the plans that it extends, themselves `seen` already."""
    if path.resolve() in seen:
        raise PlanError(f"{path.name} extends itself")
    try:
        document = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path.name}: {error}") from error
    base = document.pop("extends", None)
    if base is None:
        return document
    if not isinstance(base, str):
        raise PlanError(f"{path.name}: extends is not a file name")
    return _merged(read_document(path.parent / base, (*seen, path.resolve())), document)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both_tables else value
    return merged


def _plan_step(module_name: str, table: Any) -> PlannedStep:
    name = module_name.rpartition(".")[2]
    if not isinstance(table, dict):
        raise PlanError(f"{name}: is not a table")
    if name == module_name:
        module_name = f"model_export.steps.{name}"
    try:
        step = importlib.import_module(module_name).STEP
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise PlanError(f"steps: {unknown(name, _own_steps())}") from error
    table = dict(table)
    source = table.pop("from", None)
    if source is not None and not isinstance(source, str):
        raise PlanError(f"{name}.from: {source!r} is not a run's directory")
    keys = ("from", *(key.name for key in fields(step.parameters)))
    for key in table:
        if key not in keys:
            raise PlanError(f"{name}: {unknown(key, keys)}")
    return PlannedStep(name, step, parse_table(step.parameters, table, name), source)


def _own_steps() -> list[str]:
    package = importlib.import_module("model_export.steps")
    return [file.stem for folder in package.__path__ for file in Path(folder).glob("[a-z]*.py")]
