"""Everything the server counts. All series exist from the start, so that a rate never begins in the middle.

Children are bound once here: looking one up by its labels costs as much as counting.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from service.decode import Floats
from service.errors import Cancelled, DeadlinePassed, NotAllowed, Overloaded, TooManyCalls
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.model import Model
from service.pipeline import STAGES, Answer
from service.schema import GROUPS

logger = logging.getLogger(__name__)
T = TypeVar("T")

SECONDS_BUCKETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
CANDIDATES_BUCKETS = (0, 1, 10, 30, 100, 200, 500, 1_000, 1_500, 2_000, 5_000)
STATES = ("present", "absent", "unknown")
# Why calls are turned away.
REFUSALS: dict[type[Exception], str] = {
    DeadlinePassed: "deadline",
    Overloaded: "queue",
    TooManyCalls: "calls",
    Cancelled: "cancelled",
    NotAllowed: "identity",
}
# So many things are counted together, four for each call: a processor that comes from a run of the model has to fetch
# all the code and counters anew, which takes several times as long as counting.
COUNTED_TOGETHER = 128
LOAD_RESULTS = ("loaded", "refused")
_DECISION_PREFIX = "ICYMI_DECISION_"
_DEGRADATION_PREFIX = "DEGRADATION_"


class MethodMetrics:
    """The standard gRPC server metrics of one method."""

    def __init__(self, started: Counter, handled: Counter, seconds: Histogram, labels: tuple[str, str]) -> None:
        self.started = started.labels(*labels)
        self.handled = {code: handled.labels(*labels, code.name) for code in grpc.StatusCode}
        self.seconds = seconds.labels(*labels)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, service: str, methods: Iterable[str], arms: Iterable[tuple[str, str]]) -> None:
        """Makes the series of a gRPC service, its methods, and all pairs of experiment and arm."""
        self.registry = CollectorRegistry()
        self.registry.register(_Before(self._count_waiting))  # the first to be asked
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
        self.queue_rows = Gauge(
            "timeline_queue_rows", "Tweets that are scored right now or wait for it.", registry=self.registry
        )
        refused = Counter(
            "timeline_refused_total", "Calls that were turned away, by why.", ("reason",), registry=self.registry
        )
        self.refused = {kind: refused.labels(reason) for kind, reason in REFUSALS.items()}
        degraded = Counter(
            "timeline_degraded_total",
            "Timelines of which not every Tweet was scored.",
            ("degradation",),
            registry=self.registry,
        )
        self._degraded = {
            number: degraded.labels(name.removeprefix(_DEGRADATION_PREFIX).lower())
            for name, number in pb.Degradation.items()
            if number not in (pb.DEGRADATION_UNSPECIFIED, pb.DEGRADATION_NONE)
        }
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
        self._probability = ProbabilityHistogram()
        self.registry.register(self._probability)
        arm = Counter("timeline_arm_total", "Timelines, by arm.", ("experiment", "arm"), registry=self.registry)
        self._arms = {names: arm.labels(*names) for names in arms}
        self.served_log_dropped = Counter(
            "timeline_served_log_dropped_total", "Timelines that are not in the served log.", registry=self.registry
        )
        self._model_info = Gauge(
            "timeline_model_info", "1 for each model that serves.", ("version", "sha256"), registry=self.registry
        )
        self._models: set[tuple[str, str]] = set()
        # Appending and popping are single steps under the GIL.
        self._waiting: deque[tuple[Callable[[Any], object], Any]] = deque()
        loads = Counter("timeline_model_loads_total", "Attempts to load a model.", ("result",), registry=self.registry)
        self.loads = {result: loads.labels(result) for result in LOAD_RESULTS}
        tls = Counter("timeline_tls_reloads_total", "Changes of the TLS files.", ("result",), registry=self.registry)
        self.tls_reloads = {result: tls.labels(result) for result in LOAD_RESULTS}

    def serve(self, models: Collection[Model]) -> None:
        """Tells of the models that serve from now on."""
        for model in models:
            self._probability.add_heads(model.schema.head_names)
        serving = {(model.version, model.sha256) for model in models}
        for labels in serving:
            self._model_info.labels(*labels).set(1)
        for labels in self._models - serving:
            self._model_info.remove(*labels)
        self._models = serving

    def observe(self, answer: Answer) -> None:
        """Counts what one answer was about, in a while."""
        self.count(self._count_answer, answer)

    def count(self, how: Callable[[T], object], what: T) -> None:
        """Has something counted in a while, at the latest when somebody asks."""
        self._waiting.append((how, what))
        if len(self._waiting) >= COUNTED_TOGETHER:
            self._count_waiting()

    def _count_waiting(self) -> None:
        with contextlib.suppress(IndexError):  # none left
            while True:
                how, what = self._waiting.popleft()
                try:
                    how(what)
                except Exception:  # it is about another call than the one that is answered here
                    logger.exception("something is not counted")

    def _count_answer(self, answer: Answer) -> None:
        for stage, ns in answer.stages_ns.items():
            self._stages[stage].observe(ns / 1e9)
        self._candidates.observe(answer.rows)
        for counters, counts in zip(self._features, answer.counts, strict=True):
            for counter, count in zip(counters, counts, strict=False):  # the counts end with unknown categories
                if count:
                    counter.inc(count)
        self._probability.observe(answer.heads, answer.probabilities)
        if answer.ranking is not None:
            timeline = answer.ranking.timeline
            self._icymi[timeline.decision].inc()
            if timeline.degradation != pb.DEGRADATION_NONE:
                self._degraded[timeline.degradation].inc()
            for names in answer.ranking.arms.items():
                self._arms[names].inc()


class _Before(Collector):
    """Has something done before a registry's other collectors are asked."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do

    def describe(self) -> Iterator[Metric]:
        """No series of its own."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """No series of its own."""
        self._do()
        return iter(())


class ProbabilityHistogram(Collector):
    """`timeline_probability{head}`: all calibrated probabilities of an answer in one go.

    Buckets end at powers of two, 2^-EXPONENTS to 1: a float's exponent says which one it belongs in.

    A model that was sound when it was loaded may still answer some requests with what is no probability. Tweets with a
    NaN, or a value outside of [0, 1], are in `timeline_invalid_probabilities_total` instead.
    """

    EXPONENTS = 16
    _BUCKETS = EXPONENTS + 1

    def __init__(self) -> None:
        # Guards all below. Held for an addition of small arrays or a copy of them, never across a call out.
        self._lock = threading.Lock()
        self._heads: dict[str, int] = {}
        self._counts: NDArray[np.int64] = np.zeros((0, self._BUCKETS), np.int64)
        self._sums: NDArray[np.float64] = np.zeros(0)
        self._invalid = 0
        # Heads of a model -> which of the heads above they are. Only ever added to.
        self._places: dict[tuple[str, ...], NDArray[np.intp]] = {}
        # Number of heads -> where the bins of each begin, for row after row of as many Tweets as ever came: adding a
        # row of heads to every row would take three times as long.
        self._offsets: dict[int, NDArray[np.int32]] = {}

    def add_heads(self, heads: tuple[str, ...]) -> None:
        """Begins the series of the heads that are new; those of a model that no longer serves stay."""
        with self._lock:
            places = [self._heads.setdefault(head, len(self._heads)) for head in heads]
            new = len(self._heads) - len(self._sums)
            self._sums = np.pad(self._sums, (0, new))
            self._counts = np.pad(self._counts, ((0, new), (0, 0)))
        self._places[heads] = np.array(places, np.intp)

    def observe(self, heads: tuple[str, ...], probabilities: Floats) -> None:
        """Counts float32 [N, heads]; `heads` were added in one go. The sums are right to six digits."""
        # NaN compares false.
        valid = np.logical_and.reduce((probabilities >= 0) & (probabilities <= 1), axis=1)
        invalid = len(valid) - int(np.count_nonzero(valid))
        if invalid:
            probabilities = probabilities[valid]
        rows = len(probabilities)
        # A bucket has its upper end within, so step one float down first: now 2^-k and all above 2^-(k+1) share an
        # exponent. What is stored for it is 126 for the bucket that ends at 1.
        bins = probabilities.ravel().view(np.int32) - 1
        bins >>= 23
        np.maximum(bins, 126 - self.EXPONENTS, out=bins)
        bins += self._bins_of_rows(rows, len(heads))
        counts = np.bincount(bins, minlength=len(heads) * self._BUCKETS).reshape(len(heads), self._BUCKETS)
        sums = np.ones(rows, np.float32) @ probabilities  # a fifth of what sum(axis=0) takes
        places = self._places[heads]
        with self._lock:
            self._counts[places] += counts
            self._sums[places] += sums
            self._invalid += invalid

    def _bins_of_rows(self, rows: int, heads: int) -> NDArray[np.int32]:
        """int32 [rows x heads]: what to add to an exponent as it is stored to get the bin of its head."""
        offsets = self._offsets.get(heads)
        if offsets is None or len(offsets) < rows * heads:
            first = np.arange(heads, dtype=np.int32) * self._BUCKETS - (126 - self.EXPONENTS)
            offsets = self._offsets[heads] = np.tile(first, rows)
        return offsets[: rows * heads]

    def collect(self) -> Iterator[Metric]:
        """The histogram as Prometheus wants it, cumulative, and the count of what is not in it."""
        with self._lock:
            heads, counts, sums = list(self._heads), self._counts.copy(), self._sums.copy()
            invalid = self._invalid
        family = HistogramMetricFamily("timeline_probability", "Calibrated probabilities.", labels=["head"])
        bounds = [str(2.0**-exponent) for exponent in range(self.EXPONENTS, -1, -1)]
        for head, cumulative, total in zip(heads, counts.cumsum(axis=1), sums, strict=True):
            buckets = [(bound, float(count)) for bound, count in zip(bounds, cumulative, strict=True)]
            family.add_metric([head], [*buckets, ("+Inf", float(cumulative[-1]))], sum_value=float(total))
        yield family
        yield CounterMetricFamily(
            "timeline_invalid_probabilities", "Tweets that the model gave no probabilities.", value=invalid
        )
