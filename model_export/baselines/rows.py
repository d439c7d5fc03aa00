"""Impressions as one matrix in memory: what trees and logistic regressions learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_export.datasets.records import Impressions, RecordSet
from model_export.encode import Dot, Encoding
from service.schema import GROUPS, Feature, Group, Schema

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Products:
    """The plan's inner products as numbers of the Tweet, for models that can not form them: the net is given them too.

    Attributes:
        schema: What the net reads.
        dots: The products.
    """

    schema: Schema
    dots: tuple[Dot, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the numbers, without their group."""
        return tuple(dot.name for dot in self.dots)

    @property
    def with_them(self) -> Schema:
        """The schema with a continuous feature of the Tweet for each product, behind its other scalars."""
        added = tuple(Feature(name, "tweet", "continuous") for name in self.names)
        return Schema((*self.schema.features, *added), self.schema.heads)

    def add(self, impressions: Impressions) -> Impressions:
        """Impressions of the schema as those of `with_them`; a product is absent where either vector is."""
        values = Encoding((), (), self.dots).encode(impressions.tables)[1]
        tweets, scalars = impressions.tables["tweet"], len(self.schema.layouts["tweet"].scalars)
        joined = np.concatenate([tweets[:, :scalars], values, tweets[:, scalars:]], axis=1)
        return replace(impressions, tables={**impressions.tables, "tweet": joined})


@dataclass(frozen=True)
class Rows:
    """n impressions.

    Attributes:
        x: float32 [n, F], the tables of viewer, author and Tweet side by side; NaN = absent.
        labels: uint8 [n, H].
        used: bool [n, H], whether the head trains on the row.
    """

    x: Floats
    labels: NDArray[np.uint8]
    used: NDArray[np.bool_]

    def of_head(self, head: int) -> tuple[Floats, NDArray[np.uint8]]:
        """(x, labels) of the rows that the head uses."""
        used = self.used[:, head]
        return self.x[used], self.labels[used, head]

    def spread(self, rows_max: int) -> Rows:
        """At most so many of the rows, evenly spread over all."""
        if len(self.x) <= rows_max:
            return self
        chosen = np.arange(rows_max) * len(self.x) // rows_max
        return Rows(self.x[chosen], self.labels[chosen], self.used[chosen])


def flat(tables: Mapping[Group, Floats]) -> Floats:
    """The tables side by side, [n, F]."""
    return np.concatenate([tables[group] for group in GROUPS], axis=1)


def tables_of(schema: Schema, x: Floats) -> dict[Group, Floats]:
    """The inverse of `flat`."""
    starts = group_starts(schema)
    return {group: x[:, start : start + schema.layouts[group].width] for group, start in starts.items()}


def group_starts(schema: Schema) -> dict[Group, int]:
    """Where each table begins in the matrix."""
    widths = [schema.layouts[group].width for group in GROUPS]
    return dict(zip(GROUPS, np.cumsum([0, *widths[:-1]]).tolist(), strict=True))


def categorical_columns(schema: Schema) -> list[int]:
    """Columns of the matrix that hold categories."""
    starts = group_starts(schema)
    layouts = [(starts[group], schema.layouts[group]) for group in GROUPS]
    return [start + layout.offsets[feature.name] for start, layout in layouts for feature in layout.categoricals]


def collect(
    records: RecordSet, days: Sequence[int], used: Callable[[Impressions], NDArray[np.bool_]], products: Products
) -> Rows:
    """Reads the impressions of these days that any head uses; memory grows with those.

    Args:
        records: With the schema of what the net reads.
        days: To read.
        used: Impressions -> bool [n, H].
        products: That the rows have as columns.
    """
    parts = []
    for impressions in records.batches(days):
        mask = used(impressions)
        kept = np.asarray(mask.any(axis=1))
        impressions = products.add(impressions.take(kept))
        parts.append(Rows(flat(impressions.tables), impressions.labels, mask[kept]))
    return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("x", "labels", "used")))
