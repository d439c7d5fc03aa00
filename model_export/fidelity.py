"""What becomes of the net's answers in the graph that is served: the measure Q4.

The net in float32 torch, through the calibration that the graph carries, beside the graph, on held-out days.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tqdm import tqdm

from loadtest.measures import Measure
from model_export.calibrate import apply_knots
from model_export.datasets.records import RecordSet
from model_export.evaluate import relative_cross_entropy
from model_export.network import Network
from model_export.parity import torch_probabilities
from model_export.score import score
from model_export.weights import Knots
from service.relevance import relevance

Floats = NDArray[np.float32]

TOP = 10
# In a view of few Tweets most are among the best ten, whoever chooses them.
VIEW_TWEETS_MIN = 30


@dataclass(frozen=True)
class Answers:
    """Calibrated probabilities of n impressions, in order of time.

    Attributes:
        graph: float32 [n, H], by the graph.
        net: float32 [n, H], by the net.
        truth: [n, H], the reachable probabilities in a simulated world, labels elsewhere.
        view_starts: Where each timeline view begins, and at last n.
    """

    graph: Floats
    net: Floats
    truth: NDArray[np.generic]
    view_starts: NDArray[np.int64]


def answers_of_day(
    network: Network, graph: onnxruntime.InferenceSession, calibration: Sequence[Knots], records: RecordSet, day: int
) -> Answers:
    """Both answers on all impressions of a day."""
    graphs, nets, truth, sessions = [], [], [], []
    for impressions in tqdm(records.batches([day]), desc=f"day {day}", unit="batch", leave=False):
        graphs.append(score(graph, impressions)[1])
        raw = torch_probabilities(network, impressions)
        columns = [apply_knots(knots, raw[:, head]) for head, knots in enumerate(calibration)]
        nets.append(np.stack(columns, axis=1).astype(np.float32))
        truth.append(impressions.labels if impressions.reachable is None else impressions.reachable)
        sessions.append(impressions.ids["session"])
    session = np.concatenate(sessions)
    starts = np.flatnonzero(np.diff(session, prepend=session[0] - 1))
    return Answers(np.concatenate(graphs), np.concatenate(nets), np.concatenate(truth), np.append(starts, len(session)))


def joined(parts: Sequence[Answers]) -> Answers:
    """The answers of several days as one."""
    sizes = np.cumsum([0, *(len(part.graph) for part in parts)])
    starts = [part.view_starts[:-1] + size for part, size in zip(parts, sizes, strict=False)]
    return Answers(
        graph=np.concatenate([part.graph for part in parts]),
        net=np.concatenate([part.net for part in parts]),
        truth=np.concatenate([part.truth for part in parts]),
        view_starts=np.append(np.concatenate(starts), sizes[-1]),
    )


def difference(answers: Answers) -> float:
    """The 99.9th percentile of |graph - net| / (0.05 net + 1e-4), of the head where it is largest."""
    scaled = np.abs(answers.graph - answers.net) / (0.05 * answers.net + 1e-4)
    return float(np.quantile(scaled, 0.999, axis=0).max())


def rce_points_lost(answers: Answers) -> float:
    """RCE of the net minus RCE of the graph, of the head that loses most; NaN where no head has both classes."""
    lost = [
        relative_cross_entropy(p, net) - relative_cross_entropy(p, graph)
        for p, net, graph in zip(answers.truth.T, answers.net.T, answers.graph.T, strict=True)
    ]
    known = [points for points in lost if not np.isnan(points)]
    return max(known, default=float("nan"))


def top_overlap(answers: Answers, signed_weights: NDArray[np.float64]) -> float:
    """Of the TOP best Tweets by the net's relevance, the share that is among the graph's, averaged over views.

    NaN where no view has VIEW_TWEETS_MIN Tweets.
    """
    by_graph, by_net = (relevance(p, signed_weights) for p in (answers.graph, answers.net))
    shares = [
        len(_best(by_graph[start:end]) & _best(by_net[start:end])) / TOP
        for start, end in pairwise(answers.view_starts.tolist())
        if end - start >= VIEW_TWEETS_MIN
    ]
    return float(np.mean(shares)) if shares else float("nan")


def _best(relevances: Floats) -> set[int]:
    return set(np.argsort(-relevances, kind="stable")[:TOP].tolist())


def fidelity(days: Sequence[Answers], signed_weights: NDArray[np.float64]) -> dict[str, Measure]:
    """Q4: each figure over all days, with the lowest and the highest of a single day.

    A figure that the data can not give (views too small, one class only) is left out.
    """
    together = joined(days)
    figures = {
        "Q4_difference": ([difference(a) for a in (together, *days)], "ratio"),
        "Q4_rce_points_lost": ([rce_points_lost(a) for a in (together, *days)], "points"),
        "Q4_top10_overlap": ([top_overlap(a, signed_weights) for a in (together, *days)], "share"),
    }
    return {
        name: Measure(values[0], min(values[1:]), max(values[1:]), unit)
        for name, (values, unit) in figures.items()
        if not np.isnan(values).any()
    }
