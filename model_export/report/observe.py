"""What a run's model says on its test days: the probabilities that a report draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.baselines.bootstrap import drawn_rce, interval
from model_export.datasets.records import Impressions, RecordSet
from model_export.sampling import row_uniform
from model_export.score import score

Array = NDArray[Any]

# Edges of a histogram of probabilities: six bins a decade.
HISTOGRAM_EDGES: NDArray[np.float64] = np.logspace(-5, 0, 31)

_DRAWS = 500


@dataclass(frozen=True)
class Observed:
    """Impressions of the test days in whole sessions, and what the graph says of them.

    Attributes:
        raw: float32 [n, H] probabilities before calibration.
        calibrated: float32 [n, H].
        truth: [n, H] the reachable probabilities of a simulated world, the labels elsewhere.
        simulated: Which of the two.
        viewers: int64 [n] ids.
    """

    raw: Array
    calibrated: Array
    truth: Array
    simulated: bool
    viewers: Array


def truth_of(impressions: Impressions) -> Array:
    """What predictions are held against [n, H]."""
    return impressions.labels if impressions.reachable is None else impressions.reachable


def observe(graph: onnxruntime.InferenceSession, records: RecordSet, days: Sequence[int], rows: int) -> Observed:
    """Lets the graph answer about `rows` impressions of these days, or a few more or less; all, where there are fewer.

    Raises:
        ValueError: Not one session was drawn.
    """
    raw, calibrated, truth, viewers = [], [], [], []
    share = rows / records.rows(days)
    simulated = False
    for impressions in tqdm(records.batches(days), desc="observe", unit="batch", leave=False):
        drawn = impressions.take(session_uniform(impressions) < share)
        if not len(drawn):
            continue
        answer = score(graph, drawn)
        raw.append(answer[0])
        calibrated.append(answer[1])
        truth.append(truth_of(drawn))
        viewers.append(drawn.ids["viewer_id"])
        simulated = drawn.reachable is not None
    if not raw:
        raise ValueError("no session was drawn: there are too few impressions")
    return Observed(
        raw=np.concatenate(raw),
        calibrated=np.concatenate(calibrated),
        truth=np.concatenate(truth),
        simulated=simulated,
        viewers=np.concatenate(viewers),
    )


def rce_interval(observed: Observed, head: int) -> tuple[float, float]:
    """The 95 % interval of a head's RCE in percent, viewers drawn again."""
    predicted = observed.calibrated[:, head : head + 1].astype(np.float64)
    return interval(drawn_rce(observed.viewers, observed.truth[:, head], predicted, _DRAWS, seed=0)[:, 0])


def session_uniform(impressions: Impressions) -> NDArray[np.float64]:
    """A number in [0, 1) for each impression [n], the same for all of a session."""
    ids = impressions.ids
    return row_uniform({**ids, "tweet_id": np.zeros_like(ids["tweet_id"])}, seed=0)


def histograms(p: Array, predicted: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(of impressions with the engagement, of those without): shares of each in the bins of HISTOGRAM_EDGES.

    Predictions below the lowest edge count in the first bin. A row counts p in the first and 1 - p in the second; each
    sums to 1, or to 0 where there are none.
    """
    clipped = np.clip(predicted.astype(np.float64), HISTOGRAM_EDGES[0], 1.0)
    p = p.astype(np.float64)
    sums = [np.histogram(clipped, HISTOGRAM_EDGES, weights=weights)[0] for weights in (p, 1 - p)]
    with_it, without = (counts / counts.sum() if counts.sum() else counts for counts in sums)
    return with_it, without
