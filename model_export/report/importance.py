"""Permutation importance (Breiman 2001): what is lost when the values of a feature are dealt out to other rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.datasets.records import Impressions, RecordSet
from model_export.evaluate import relative_cross_entropy
from model_export.report.observe import session_uniform, truth_of
from model_export.score import same_viewer, score
from service.schema import GROUPS, Group, Schema

Lost = dict[str, NDArray[np.float64]]


def draw(records: RecordSet, days: Sequence[int], rows: int) -> Impressions:
    """Whole sessions of these days, about `rows` impressions of them; raises ValueError if that comes to none."""
    share = rows / records.rows(days)
    parts = [batch.take(session_uniform(batch) < share) for batch in records.batches(days)]
    drawn = [part for part in parts if len(part)]
    if not drawn:
        raise ValueError("no session was drawn: there are too few impressions")
    return Impressions(
        ids={name: np.concatenate([part.ids[name] for part in drawn]) for name in drawn[0].ids},
        tables={group: np.concatenate([part.tables[group] for part in drawn]) for group in GROUPS},
        labels=np.concatenate([part.labels for part in drawn]),
        reachable=None
        if drawn[0].reachable is None
        else np.concatenate([part.reachable for part in drawn if part.reachable is not None]),
    )


def importance(
    graph: onnxruntime.InferenceSession, schema: Schema, impressions: Impressions, seed: int = 0
) -> tuple[Lost, Lost]:
    """Points of RCE that each head loses [H]: (by group of features, by feature as `<group>.<feature>`).

    All columns of a group, or of a feature, are dealt out together. Near 0, and as easily below, for what the model
    makes no use of; NaN for a head without a positive here. Features that say the same stand in for one another, so
    each of them may lose little.
    """
    base = _rce(graph, impressions)
    rng = np.random.default_rng(seed)

    def lost(group: Group, columns: slice) -> NDArray[np.float64]:
        return base - _rce(graph, permuted(impressions, group, columns, rng))

    groups: Lost = {
        group: lost(group, slice(0, layout.width)) for group, layout in schema.layouts.items() if layout.width
    }
    features: Lost = {}
    for feature in tqdm(schema.features, desc="importance", unit="feature", leave=False):
        start = schema.layouts[feature.group].offsets[feature.name]
        features[f"{feature.group}.{feature.name}"] = lost(feature.group, slice(start, start + feature.width))
    return groups, features


def permuted(impressions: Impressions, group: Group, columns: slice, rng: np.random.Generator) -> Impressions:
    """The impressions with these columns of one table dealt out to other rows.

    The viewer's go from one run of rows with one viewer to another, so that a view still has one viewer.
    """
    table = impressions.tables[group].copy()
    if group == "viewer":
        runs = list(same_viewer(table))
        of_runs = table[[run.start for run in runs], columns]
        table[:, columns] = np.repeat(rng.permutation(of_runs), [run.stop - run.start for run in runs], axis=0)
    else:
        table[:, columns] = rng.permutation(table[:, columns])
    return replace(impressions, tables={**impressions.tables, group: table})


def _rce(graph: onnxruntime.InferenceSession, impressions: Impressions) -> NDArray[np.float64]:
    truth, predicted = truth_of(impressions), score(graph, impressions)[1]
    return np.array([relative_cross_entropy(truth[:, j], predicted[:, j]) for j in range(truth.shape[1])])
