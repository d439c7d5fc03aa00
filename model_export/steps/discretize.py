"""Step `discretize`: fits the bins of all scalars on a bounded sample of the training days."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.datasets.records import Impressions, RecordSet
from model_export.discretize import Discretizer, fit_feature
from model_export.encode import qualified, select_features
from model_export.plan import Context, Step
from model_export.sampling import row_uniform
from service.schema import GROUPS, Schema


@dataclass(frozen=True)
class Parameters:
    """How bins are fitted.

    Attributes:
        bins: Most bins of a feature.
        sample_rows: Impressions that the fit looks at, or a few more; memory grows with these alone.
        positive_weight: What an impression with any engagement weighs; one without weighs 1.
        seed: Draws the sample.
    """

    bins: int = 32
    sample_rows: int = 200_000
    positive_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        # Bins count from 1 in 16 bits.
        if not 1 <= self.bins < 65_535 or self.sample_rows < 1 or not 0 < self.positive_weight < float("inf"):
            raise ValueError("bins must be in [1, 65534], sample_rows at least 1, positive_weight positive")


def save_discretizer(discretizer: Discretizer, artifact: Path) -> None:
    """Writes the discretizer into an artifact."""
    discretizer.save(artifact / "discretizer.json")


def load_discretizer(artifact: Path) -> Discretizer:
    """The discretizer of an artifact of this step, or of another that keeps a copy."""
    return Discretizer.load(artifact / "discretizer.json")


def _run(context: Context) -> str:
    parameters: Parameters = context.parameters
    records = RecordSet.open(context.inputs["data"])
    days = context.plan.split.days(records)["train"]
    records = replace(records, schema=select_features(records.schema, context.plan.features))
    sample = list(_sample(records, days, parameters))
    discretizer = fit(records.schema, sample, parameters)
    save_discretizer(discretizer, context.out)
    bins = [len(feature.histogram) for feature in discretizer.features.values()]
    missing = [feature.missing_rate for feature in discretizer.features.values()]
    rank_error = max((f.rank_error for f in discretizer.features.values() if f.boundaries is not None), default=1.0)
    return (
        f"{len(bins)} features, {sum(bins):,} bins from {sum(map(len, sample)):,} impressions; "
        f"{np.mean(missing):.0%} absent, ranks within {rank_error:.2%}"
    )


def _sample(records: RecordSet, days: tuple[int, ...], parameters: Parameters) -> Iterator[Impressions]:
    share = parameters.sample_rows / records.rows(days)
    for impressions in tqdm(records.batches(days), desc="discretize", unit="batch", leave=False):
        yield impressions.take(row_uniform(impressions.ids, parameters.seed) < share)


def fit(schema: Schema, sample: list[Impressions], parameters: Parameters) -> Discretizer:
    """Fits every scalar of the schema; raises ValueError, naming the feature, where a value is infinite."""
    positive = np.concatenate([impressions.labels.any(axis=1) for impressions in sample])
    weights: NDArray[np.float64] = np.where(positive, parameters.positive_weight, 1.0)
    features = {}
    for group in GROUPS:
        layout = schema.layouts[group]
        for feature in layout.scalars:
            column = layout.offsets[feature.name]
            values = np.concatenate([impressions.tables[group][:, column] for impressions in sample])
            try:
                features[qualified(feature)] = fit_feature(values, weights, parameters.bins)
            except ValueError as error:
                raise ValueError(f"{qualified(feature)}: {error}") from error
    return Discretizer(features)


STEP = Step(version=1, parameters=Parameters, inputs=("data",), parts=("split", "features"), run=_run)
