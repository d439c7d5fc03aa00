"""Experiments: which viewers get which model and policy. Experiments are data, read from TOML.

[[experiments]]
name = "more_likes"
salt = "more-likes-1"          # a new salt deals the viewers anew

[[experiments.arms]]
name = "control"
share = 0.9

[[experiments.arms]]
name = "treatment"
share = 0.1
model = "canary"               # a label; without it the stable one
exploration_epsilon = 0.05     # see service/exploration.py
policy.head_weights.like = 2.0 # anything that a policy file may say

Several experiments run at once, each over all viewers. What a viewer gets is what all of their arms set together, so
no two experiments may set the same thing.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from service.errors import InvalidRequest
from service.policy import Policy, PolicyError, nearest, override
from service.repository import STABLE
from service.stable_hash import uniform

# Every combination of arms has a policy of its own in memory and is checked when a model is loaded.
COMBINATIONS_MAX = 1_000
# How far the sum of an experiment's shares may be from 1: three thirds written with nine digits pass.
SHARES_TOLERANCE = 1e-8
_SHARE_WANTED = "must be a number between 0 and 1"
# Names are labels of metrics and keys of answers.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class ExperimentsError(ValueError):
    """The experiments make no sense; the text names experiment, arm, key and value."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What a share of the viewers gets.

    Attributes:
        name: Unique in its experiment.
        share: Of all viewers, 0 to 1. 0: nobody but whom a request forces into it.
        model: Label of the model that serves them; None: the stable one.
        exploration_epsilon: How often a Tweet is explored, 0 to 1; None: never.
        policy: Values that take the place of the server's policy, as in a policy file.
    """

    name: str
    share: float
    model: str | None = None
    exploration_epsilon: float | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not _is_share(self.share):
            raise ExperimentsError(f"share = {self.share!r}: {_SHARE_WANTED}")
        if self.model is not None and (not isinstance(self.model, str) or not self.model):
            raise ExperimentsError(f"model = {self.model!r}: must be a label")
        if self.exploration_epsilon is not None and not _is_share(self.exploration_epsilon):
            raise ExperimentsError(f"exploration_epsilon = {self.exploration_epsilon!r}: {_SHARE_WANTED}")
        if not isinstance(self.policy, Mapping):
            raise ExperimentsError(f"policy = {self.policy!r}: must be a table")

    @property
    def sets(self) -> frozenset[str]:
        """What it sets: `model`, `exploration_epsilon`, and dotted keys such as `policy.head_weights.like`."""
        chosen = (name for name in ("model", "exploration_epsilon") if getattr(self, name) is not None)
        return frozenset((*chosen, *_leaves("policy", self.policy)))


@dataclass(frozen=True, slots=True)
class Experiment:
    """One question and its arms.

    Attributes:
        name: Unique among the experiments.
        salt: What viewers are dealt by, with their id. Unique, too: experiments of one salt would share their dice.
        arms: At least one; their shares sum to 1 within SHARES_TOLERANCE.
    """

    name: str
    salt: str
    arms: tuple[Arm, ...]

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.salt, str) or not self.salt or "\0" in self.salt:
            raise ExperimentsError(f"salt = {self.salt!r}: must be a text, neither empty nor with a zero byte")
        if len({arm.name for arm in self.arms}) != len(self.arms):
            raise ExperimentsError(f"two arms of one name among {', '.join(arm.name for arm in self.arms)}")
        total = math.fsum(arm.share for arm in self.arms)
        if abs(total - 1) > SHARES_TOLERANCE:
            raise ExperimentsError(f"the shares of its arms sum to {total:.9g}, not to 1")

    @property
    def sets(self) -> frozenset[str]:
        """What any of its arms sets."""
        return frozenset().union(*(arm.sets for arm in self.arms))

    def arm_of(self, viewer_id: int) -> Arm:
        """The arm that the viewer belongs to, today, on every machine and in every language.

        It is the first arm whose share, added to those before it in the order of the file and in double precision,
        exceeds `service.stable_hash.uniform` of salt and id in decimal; where rounding leaves none, the last arm that
        has a share.
        """
        drawn = uniform(self.salt, str(viewer_id))
        upto = 0.0
        for arm in self.arms:
            upto += arm.share
            if drawn < upto:
                return arm
        return next(arm for arm in reversed(self.arms) if arm.share)

    def arm_named(self, name: str) -> Arm:
        """The arm that a request forces; raises InvalidRequest where there is none of that name."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        names = ", ".join(arm.name for arm in self.arms)
        raise InvalidRequest("forced_arms", f"experiment {self.name!r} has no arm {name!r}; it has {names}")


@dataclass(frozen=True, slots=True)
class Treatment:
    """What the arms of one viewer come to, one of each experiment.

    Attributes:
        index: Its place among all treatments.
        arms: Experiment -> arm.
        model: Label of the model.
        exploration_epsilon: 0: no exploration.
        policy: The server's policy with all that the arms set.
    """

    index: int
    arms: Mapping[str, str]
    model: str
    exploration_epsilon: float
    policy: Policy


class Experiments:
    """The experiments of one server; none is fine.

    Attributes:
        policy: What holds where no arm says otherwise.
        treatments: All that a viewer may get.
    """

    def __init__(self, experiments: tuple[Experiment, ...], policy: Policy) -> None:
        """Works out every combination of arms.

        Args:
            experiments: All that run.
            policy: What holds where no arm says otherwise.

        Raises:
            ExperimentsError: Two experiments have one name or salt, or set the same thing; or an arm sets what no
                policy has.
        """
        _check_apart(experiments)
        if math.prod(len(e.arms) for e in experiments) > COMBINATIONS_MAX:
            raise ExperimentsError(f"the experiments' arms have more than {COMBINATIONS_MAX} combinations")
        combinations = tuple(itertools.product(*(e.arms for e in experiments)))
        self.policy = policy
        self.treatments = tuple(_combine(i, experiments, arms, policy) for i, arms in enumerate(combinations))
        self._experiments = experiments
        self._by_arms = {
            tuple(arm.name for arm in arms): treatment
            for arms, treatment in zip(combinations, self.treatments, strict=True)
        }

    @property
    def arms(self) -> Iterator[tuple[str, str]]:
        """All pairs of experiment and arm."""
        return ((e.name, arm.name) for e in self._experiments for arm in e.arms)

    def assign(self, viewer_id: int, forced_arms: Mapping[str, str]) -> Treatment:
        """What the viewer gets.

        Args:
            viewer_id: The viewer.
            forced_arms: Experiment -> arm, instead of the viewer's own.

        Raises:
            InvalidRequest: There is no such experiment or arm.
        """
        if forced_arms:
            self._check_forced(forced_arms)
        chosen = (
            e.arm_named(forced_arms[e.name]) if e.name in forced_arms else e.arm_of(viewer_id)
            for e in self._experiments
        )
        return self._by_arms[tuple(arm.name for arm in chosen)]

    def _check_forced(self, forced_arms: Mapping[str, str]) -> None:
        names = [e.name for e in self._experiments]
        for name in forced_arms:
            if name not in names:
                there = f"there are {', '.join(names)}" if names else "none is running"
                raise InvalidRequest("forced_arms", f"there is no experiment {name!r}; {there}")


def read_experiments(text: str) -> tuple[Experiment, ...]:
    """The experiments in a TOML document; raises ExperimentsError naming what is wrong."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ExperimentsError(f"not TOML: {error}") from error
    _check_keys(document, ["experiments"], ["experiments"])
    return tuple(_experiment(table, i) for i, table in enumerate(_tables(document, "experiments")))


def _experiment(table: Mapping[str, Any], place: int) -> Experiment:
    try:
        _check_keys(table, [f.name for f in fields(Experiment)], ["name", "salt", "arms"])
        arms = tuple(_arm(arm, i) for i, arm in enumerate(_tables(table, "arms")))
        return Experiment(table["name"], table["salt"], arms)
    except ExperimentsError as error:
        raise ExperimentsError(f"experiment {table.get('name', place)!r}: {error}") from error


def _arm(table: Mapping[str, Any], place: int) -> Arm:
    try:
        _check_keys(table, [f.name for f in fields(Arm)], ["name", "share"])
        return Arm(**table)
    except ExperimentsError as error:
        raise ExperimentsError(f"arm {table.get('name', place)!r}: {error}") from error


def _tables(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    tables = document[key]
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ExperimentsError(f"{key} must be one or more tables")
    return tables


def _check_keys(table: Mapping[str, Any], known: list[str], needed: list[str]) -> None:
    for key in table:
        if key not in known:
            raise ExperimentsError(f"{key} is not known{nearest(key, known)}")
    for key in needed:
        if key not in table:
            raise ExperimentsError(f"{key} is missing")


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ExperimentsError(f"name = {name!r}: must be 1 to 64 of the letters A-Z, a-z, digits, _, . and -")


def _check_apart(experiments: tuple[Experiment, ...]) -> None:
    for one, other in itertools.combinations(experiments, 2):
        if one.name == other.name:
            raise ExperimentsError(f"two experiments are called {one.name!r}")
        if one.salt == other.salt:
            raise ExperimentsError(f"experiments {one.name!r} and {other.name!r} have the same salt")
        if both := one.sets & other.sets:
            raise ExperimentsError(f"experiments {one.name!r} and {other.name!r} both set {', '.join(sorted(both))}")


def _combine(index: int, experiments: tuple[Experiment, ...], arms: tuple[Arm, ...], policy: Policy) -> Treatment:
    model, exploration_epsilon = STABLE, 0.0
    for experiment, arm in zip(experiments, arms, strict=True):
        model = arm.model or model
        exploration_epsilon = arm.exploration_epsilon or exploration_epsilon
        try:
            policy = override(policy, arm.policy)
        except PolicyError as error:
            raise ExperimentsError(f"experiment {experiment.name!r}: arm {arm.name!r}: policy.{error}") from error
    names = {experiment.name: arm.name for experiment, arm in zip(experiments, arms, strict=True)}
    return Treatment(index, names, model, exploration_epsilon, policy)


def _leaves(prefix: str, table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}"


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
