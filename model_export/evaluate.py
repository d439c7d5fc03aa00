"""How good probabilities are.

p stands for what is true of each row: a label (0 or 1), or its probability. Expected values over labels drawn with p
need no draw: cross-entropy is linear in the label, and a row counts p in favour and 1 - p against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from tqdm import tqdm

from model_export.datasets.records import RecordSet
from model_export.sampling import prior_corrected
from model_export.score import score

Array = NDArray[Any]

# Probabilities are held this far from 0 and 1 in logarithms, as in the published definition of RCE.
EPSILON = 1e-7


def cross_entropy(p: Array, predicted: Array) -> float:
    """Mean of -p ln(q) - (1 - p) ln(1 - q) over rows; p and q [n], in [0, 1]."""
    q = np.clip(predicted.astype(np.float64), EPSILON, 1 - EPSILON)
    return float(-np.mean(p * np.log(q) + (1 - p) * np.log1p(-q)))


def relative_cross_entropy(p: Array, predicted: Array) -> float:
    """RCE in percent: 100 (1 - CE / CE of always predicting mean p).

    0: as good as that constant; below 0: worse, most often for want of calibration. NaN where mean p is 0 or 1.
    """
    base = float(np.mean(p, dtype=np.float64))
    if not 0 < base < 1:
        return float("nan")
    return 100 * (1 - cross_entropy(p, predicted) / cross_entropy(p, np.full(len(p), base)))


def pr_auc(p: Array, predicted: Array) -> float:
    """Average precision: every row stands once as a positive of weight p and once as a negative of weight 1 - p.

    NaN where no row can be positive.
    """
    if not (p > 0).any():
        return float("nan")
    truth = np.repeat([1, 0], len(p))
    p = p.astype(np.float64)
    return float(average_precision_score(truth, np.tile(predicted, 2), sample_weight=np.concatenate([p, 1 - p])))


def calibration_error(p: Array, predicted: Array, bins: int = 20) -> float:
    """Sum over bins of equal mass, by prediction, of |mean p - mean q| / (bins x base rate).

    NaN where mean p is 0.
    """
    base = float(np.mean(p, dtype=np.float64))
    if base == 0:
        return float("nan")
    mean_predicted, mean_p = reliability(p, predicted, bins)
    return float(np.mean(np.abs(mean_p - mean_predicted))) / base


def reliability(p: Array, predicted: Array, bins: int = 20) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean prediction, mean p) of each bin of equal mass, in order of the prediction; fewer bins where rows are fewer.

    What a reliability diagram draws. Rows of equal prediction stay in their order, and a bin may end among them.
    """
    parts = np.array_split(np.argsort(predicted, kind="stable"), min(bins, len(p)))
    mean_predicted = [np.mean(predicted[rows], dtype=np.float64) for rows in parts]
    return np.array(mean_predicted), np.array([np.mean(p[rows], dtype=np.float64) for rows in parts])


def evaluate_graph(
    graph: onnxruntime.InferenceSession,
    records: RecordSet,
    days: Sequence[int],
    positives: Mapping[str, int],
    calibrated: bool = True,
    rates: Mapping[str, float] | None = None,
) -> dict[str, dict[str, float]]:
    """Figures of each head's probabilities on some days, by head.

    In a simulated world figures are expected values. They are taken under the reachable probabilities: what a graph
    answers is a function of what the request carries, and given that the expectation of the true probability *is* the
    reachable one, so the expected value is the same as under the true ones, with less noise; and the reachable figure
    (of predicting the reachable probability itself) is then the best there is.

    Args:
        graph: A session of an exported graph.
        records: With the schema that the graph was made for.
        days: What to evaluate on.
        positives: By head, in the training data before sampling; reported beside the figures.
        calibrated: Whether to look at the calibrated probabilities or at the raw ones.
        rates: By head, the share of its negatives that it was trained on.

    Returns:
        rce, pr_auc, calibration_error, positives, evaluated_positives (labels drawn in these days); in a simulated
        world also reachable_rce, reachable_pr_auc, share (rce / reachable_rce). With `rates` also calibration_gain: by
        how much rce is above that of raw probabilities that only have their sampling undone.
    """
    said, labels, reachable = [], [], []
    for impressions in tqdm(records.batches(days), desc="evaluate", unit="batch", leave=False):
        said.append(score(graph, impressions))
        labels.append(impressions.labels)
        if impressions.reachable is not None:
            reachable.append(impressions.reachable)
    raw, q = (np.concatenate([part[i] for part in said]) for i in (0, int(calibrated)))
    label = np.concatenate(labels)
    best = np.concatenate(reachable) if reachable else None
    figures: dict[str, dict[str, float]] = {}
    for j, head in enumerate(records.schema.head_names):
        p = label[:, j] if best is None else best[:, j]
        figures[head] = head_figures(p, q[:, j])
        if rates is not None:
            undone = relative_cross_entropy(p, prior_corrected(raw[:, j].astype(np.float64), rates[head]))
            figures[head]["calibration_gain"] = figures[head]["rce"] - undone
        if best is not None:
            figures[head] |= reachable_figures(best[:, j], figures[head]["rce"])
        figures[head] |= {"positives": positives[head], "evaluated_positives": int(label[:, j].sum())}
    return figures


def head_figures(p: Array, predicted: Array) -> dict[str, float]:
    """What is said of one head's probabilities."""
    return {
        "rce": relative_cross_entropy(p, predicted),
        "pr_auc": pr_auc(p, predicted),
        "calibration_error": calibration_error(p, predicted),
    }


def reachable_figures(reachable: Array, rce: float) -> dict[str, float]:
    """The best that one head's figures could be, and how much of it `rce` is."""
    reachable_rce = relative_cross_entropy(reachable, reachable)
    return {
        "reachable_rce": reachable_rce,
        "share": rce / reachable_rce,
        "reachable_pr_auc": pr_auc(reachable, reachable),
    }
