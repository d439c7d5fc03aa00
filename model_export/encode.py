"""From tables of features to what the network reads: one bin or category per slot, and the raw values beside them.

Training reads examples that were encoded once; the exported graph does the same to a request. What a feature becomes
is said by a plan's patterns (`FeaturePlan`) and by the discretizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model_export.discretize import Discretizer, bin_of
from model_export.plan import FeaturePlan
from model_export.plan_table import PlanError, unknown
from model_export.weights import VectorPair
from service.schema import GROUPS, Feature, Group, GroupLayout, Schema

Tables = Mapping[Group, NDArray[np.float32]]


@dataclass(frozen=True)
class Slot:
    """A binned scalar or a categorical feature.

    Attributes:
        name: `<group>.<feature>`.
        group: Its table.
        column: Its column there.
        size: Bins or categories.
        boundaries: float32 [size - 1]; None for a categorical feature.
    """

    name: str
    group: Group
    column: int
    size: int
    boundaries: NDArray[np.float32] | None


@dataclass(frozen=True)
class RawColumn:
    """A column that enters by value; `log` as in FeaturePlan.raw_log. A vector is `width` of these."""

    name: str
    group: Group
    column: int
    log: bool


@dataclass(frozen=True)
class Dot:
    """The inner product of two vectors, which enters by value; `name` is both names."""

    name: str
    pair: VectorPair


@dataclass(frozen=True)
class Encoding:
    """S slots of a model's tables, and R raw values: its raw columns, then its inner products."""

    slots: tuple[Slot, ...]
    raws: tuple[RawColumn, ...]
    dots: tuple[Dot, ...] = ()

    @property
    def raw_names(self) -> tuple[str, ...]:
        """[R]."""
        return (*(raw.name for raw in self.raws), *(dot.name for dot in self.dots))

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """[S]: where the rows of each slot start in the table of all slots' rows."""
        return np.cumsum([0, *(slot.size for slot in self.slots)])[:-1]

    @cached_property
    def rows(self) -> int:
        """Rows of all slots together."""
        return sum(slot.size for slot in self.slots)

    @cached_property
    def hash(self) -> str:
        """Hex sha256: examples of one encoding mean nothing to another."""
        digest = hashlib.sha256()
        for slot in self.slots:
            digest.update(f"{slot.name} {slot.size} ".encode())
            digest.update(b"" if slot.boundaries is None else slot.boundaries.tobytes())
        for raw in self.raws:
            digest.update(f"{raw.name} {raw.log} ".encode())
        for dot in self.dots:
            digest.update(f"{dot.name} ".encode())
        return digest.hexdigest()

    def encode(self, tables: Tables) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        """Tables [n, layout width] -> (bins [n, S], raw values [n, R]).

        A bin or category counts from 1, 0 = absent; raw values are through their logarithm, NaN = absent.

        Raises:
            ValueError: An infinite value, or a category outside its vocabulary.
        """
        n = len(next(iter(tables.values())))
        bins = np.empty((n, len(self.slots)), np.uint16)
        for i, slot in enumerate(self.slots):
            bins[:, i] = _slot_bins(slot, tables[slot.group][:, slot.column]) + 1
        raw = np.empty((n, len(self.raw_names)), np.float32)
        for i, column in enumerate(self.raws):
            values = tables[column.group][:, column.column]
            raw[:, i] = np.copysign(np.log1p(np.abs(values)), values) if column.log else values
        for i, dot in enumerate(self.dots, start=len(self.raws)):
            others = tables[dot.pair.group][:, dot.pair.columns]
            raw[:, i] = (tables["tweet"][:, dot.pair.tweet_columns] * others).sum(axis=1)
        if (infinite := np.isinf(raw).any(axis=0)).any():
            raise ValueError(f"{self.raw_names[int(infinite.argmax())]}: infinite values")
        return bins, raw


def _slot_bins(slot: Slot, values: NDArray[np.float32]) -> NDArray[np.int64]:
    if slot.boundaries is not None:
        if np.isinf(values).any():
            raise ValueError(f"{slot.name}: infinite values")
        return bin_of(values, slot.boundaries)
    if ((values < 0) | (values >= slot.size)).any():
        raise ValueError(f"{slot.name}: a category outside 0 to {slot.size - 1}")
    return np.where(np.isnan(values), -1, values).astype(np.int64)


def qualified(feature: Feature) -> str:
    """`<group>.<feature>`, the name of a feature among all groups."""
    return f"{feature.group}.{feature.name}"


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether any of the patterns fits the name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def select_features(schema: Schema, plan: FeaturePlan) -> Schema:
    """The schema of what the plan's model reads.

    Raises:
        PlanError: A pattern fits no feature, nothing is left, or a scalar that is used enters in no form.
    """
    names = [qualified(feature) for feature in schema.features]
    for patterns in (plan.use, plan.leave_out, plan.binned, plan.raw, plan.raw_log):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise PlanError(f"features: {unknown(pattern, names)}")
    used = [f for f in schema.features if matches(qualified(f), plan.use) and not matches(qualified(f), plan.leave_out)]
    if not used:
        raise PlanError("features: nothing is left")
    for feature in used:
        scalar = feature.kind in ("continuous", "binary")
        if scalar and not matches(qualified(feature), (*plan.binned, *plan.raw, *plan.raw_log)):
            raise PlanError(f"features: {qualified(feature)} is used, but neither binned nor raw")
    by_name = {qualified(feature): feature for feature in used}
    for names_of_pair in plan.dots:
        _check_pair(names_of_pair, by_name)
    return schema.select((f.group, f.name) for f in used)


def _check_pair(names: tuple[str, ...], features: Mapping[str, Feature]) -> None:
    where = f"features: dots {list(names)}"
    for name in names:
        if name not in features or features[name].kind != "vector":
            raise PlanError(f"{where}: {name!r} is no vector that is used")
    pair = [features[name] for name in names]
    if len(pair) != 2 or pair[0].width != pair[1].width or [f.group for f in pair].count("tweet") != 1:
        raise PlanError(f"{where}: wants a vector of the Tweet and one of the viewer or author, of one width")


def make_encoding(schema: Schema, plan: FeaturePlan, discretizer: Discretizer) -> Encoding:
    """The encoding of a selected schema's tables.

    Raises:
        ValueError: The discretizer does not know a feature that is to be binned.
    """
    slots: list[Slot] = []
    raws: list[RawColumn] = []
    for group in GROUPS:
        layout = schema.layouts[group]
        for feature in layout.scalars:
            slots += _binned_slot(feature, layout, plan, discretizer)
        for feature in layout.categoricals:
            size = len(feature.vocabulary)
            slots.append(Slot(qualified(feature), group, layout.offsets[feature.name], size, None))
        raws += _raw_columns(group, layout, plan)
    return Encoding(tuple(slots), tuple(raws), tuple(_dot(schema, names) for names in plan.dots))


def _dot(schema: Schema, names: tuple[str, ...]) -> Dot:
    columns: dict[Group, NDArray[np.int64]] = {}
    for feature in schema.features:
        if qualified(feature) in names:
            start = schema.layouts[feature.group].offsets[feature.name]
            columns[feature.group] = np.arange(start, start + feature.width)
    tweet_columns = columns.pop("tweet")
    ((group, others),) = columns.items()
    return Dot(" x ".join(names), VectorPair(tweet_columns, group, others))


def _binned_slot(feature: Feature, layout: GroupLayout, plan: FeaturePlan, discretizer: Discretizer) -> list[Slot]:
    name = qualified(feature)
    if not matches(name, plan.binned):
        return []
    if name not in discretizer.features:
        raise ValueError(f"the discretizer does not know {name}")
    boundaries = discretizer.features[name].boundaries
    if boundaries is None:  # Never present: nothing to learn, so it contributes nothing.
        return []
    column = layout.offsets[feature.name]
    return [Slot(name, feature.group, column, len(boundaries) + 1, np.array(boundaries, np.float32))]


def _raw_columns(group: Group, layout: GroupLayout, plan: FeaturePlan) -> list[RawColumn]:
    columns: list[RawColumn] = []
    for feature in layout.scalars:
        name, column = qualified(feature), layout.offsets[feature.name]
        if matches(name, plan.raw):
            columns.append(RawColumn(name, group, column, log=False))
        if matches(name, plan.raw_log):
            columns.append(RawColumn(name, group, column, log=True))
    for feature in layout.vectors:
        start = layout.offsets[feature.name]
        columns += [RawColumn(qualified(feature), group, start + i, log=False) for i in range(feature.width)]
    return columns
