"""Everything the server counts. All series exist from the start, so that a rate never begins in the middle.

Children are bound once here: looking one up by its labels costs as much as counting. Calls are counted many at a time,
each series once for all of them: a processor that comes from a run of the model has to fetch all the code and counters
anew, which takes several times as long as counting.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.decode import Floats
from service.errors import Cancelled, DeadlinePassed, NotAllowed, Overloaded, TooManyCalls
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.model import Model
from service.pipeline import STAGES, Answer
from service.schema import GROUPS

# A second series for each counter, with when it began, which nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

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
CALLS_TOGETHER = 32
LOAD_RESULTS = ("loaded", "refused")
_DECISION_PREFIX = "ICYMI_DECISION_"
_DEGRADATION_PREFIX = "DEGRADATION_"


class MethodMetrics(NamedTuple):
    """The standard gRPC server metrics of one method; `seconds` is a series of the histogram."""

    started: Counter
    handled: dict[grpc.StatusCode, Counter]
    seconds: int


class _Ended(NamedTuple):
    """A call that ended; `answer` where it has one that is more than bytes."""

    method: MethodMetrics
    code: grpc.StatusCode
    ns: int
    answer: Answer | None


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, service: str, methods: Iterable[str], arms: Iterable[tuple[str, str]]) -> None:
        """Makes the series of a gRPC service, its methods, and all pairs of experiment and arm."""
        self.registry = CollectorRegistry()
        self.registry.register(_Before(self.count))  # the first to be asked
        labels = ("grpc_service", "grpc_method")
        started = Counter("grpc_server_started_total", "Calls begun.", labels, registry=self.registry)
        handled = Counter("grpc_server_handled_total", "Calls ended.", (*labels, "grpc_code"), registry=self.registry)
        self._seconds = BulkHistogram(
            "grpc_server_handling_seconds", "Time from a call's arrival to its answer.", labels, SECONDS_BUCKETS
        )
        self.methods = {
            method: MethodMetrics(
                started.labels(service, method),
                {code: handled.labels(service, method, code.name) for code in grpc.StatusCode},
                self._seconds.series(service, method),
            )
            for method in methods
        }
        self._stage_seconds = BulkHistogram(
            "timeline_stage_duration_seconds", "Time in one stage of a request.", ("stage",), SECONDS_BUCKETS
        )
        self._stages = {name: self._stage_seconds.series(name) for name in STAGES}
        self._candidates = BulkHistogram("timeline_candidates", "Tweets in a request.", (), CANDIDATES_BUCKETS)
        self._candidates.series()
        for histogram in (self._seconds, self._stage_seconds, self._candidates):
            self.registry.register(histogram)
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
        self._probability = ProbabilityHistogram(self.registry)
        arm = Counter("timeline_arm_total", "Timelines, by arm.", ("experiment", "arm"), registry=self.registry)
        self._arms = {names: arm.labels(*names) for names in arms}
        self.served_log_dropped = Counter(
            "timeline_served_log_dropped_total", "Timelines that are not in the served log.", registry=self.registry
        )
        self._model_info = Gauge(
            "timeline_model_info", "1 for each model that serves.", ("version", "sha256"), registry=self.registry
        )
        self._models: set[tuple[str, str]] = set()
        # What is not counted yet. Appending and popping are single steps under the GIL.
        self._begun: deque[MethodMetrics] = deque()
        self._ended: deque[_Ended] = deque()
        # Held while calls are counted: who asks waits for those that another thread counts.
        self._counting = threading.Lock()
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

    def begun(self, method: MethodMetrics) -> None:
        """Counts a call that begins, in a while: at the latest when somebody asks."""
        self._begun.append(method)

    def ended(self, method: MethodMetrics, code: grpc.StatusCode, ns: int, answer: Answer | None) -> bool:
        """Counts a call that ended after `ns` and what its answer was about, in a while.

        Returns:
            Whether it is time to `count`: now and then, as counting takes as long as a small call.
        """
        self._ended.append(_Ended(method, code, ns, answer))
        return len(self._ended) % CALLS_TOGETHER == 0

    def count(self) -> None:
        """Counts what begun and ended until now."""
        with self._counting:
            # In this order: no call shall have ended and not begun.
            ended = _popped(self._ended)
            begun = _popped(self._begun)
            for counter, times in collections.Counter([method.started for method in begun]).items():
                counter.inc(times)
            try:
                self._count(ended)
            except Exception:  # one of them is not as it must be: no other shall suffer
                for call in ended:
                    try:
                        self._count([call])
                    except Exception:  # it is about another call than the one that is answered here
                        logger.exception("a call is not counted")

    def _count(self, ended: list[_Ended]) -> None:
        """Counts calls: all of them, or raises before it has counted one."""
        answers = [call.answer for call in ended if call.answer is not None]
        rankings = [answer.ranking for answer in answers if answer.ranking is not None]
        times = collections.Counter([call.method.handled[call.code] for call in ended])
        times.update([self._icymi[ranking.timeline.decision] for ranking in rankings])
        degradations = [ranking.timeline.degradation for ranking in rankings]
        times.update([self._degraded[value] for value in degradations if value != pb.DEGRADATION_NONE])
        times.update(map(self._arms.__getitem__, chain.from_iterable(ranking.arms.items() for ranking in rankings)))
        for of_columns, answers_alike in collections.Counter([answer.counts for answer in answers]).items():
            for counters, counts in zip(self._features, of_columns, strict=True):
                for counter, count in zip(counters, counts, strict=False):  # the counts end with unknown categories
                    times[counter] += count * answers_alike
        stages = list(map(self._stages.__getitem__, chain.from_iterable(answer.stages_ns for answer in answers)))
        stages_ns = list(chain.from_iterable(answer.stages_ns.values() for answer in answers))

        self._probability.observe([(answer.heads, answer.probabilities) for answer in answers])
        for counter, count in times.items():
            counter.inc(count)
        self._seconds.observe([call.method.seconds for call in ended], np.array([call.ns for call in ended]) / 1e9)
        self._stage_seconds.observe(stages, np.array(stages_ns) / 1e9)
        self._candidates.observe([0] * len(answers), [answer.rows for answer in answers])


def _popped(waiting: deque[T]) -> list[T]:
    """All that wait; nobody else takes some away."""
    return [waiting.popleft() for _ in range(len(waiting))]


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


class BulkHistogram(Collector):
    """A histogram that counts many values in one go; prometheus_client's walks its buckets for each."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        """Begins without series; the upper `bounds` of the buckets are within them and rise."""
        self._name, self._documentation, self._labels = name, documentation, labels
        self._bounds = np.array(bounds, np.float64)
        # Guards all below. Held for an addition of small arrays or a copy of them, never across a call out.
        self._lock = threading.Lock()
        self._series: dict[tuple[str, ...], int] = {}
        self._counts: NDArray[np.int64] = np.zeros((0, len(bounds) + 1), np.int64)
        self._sums: NDArray[np.float64] = np.zeros(0)

    def series(self, *labels: str) -> int:
        """The number of the series with these values of the labels; begins it if it is new."""
        with self._lock:
            number = self._series.setdefault(labels, len(self._series))
            new = len(self._series) - len(self._sums)
            self._sums = np.pad(self._sums, (0, new))
            self._counts = np.pad(self._counts, ((0, new), (0, 0)))
            return number

    def observe(self, series: Sequence[int], values: ArrayLike) -> None:
        """Counts a value for each of `series`."""
        places = np.array(series, np.intp)
        buckets = np.searchsorted(self._bounds, values)
        with self._lock:
            np.add.at(self._counts, (places, buckets), 1)
            np.add.at(self._sums, places, values)

    def add(self, series: Sequence[int], counts: NDArray[np.int64], sums: Floats) -> None:
        """Adds counts [n, buckets], +Inf the last of them, and sums [n] to different `series`."""
        with self._lock:
            self._counts[series] += counts
            self._sums[series] += sums

    def collect(self) -> Iterator[Metric]:
        """The histogram as Prometheus wants it: cumulative."""
        with self._lock:
            series, counts, sums = list(self._series), self._counts.cumsum(axis=1), self._sums.copy()
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, cumulative, total in zip(series, counts.tolist(), sums.tolist(), strict=True):
            family.add_metric(labels, list(zip(bounds, map(float, cumulative), strict=True)), total)
        yield family


class ProbabilityHistogram:
    """`timeline_probability{head}`: all calibrated probabilities of many answers in one go.

    Buckets end at powers of two, 2^-EXPONENTS to 1: a float's exponent says which one it belongs in.

    A model that was sound when it was loaded may still answer some requests with what is no probability. Tweets with a
    NaN, or a value outside of [0, 1], are in `timeline_invalid_probabilities_total` instead.
    """

    EXPONENTS = 16

    def __init__(self, registry: CollectorRegistry) -> None:
        """Begins without heads."""
        bounds = [2.0**-exponent for exponent in range(self.EXPONENTS, -1, -1)]
        self._histogram = BulkHistogram("timeline_probability", "Calibrated probabilities.", ("head",), bounds)
        registry.register(self._histogram)
        self._invalid = Counter(
            "timeline_invalid_probabilities_total", "Tweets that the model gave no probabilities.", registry=registry
        )
        # Heads of a model -> their series. Only ever added to.
        self._series: dict[tuple[str, ...], list[int]] = {}

    def add_heads(self, heads: tuple[str, ...]) -> None:
        """Begins the series of the heads that are new; those of a model that no longer serves stay."""
        self._series[heads] = [self._histogram.series(head) for head in heads]

    def observe(self, answers: Iterable[tuple[tuple[str, ...], Floats]]) -> None:
        """Counts float32 [N, heads] of each answer; `heads` were added in one go. The sums are right to six digits."""
        by_heads = collections.defaultdict(list)
        for heads, probabilities in answers:
            by_heads[heads].append(probabilities)
        for heads, of_answers in by_heads.items():
            self._observe(self._series[heads], np.concatenate(of_answers))

    def _observe(self, series: list[int], probabilities: Floats) -> None:
        # NaN compares false.
        if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1):
            valid = np.logical_and.reduce((probabilities >= 0) & (probabilities <= 1), axis=1)
            self._invalid.inc(len(valid) - int(valid.sum()))
            probabilities = probabilities[valid]
        of_heads = np.ascontiguousarray(probabilities.T)
        # A bucket has its upper end within, so step one float down first: now 2^-k and all above 2^-(k+1) share an
        # exponent. What is stored for it is 126 for the bucket that ends at 1.
        bins = of_heads.view(np.int32) - 1
        bins >>= 23
        bins -= 126 - self.EXPONENTS
        np.maximum(bins, 0, out=bins)
        counts = [np.bincount(of_head, minlength=self.EXPONENTS + 2) for of_head in bins]
        self._histogram.add(series, np.array(counts), of_heads.sum(axis=1))
