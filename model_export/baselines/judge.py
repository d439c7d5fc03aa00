"""Calibrates models on the same days and judges them on the same later days."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.baselines.bootstrap import Difference, drawn_pr_auc, drawn_rce, interval
from model_export.calibrate import ScoreCounts, apply_knots
from model_export.datasets.records import Impressions, RecordSet
from model_export.evaluate import head_figures, relative_cross_entropy
from model_export.steps.calibrate import Parameters as CalibrationPlan
from model_export.steps.calibrate import fit_head
from model_export.weights import Knots

Floats = NDArray[np.float32]

# Impressions -> probabilities [n, H].
Predict = Callable[[Impressions], Floats]


@dataclass(frozen=True)
class Judged:
    """What models were judged on, and what they said.

    Attributes:
        viewers: [n].
        labels: uint8 [n, H].
        truth: [n, H] the reachable probabilities of a simulated world, the labels elsewhere.
        simulated: Which of the two.
        predicted: By model, calibrated probabilities [n, H].
    """

    viewers: NDArray[np.int64]
    labels: NDArray[np.uint8]
    truth: NDArray[Any]
    simulated: bool
    predicted: dict[str, Floats]


def calibrated(
    models: Mapping[str, Predict],
    records: RecordSet,
    days: Sequence[int],
    rates: NDArray[np.float64],
    plan: CalibrationPlan,
) -> dict[str, Predict]:
    """The models with a calibration on top that is fitted on these days; `rates` [H] are those of their training."""
    said: dict[str, list[Floats]] = {name: [] for name in models}
    labels = []
    for impressions in tqdm(records.batches(days), desc="calibrate", unit="batch", leave=False):
        labels.append(impressions.labels)
        for name, predict in models.items():
            said[name].append(predict(impressions))
    label = np.concatenate(labels)
    done = {}
    for name, predict in models.items():
        raw = np.concatenate(said[name])
        counts = [ScoreCounts.of(raw[:, j], label[:, j]) for j in range(len(rates))]
        knots = [fit_head(of_head, float(rate), plan)[1] for of_head, rate in zip(counts, rates, strict=True)]
        done[name] = _through(predict, knots)
    return done


def _through(predict: Predict, calibration: Sequence[Knots]) -> Predict:
    def calibrated_predict(impressions: Impressions) -> Floats:
        raw = predict(impressions)
        columns = [apply_knots(knots, raw[:, head]) for head, knots in enumerate(calibration)]
        return np.stack(columns, axis=1).astype(np.float32)

    return calibrated_predict


def judge(models: Mapping[str, Predict], records: RecordSet, days: Sequence[int]) -> Judged:
    """Lets all models predict these days; memory grows with their impressions, by 4 bytes a head and model."""
    said: dict[str, list[Floats]] = {name: [] for name in models}
    viewers, labels, reachable = [], [], []
    for impressions in tqdm(records.batches(days), desc="test", unit="batch", leave=False):
        viewers.append(impressions.ids["viewer_id"])
        labels.append(impressions.labels)
        if impressions.reachable is not None:
            reachable.append(impressions.reachable)
        for name, predict in models.items():
            said[name].append(predict(impressions))
    label = np.concatenate(labels)
    return Judged(
        viewers=np.concatenate(viewers),
        labels=label,
        truth=np.concatenate(reachable) if reachable else label,
        simulated=bool(reachable),
        predicted={name: np.concatenate(parts) for name, parts in said.items()},
    )


def figures(judged: Judged, heads: Sequence[str], against: str, draws: int, seed: int) -> dict[str, dict[str, Any]]:
    """All that is said of each model and head: {model: {head: figures}}.

    Args:
        judged: Of all models.
        heads: Names.
        against: The model that the others are compared with.
        draws: Of the bootstrap by viewer.
        seed: Of the draws.

    Returns:
        Per head rce, pr_auc and calibration_error, 95 % intervals of the first two, the differences of the two to
        `against` (this model's minus that one's) with intervals and verdicts, and evaluated_positives; in a simulated
        world reachable_rce as well. A verdict is this model's: "ahead" means better than `against`.
    """
    names = list(judged.predicted)
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for j, head in enumerate(tqdm(heads, desc="bootstrap", unit="head", leave=False)):
        truth = judged.truth[:, j]
        predicted = np.stack([judged.predicted[name][:, j] for name in names], axis=1).astype(np.float64)
        drawn = {
            "rce": drawn_rce(judged.viewers, truth, predicted, draws, seed),
            "pr_auc": drawn_pr_auc(judged.viewers, truth, predicted, draws, seed),
        }
        points = [head_figures(truth, predicted[:, i]) for i in range(len(names))]
        other = names.index(against)
        for i, name in enumerate(names):
            entry: dict[str, Any] = dict(points[i])
            for figure, values in drawn.items():
                entry[f"{figure}_low"], entry[f"{figure}_high"] = interval(values[:, i])
                if i != other:
                    low, high = interval(values[:, i] - values[:, other])
                    difference = Difference(points[i][figure] - points[other][figure], low, high)
                    entry[f"{figure}_difference"] = {**asdict(difference), "verdict": difference.verdict}
            entry["evaluated_positives"] = int(judged.labels[:, j].sum())
            if judged.simulated:
                entry["reachable_rce"] = relative_cross_entropy(truth, truth)
            found[name][head] = entry
    return found
