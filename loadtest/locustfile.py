"""Users who look at their timelines: `locust -f loadtest/locustfile.py --headless -u 10 -t 30s --host HOST:PORT`.

Each user sends RankTimeline requests one after the other, of the default mix of candidate counts, and checks that the
answer holds exactly the Tweets sent. Locust rounds latencies to whole milliseconds, so the table at the end is made
from a histogram of its own, by candidate count.

The loop is closed: a user waits for one answer before asking again, so a slow server is asked less often and its
latencies look better than those of independent viewers would.
"""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from locust import User, constant, events, task

# isort: split
# Above: locust puts gevent's versions in place of Python's blocking calls when it is imported.
import grpc
import grpc.experimental.gevent as grpc_gevent

from loadtest import traffic
from loadtest.latency import LatencyHistogram
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc

# Without it a call would stop all users, and their latencies would look as if they took turns.
grpc_gevent.init_gevent()

# Longer than any viewer waits: a slow answer is to be measured, not cut off.
DEADLINE_S = 10.0
QUANTILES = (0.5, 0.95, 0.99, 0.999)


@dataclass
class Load:
    """What all users share.

    Attributes:
        requests: To be sent in turn.
        latencies: By candidate count; of calls that were answered.
    """

    requests: itertools.cycle[pb.RankTimelineRequest] = field(default_factory=lambda: itertools.cycle(()))
    latencies: dict[int, LatencyHistogram] = field(
        default_factory=lambda: {tweets: LatencyHistogram() for tweets in traffic.CANDIDATES_MIX}
    )


LOAD = Load()


@events.test_start.add_listener  # type: ignore[untyped-decorator]  # locust's events have no types
def make_requests(environment: Any, **_: Any) -> None:
    """Asks the server what its model reads, and makes up requests for it; ends the run where there is no answer."""
    environment.process_exit_code = 1  # should the run end, by its time limit or otherwise, before there is an answer
    try:
        with grpc.insecure_channel(environment.host or "") as channel:
            stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
            schema = traffic.schema_of(stub.DescribeModel(pb.DescribeModelRequest(), timeout=DEADLINE_S))
    except grpc.RpcError as error:
        sys.exit(f"--host {environment.host}: {error}")
    tweet_counts = traffic.mixed_counts(traffic.REQUESTS, seed=1)
    LOAD.requests = itertools.cycle(traffic.requests(schema, tweet_counts, seed=1))
    environment.process_exit_code = None  # locust's own: whether any call failed


@events.quitting.add_listener  # type: ignore[untyped-decorator]  # locust's events have no types
def print_latencies(**_: Any) -> None:
    """A line per candidate count, and one for all."""
    everything = LatencyHistogram()
    print("Tweets   answers" + "".join(f"{f'p{100 * q:g}':>9}" for q in QUANTILES) + "      max   (ms)")
    for tweets, latencies in LOAD.latencies.items():
        everything.add(latencies)
        print(_row(str(tweets), latencies))
    print(_row("all", everything))


def _row(label: str, latencies: LatencyHistogram) -> str:
    milliseconds = [latencies.quantile_us(q) / 1e3 for q in QUANTILES] + [latencies.max_us / 1e3]
    return f"{label:>6}{len(latencies):>10}" + "".join(f"{ms:9.2f}" for ms in milliseconds)


class Viewer(User):
    """Looks at one timeline after the other."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """Connects; called by locust."""
        self.channel = grpc.insecure_channel(self.environment.host or "")
        self.stub = ranking_pb2_grpc.TimelineRankingServiceStub(self.channel)

    def on_stop(self) -> None:
        """Disconnects; called by locust."""
        self.channel.close()

    @task
    def rank_timeline(self) -> None:
        """One call, reported to locust and to the histogram."""
        request = next(LOAD.requests)
        error: Exception | None = None
        answer_bytes = 0
        started_s = time.perf_counter()
        try:
            response = self.stub.RankTimeline(request, timeout=DEADLINE_S)
            elapsed_s = time.perf_counter() - started_s
            answer_bytes = response.ByteSize()
            LOAD.latencies[len(request.candidates.tweet_ids)].record(elapsed_s * 1e6)
            traffic.check_tweets(request, response)
        except (grpc.RpcError, ValueError) as fault:
            elapsed_s = time.perf_counter() - started_s
            error = fault
        events.request.fire(  # type: ignore[no-untyped-call]  # locust's events have no types
            request_type="grpc",
            name="RankTimeline",
            response_time=elapsed_s * 1e3,
            response_length=answer_bytes,
            exception=error,
            context={},
        )
