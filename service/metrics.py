"""Everything the server counts. All series exist from the start, so that a rate never begins in the middle.

Children are bound once here: looking one up by its labels costs as much as counting.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

import grpc
import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from service.decode import Floats
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.model import Model
from service.pipeline import STAGES, Answer
from service.schema import GROUPS

SECONDS_BUCKETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
CANDIDATES_BUCKETS = (0, 1, 10, 30, 100, 200, 500, 1_000, 1_500, 2_000, 5_000)
STATES = ("present", "absent", "unknown")
LOAD_RESULTS = ("loaded", "refused")
_DECISION_PREFIX = "ICYMI_DECISION_"


class MethodMetrics:
    """The standard gRPC server metrics of one method."""

    def __init__(self, started: Counter, handled: Counter, seconds: Histogram, labels: tuple[str, str]) -> None:
        self.started = started.labels(*labels)
        self.handled = {code: handled.labels(*labels, code.name) for code in grpc.StatusCode}
        self.seconds = seconds.labels(*labels)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, service: str, methods: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        labels = ("grpc_service", "grpc_method")
        started = Counter("grpc_server_started_total", "Calls begun.", labels, registry=self.registry)
        handled = Counter("grpc_server_handled_total", "Calls ended.", (*labels, "grpc_code"), registry=self.registry)
        seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from a call's arrival to its answer.",
            labels,
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.methods = {method: MethodMetrics(started, handled, seconds, (service, method)) for method in methods}

        stage = Histogram(
            "timeline_stage_duration_seconds",
            "Time in one stage of a request.",
            ("stage",),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._stages = {name: stage.labels(name) for name in STAGES}
        self._candidates = Histogram(
            "timeline_candidates", "Tweets in a request.", buckets=CANDIDATES_BUCKETS, registry=self.registry
        )
        icymi = Counter(
            "timeline_icymi_total", "Timelines, by what became of ICYMI.", ("decision",), registry=self.registry
        )
        self._icymi = {
            number: icymi.labels(name.removeprefix(_DECISION_PREFIX).lower())
            for name, number in pb.IcymiDecision.items()
            if number != pb.ICYMI_DECISION_UNSPECIFIED
        }
        features = Counter(
            "timeline_features_total", "Feature columns, by how they fared.", ("group", "state"), registry=self.registry
        )
        self._features = [[features.labels(group, state) for state in STATES] for group in GROUPS]
        self._probability: ProbabilityHistogram | None = None
        self._model_info = Gauge(
            "timeline_model_info", "1 for the model that serves.", ("version", "sha256"), registry=self.registry
        )
        loads = Counter("timeline_model_loads_total", "Attempts to load a model.", ("result",), registry=self.registry)
        self.loads = {result: loads.labels(result) for result in LOAD_RESULTS}

    def serve(self, model: Model) -> None:
        """Tells of the one model that the server serves."""
        self._model_info.labels(model.version, model.sha256).set(1)
        self._probability = ProbabilityHistogram(model.schema.head_names)
        self.registry.register(self._probability)

    def observe(self, answer: Answer) -> None:
        """Counts what one answer was about."""
        for stage, ns in answer.stages_ns.items():
            self._stages[stage].observe(ns / 1e9)
        self._candidates.observe(len(answer.probabilities))
        for counters, counts in zip(self._features, answer.counts, strict=True):
            for counter, count in zip(counters, counts, strict=False):  # the counts end with unknown categories
                if count:
                    counter.inc(count)
        if answer.decision is not None:
            self._icymi[answer.decision].inc()
        if self._probability is not None:
            self._probability.observe(answer.probabilities)


class ProbabilityHistogram(Collector):
    """`timeline_probability{head}`: all calibrated probabilities of an answer in one go.

    Buckets end at powers of two, 2^-EXPONENTS to 1: a float's exponent says which one it belongs in.
    """

    EXPONENTS = 16

    def __init__(self, heads: Sequence[str]) -> None:
        self._heads = heads
        self._bins = self.EXPONENTS + 1
        # Where each head's bins begin, row after row: adding a row of heads to every row costs three times as much.
        # Replaced by a longer one when a request has more Tweets than any before.
        self._offsets: NDArray[np.int32] = np.empty(0, np.int32)
        # Guards the two arrays below; held for an addition of small arrays or a copy of them, never across a call out.
        self._lock = threading.Lock()
        self._counts: NDArray[np.int64] = np.zeros(len(heads) * self._bins, np.int64)
        self._sums: NDArray[np.float64] = np.zeros(len(heads))

    def observe(self, probabilities: Floats) -> None:
        """Counts float32 [N, heads] in [0, 1]; the sums are right to six digits."""
        rows = len(probabilities)
        offsets = self._offsets
        if len(offsets) < probabilities.size:
            offsets = np.tile(np.arange(len(self._heads), dtype=np.int32) * self._bins, rows)
            self._offsets = offsets
        # A bucket has its upper end within, so step one float down first: now 2^-k and all above 2^-(k+1) share an
        # exponent. What is stored for it is 126 for the bucket that ends at 1.
        bins = probabilities.ravel().view(np.int32) - 1
        bins >>= 23
        np.maximum(bins, 126 - self.EXPONENTS, out=bins)
        bins += offsets[: len(bins)]
        counts = np.bincount(bins - (126 - self.EXPONENTS), minlength=len(self._counts))
        sums = np.ones(rows, np.float32) @ probabilities  # a fifth of what sum(axis=0) takes
        with self._lock:
            self._counts += counts
            self._sums += sums

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The histogram as Prometheus wants it: cumulative."""
        with self._lock:
            counts, sums = self._counts.copy(), self._sums.copy()
        family = HistogramMetricFamily("timeline_probability", "Calibrated probabilities.", labels=["head"])
        bounds = [str(2.0**-exponent) for exponent in range(self.EXPONENTS, -1, -1)]
        for head, cumulative, total in zip(
            self._heads, counts.reshape(len(self._heads), -1).cumsum(axis=1), sums, strict=True
        ):
            buckets = [(bound, float(count)) for bound, count in zip(bounds, cumulative, strict=True)]
            family.add_metric([head], [*buckets, ("+Inf", float(cumulative[-1]))], sum_value=float(total))
        yield family
