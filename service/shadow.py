"""The shadow model: answers a share of the requests once more, for nobody, to see what it would have done.

A request that was answered waits in a short queue for the one thread that works here. The thread passes it over while
the server is busy; what finds the queue full is dropped. So the shadow costs its share of the requests at most, and
none of them waits for it.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram

from service.admission import Admission
from service.agreement import TOP_K, Agreement, Tally, compare
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.pipeline import Answer, Call, Ranking
from service.serving import Serving
from service.stable_hash import uniform

# What became of a timeline that was sampled. Compared; or not, since the server was busy (or had not scored every
# Tweet), the queue was full, nothing is served under the label, the same version had answered, or it went wrong.
COMPARED, BUSY, DROPPED, NO_MODEL, SAME_VERSION, FAILED = RESULTS = (
    "compared",
    "busy",
    "dropped",
    "no_model",
    "same_version",
    "failed",
)
QUEUE_MAX = 8
# Comparisons that one line of the log sums up.
LOGGED_TOGETHER = 100
CLOSE_TIMEOUT_S = 5.0
OVERLAP_BUCKETS = tuple(i / TOP_K for i in range(TOP_K + 1))
# From 0: with a bucket below it there would be no sum, and an order turned round is as bad as none.
CORRELATION_BUCKETS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0)
_SALT = "timeline-ranker/shadow"

logger = logging.getLogger(__name__)


class _Job(NamedTuple):
    """A timeline that was served: what answered, the request as received, the answer as sent."""

    serving: Serving
    ranking: Ranking
    request: bytes
    response: bytes


class ShadowMetrics:
    """What the shadow model has to say.

    Of the differences (shadow - served) of a head's probability, up and down sum the positive and the negative ones
    apart: (up - down) / tweets is the drift, (up + down) / tweets their mean size.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """Makes the series; those of a head begin with the first model that has it."""
        results = Counter(
            "timeline_shadow_total", "Timelines sampled for the shadow model.", ("result",), registry=registry
        )
        self.results = {result: results.labels(result) for result in RESULTS}
        self._tweets = Counter(
            "timeline_shadow_tweets_total", "Tweets that both models scored.", ("head",), registry=registry
        )
        self._differences = Counter(
            "timeline_shadow_difference_total",
            "Sum of what the shadow's probabilities are above or below those served.",
            ("head", "direction"),
            registry=registry,
        )
        self._overlap = Histogram(
            "timeline_shadow_top_overlap",
            f"Share of the best {TOP_K} Tweets that both models have.",
            buckets=OVERLAP_BUCKETS,
            registry=registry,
        )
        self._correlation = Histogram(
            "timeline_shadow_rank_correlation",
            "Spearman's rank correlation of the scores.",
            buckets=CORRELATION_BUCKETS,
            registry=registry,
        )

    def observe(self, agreement: Agreement) -> None:
        """Counts a comparison; figures that are not defined are left out."""
        for histogram, value in (
            (self._overlap, agreement.top_overlap),
            (self._correlation, agreement.rank_correlation),
        ):
            if not math.isnan(value):
                histogram.observe(value)
        for head, differences in agreement.differences.items():
            self._tweets.labels(head).inc(len(differences))
            self._differences.labels(head, "up").inc(float(differences[differences > 0].sum()))
            self._differences.labels(head, "down").inc(float(-differences[differences < 0].sum()))


class Shadow:
    """Compares what a server serves with what the model under another label would have made of it."""

    def __init__(
        self,
        model: str,
        share: float,
        answer: Callable[[bytes, Serving, Call], Answer],
        busy: Callable[[], bool],
        metrics: ShadowMetrics,
        logged_together: int = LOGGED_TOGETHER,
    ) -> None:
        """Starts the thread.

        Args:
            model: Label of the shadow model; it may come and go.
            share: Of the timelines, 0 to 1, by request id.
            answer: Answers a request, as the server does.
            busy: Whether the server has better things to do.
            metrics: What to count in.
            logged_together: Comparisons in one line of the log.
        """
        # Appended to a request, it takes the place of what the request says: in protobuf the last value counts.
        self._override = pb.RankTimelineRequest(model=model).SerializeToString()
        self._model = model
        self._share = share
        self._busy = busy
        self._metrics = metrics
        self._logged_together = logged_together
        self._answer = answer
        self._admission = Admission(1)  # one call at a time, in a gate of its own: the server's is for callers
        self._queue: queue.Queue[_Job | None] = queue.Queue(QUEUE_MAX)
        # What the next line of the log tells, and of which versions: served, shadow.
        self._tally, self._versions = Tally(), ("", "")
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, serving: Serving, ranking: Ranking, request: bytes, response: bytes) -> None:
        """Queues a timeline that was served if it is sampled and there is room.

        Args:
            serving: What answered.
            ranking: How the timeline came to be.
            request: As received.
            response: As sent.
        """
        if uniform(_SALT, ranking.request_id) >= self._share:
            return
        if ranking.timeline.degradation != pb.DEGRADATION_NONE:
            self._metrics.results[BUSY].inc()
            return
        try:
            self._queue.put_nowait(_Job(serving, ranking, request, response))
        except queue.Full:
            self._metrics.results[DROPPED].inc()

    def close(self) -> None:
        """Compares what is queued, and logs what was not yet; leaves behind what is stuck."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=CLOSE_TIMEOUT_S)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                result = BUSY if self._busy() else self._compare(job)
            except Exception as error:  # nothing that a model trips over may end the thread
                result = FAILED
                if not self._failing:
                    logger.warning("shadow: request %s: %s: %s", job.ranking.request_id, type(error).__name__, error)
            if result in (COMPARED, FAILED):
                self._failing = result == FAILED
            self._metrics.results[result].inc()
        self._log()

    def _compare(self, job: _Job) -> str:
        """Compares one timeline; returns what became of it."""
        model = job.serving.models.get(self._model)
        if model is None:
            return NO_MODEL
        served = pb.RankTimelineResponse.FromString(job.response)
        versions = (served.served_by.model_version, model.version)
        if versions[0] == versions[1]:
            return SAME_VERSION
        answer = self._answer(job.request + self._override, job.serving, self._call(job.ranking))
        agreement = compare(served, pb.RankTimelineResponse.FromString(answer.body))
        self._metrics.observe(agreement)
        if versions != self._versions:
            self._log()
            self._versions = versions
        self._tally.add(agreement)
        if self._tally.compared >= self._logged_together:
            self._log()
        return COMPARED

    def _call(self, ranking: Ranking) -> Call:
        """The call that a timeline was ranked for, once more."""
        return Call(
            now_ms=ranking.served_at_ms,
            clock=time.perf_counter_ns,
            arrived_ns=time.perf_counter_ns(),
            deadline_ns=math.inf,
            admission=self._admission,
            on_end=lambda _: True,
            make_id=lambda: ranking.request_id,
        )

    def _log(self) -> None:
        """Writes the line, and begins the next."""
        tally, self._tally = self._tally, Tally()
        if not tally.compared:
            return
        drifts = ", ".join(f"{head} {drift.mean:+.3g} ({drift.mean_size:.3g})" for head, drift in tally.heads.items())
        logger.info(
            "shadow: version %s beside %s, %d timelines: top %d overlap %.4f, rank correlation %.4f; "
            "drift of probabilities (mean size): %s",
            self._versions[1],
            self._versions[0],
            tally.compared,
            TOP_K,
            tally.top_overlap.mean,
            tally.rank_correlation.mean,
            drifts,
        )
