"""The schema: the one vocabulary that training and serving share.

A bundle carries its schema; the server aligns a caller's columns to it by name, the trainer builds its network and
its graph from it. Nothing else says which features or heads there are.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

Group = Literal["viewer", "author", "tweet"]
Kind = Literal["continuous", "binary", "categorical", "vector"]

# Columns of a group's table. Far above any sound model's, for a server makes tables of that width before it serves one.
WIDTH_MAX = 16_384

GROUPS: tuple[Group, ...] = get_args(Group)
KINDS: tuple[Kind, ...] = get_args(Kind)


class SchemaError(ValueError):
    """A schema contradicts itself."""


def is_finite(value: Any) -> bool:
    """Whether it is a number, and one that a float can hold: JSON and TOML have whole numbers without end."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


@dataclass(frozen=True, slots=True)
class Feature:
    """One input of the model.

    Attributes:
        name: Unique within its group.
        group: Which table it stands in.
        kind: `continuous` and `binary` are one number a row (binary: 0 or 1), `categorical` one of `vocabulary`,
            `vector` `width` numbers.
        unit: Of the value, such as "hours"; empty where it has none.
        vocabulary: Known categories; empty unless categorical.
        width: Numbers a row; 1 unless a vector.
    """

    name: str
    group: Group
    kind: Kind
    unit: str = ""
    vocabulary: tuple[str, ...] = ()
    width: int = 1

    def __post_init__(self) -> None:
        where = f"feature {self.group}.{self.name}"
        if not self.name:
            raise SchemaError("a feature without a name")
        if self.group not in GROUPS or self.kind not in KINDS:
            raise SchemaError(f"{where}: unknown group or kind {self.kind!r}")
        if (self.kind == "categorical") != bool(self.vocabulary):
            raise SchemaError(f"{where}: a vocabulary goes with categorical features, and only with them")
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise SchemaError(f"{where}: a category twice")
        if self.width < 1 or (self.kind != "vector" and self.width != 1):
            raise SchemaError(f"{where}: width {self.width} does not fit kind {self.kind}")


@dataclass(frozen=True, slots=True)
class Head:
    """One kind of engagement that the model predicts.

    Attributes:
        name: Such as "like".
        weight: How much its probability counts in the relevance; not negative.
        sign: +1 for wanted engagement, -1 for unwanted.
    """

    name: str
    weight: float
    sign: int

    def __post_init__(self) -> None:
        if not self.name or not is_finite(self.weight) or self.weight < 0 or self.sign not in (1, -1):
            raise SchemaError(f"head {self.name!r}: weight {self.weight}, sign {self.sign}")


@dataclass(frozen=True)
class GroupLayout:
    """Where each feature of one group stands in the model's table of that group.

    The table is float32 [rows, width]: first the scalars (continuous and binary, in schema order), then the
    categoricals (index into the vocabulary, as a float), then the vectors side by side. NaN is absent everywhere.
    """

    scalars: tuple[Feature, ...]
    categoricals: tuple[Feature, ...]
    vectors: tuple[Feature, ...]

    @cached_property
    def width(self) -> int:
        """Columns of the table."""
        return len(self.scalars) + len(self.categoricals) + sum(f.width for f in self.vectors)

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Feature name -> its (first) column."""
        offsets: dict[str, int] = {}
        column = 0
        for feature in (*self.scalars, *self.categoricals, *self.vectors):
            offsets[feature.name] = column
            column += feature.width
        return offsets

    @property
    def features(self) -> tuple[Feature, ...]:
        """All features in column order."""
        return (*self.scalars, *self.categoricals, *self.vectors)


@dataclass(frozen=True)
class Schema:
    """Features and heads of one model."""

    features: tuple[Feature, ...]
    heads: tuple[Head, ...]

    def __post_init__(self) -> None:
        names = [(f.group, f.name) for f in self.features]
        if len(set(names)) != len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise SchemaError(f"feature {twice[0]}.{twice[1]} twice")
        for group, layout in self.layouts.items():
            if layout.width > WIDTH_MAX:
                raise SchemaError(f"the {group}'s features take {layout.width} columns, more than {WIDTH_MAX}")
        if not self.heads or len({h.name for h in self.heads}) != len(self.heads):
            raise SchemaError("heads must be there and have names of their own")

    @cached_property
    def layouts(self) -> dict[Group, GroupLayout]:
        """The layout of each group's table."""

        def of_kind(group: Group, *kinds: Kind) -> tuple[Feature, ...]:
            return tuple(f for f in self.features if f.group == group and f.kind in kinds)

        return {
            group: GroupLayout(
                scalars=of_kind(group, "continuous", "binary"),
                categoricals=of_kind(group, "categorical"),
                vectors=of_kind(group, "vector"),
            )
            for group in GROUPS
        }

    @cached_property
    def head_names(self) -> tuple[str, ...]:
        """Names of the heads, in the order of the graph's outputs."""
        return tuple(h.name for h in self.heads)

    @cached_property
    def hash(self) -> str:
        """sha256 over features and head names; head weights are policy and stay outside."""
        document = self.to_json()
        document["heads"] = list(self.head_names)
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The schema as plain JSON values; `from_json` is its inverse."""
        return {
            "features": [
                {
                    "name": f.name,
                    "group": f.group,
                    "kind": f.kind,
                    "unit": f.unit,
                    "vocabulary": list(f.vocabulary),
                    "width": f.width,
                }
                for f in self.features
            ],
            "heads": [{"name": h.name, "weight": h.weight, "sign": h.sign} for h in self.heads],
        }

    @staticmethod
    def from_json(document: dict[str, Any]) -> Schema:
        """Reads what `to_json` wrote; raises SchemaError where it is not a schema."""
        try:
            if any(not isinstance(f["vocabulary"], list) for f in document["features"]):
                raise TypeError("a vocabulary that is no list")
            features = [Feature(**{**f, "vocabulary": tuple(f["vocabulary"])}) for f in document["features"]]
            heads = [Head(**h) for h in document["heads"]]
            texts = [text for f in features for text in (f.name, f.unit, *f.vocabulary)] + [h.name for h in heads]
            numbers = [f.width for f in features] + [h.sign for h in heads]
            if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
                raise TypeError("a name that is no text, or a width or sign that is no whole number")
            "".join(texts).encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell, and no message
            raise SchemaError("a name that is no Unicode text") from error
        except (KeyError, TypeError) as error:
            raise SchemaError(f"not a schema: {error}") from error
        return Schema(tuple(features), tuple(heads))

    def select(self, features: Iterable[tuple[Group, str]]) -> Schema:
        """The schema with only these features, in this schema's order."""
        chosen = set(features)
        return Schema(tuple(f for f in self.features if (f.group, f.name) in chosen), self.heads)
