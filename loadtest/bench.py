"""What serving costs, against the floor: `python -m loadtest.bench --json PATH`.

P1 (500 Tweets) and P2 (1,500) are ratios of CPU time per call:

    (server per RankTimeline - session.run on the same inputs) / echo server per call of the same sizes

Server, model and echo run in processes of their own pinned to one core, taking turns; the calls come one at a time from
another core. A repetition sends each input once to each, a fraction of a second; ratios are taken within it, then the
median over all, so that a slow moment of the machine touches both sides, and a burst of noise few repetitions.

P5 (loadtest/overload.py) and P6 (loadtest/tail.py) follow, on the same server: what it does under more load.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import grpc

from loadtest import echo_server, overload, tail, traffic
from loadtest.measures import Measure, bundle_directory, positive, table, write
from loadtest.open_loop import RANK_TIMELINE, generator
from loadtest.pinned import PinnedProcess
from service.config import DEFAULT_BUNDLE
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc

TWEETS = {"P1": 500, "P2": 1_500}
THREADS = 32  # of the server: what it would take by itself on one core
COSTS_PER_LOAD = 7  # repetitions of P1 and P2, which take a second, for one of P5 and P6, which takes half a minute
MIXED_REQUESTS = 100


class Costs(NamedTuple):
    """Microseconds of CPU per call, of one repetition."""

    server: float
    session: float
    echo: float


class Load:
    """The standard load of one size, and the processes that its calls cost."""

    def __init__(self, tweets: int, bundle: Path, server: PinnedProcess, target: str, core: int) -> None:
        self._server = server
        self._stack = ExitStack()
        channel = self._stack.enter_context(grpc.insecure_channel(target))
        description = ranking_pb2_grpc.TimelineRankingServiceStub(channel).DescribeModel(pb.DescribeModelRequest())
        self._requests = traffic.standard_load(traffic.schema_of(description), tweets)
        self._bodies = [request.SerializeToString() for request in self._requests]
        self._rank: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(RANK_TIMELINE)

        answer_bytes = round(statistics.mean(len(self._rank(body)) for body in self._bodies))
        self._echo = self._stack.enter_context(PinnedProcess(core, "-m", "loadtest.echo_server", str(answer_bytes)))
        echo_channel = self._stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{self._echo.read_line()}"))
        self._echo_call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = echo_channel.unary_unary(echo_server.METHOD)
        self._session = self._stack.enter_context(
            PinnedProcess(core, "-m", "loadtest.session_floor", str(bundle), str(tweets))
        )
        self.measure()  # first calls cost more than later ones

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> Costs:
        """One repetition: each process in turn gets every input once; every answer is checked."""
        session_ns = int(self._session.ask(""))
        echo_ns, _ = self._timed(self._echo, self._echo_call)
        server_ns, answers = self._timed(self._server, self._rank)
        for request, answer in zip(self._requests, answers, strict=True):
            check_answer(request, pb.RankTimelineResponse.FromString(answer))
        return Costs(*(ns / len(self._bodies) / 1_000 for ns in (server_ns, session_ns, echo_ns)))

    def _timed(self, process: PinnedProcess, call: Callable[[bytes], bytes]) -> tuple[int, list[bytes]]:
        """The nanoseconds of CPU that a process spends on a call for each input, and its answers."""
        before_ns = process.cpu_ns()
        answers = [call(body) for body in self._bodies]
        return process.cpu_ns() - before_ns, answers


def check_answer(request: pb.RankTimelineRequest, response: pb.RankTimelineResponse) -> None:
    """Raises ValueError unless the answer is a full ranking of exactly the request's Tweets."""
    if response.degradation != pb.DEGRADATION_NONE:
        raise ValueError(f"{request.request_id}: answered with {pb.Degradation.Name(response.degradation)}")
    traffic.check_tweets(request, response)


def measures(name: str, costs: Sequence[Costs]) -> dict[str, Measure]:
    """A ratio of section "numbers" and the microseconds behind it, from the costs of each repetition."""
    overheads = [c.server - c.session for c in costs]
    return {
        name: Measure.of([overhead / c.echo for overhead, c in zip(overheads, costs, strict=True)], "ratio"),
        f"{name}_us": Measure.of(overheads, "us"),
        f"{name}_server_us": Measure.of([c.server for c in costs], "us"),
        f"{name}_session_us": Measure.of([c.session for c in costs], "us"),
        f"{name}_echo_us": Measure.of([c.echo for c in costs], "us"),
    }


def run(bundle: Path, repetitions: int) -> dict[str, Measure]:
    """Measures P1, P2, P5 and P6; raises OSError where there are not two cores to do it on."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise OSError("the benchmark needs two cores: one for the server, one for who calls it")
    core = cores[0]
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cores)
        os.sched_setaffinity(0, {cores[1]})
        flags = ("--bundle", str(bundle), "--host", "127.0.0.1", "--grpc-port", "0", "--metrics-port", "0")
        more = ("--drain-ms", "0", "--threads", str(THREADS))
        server = stack.enter_context(PinnedProcess(core, "-m", "service", "serve", *flags, *more))
        target = server.read_line().split()[1].removeprefix("grpc=")
        loads = {
            name: stack.enter_context(Load(tweets, bundle, server, target, core)) for name, tweets in TWEETS.items()
        }
        costs: dict[str, list[Costs]] = {name: [] for name in loads}
        for repetition in range(repetitions):
            _tell("P1, P2", repetition, repetitions)
            for name, load in loads.items():
                costs[name].append(load.measure())
        found = {key: measure for name in costs for key, measure in measures(name, costs[name]).items()}
        return found | _under_load(server, target, math.ceil(repetitions / COSTS_PER_LOAD))


def _under_load(server: PinnedProcess, target: str, repetitions: int) -> dict[str, Measure]:
    """Measures P5 and P6 in turn."""
    with grpc.insecure_channel(target) as channel:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        schema = traffic.schema_of(stub.DescribeModel(pb.DescribeModelRequest()))
    counts = traffic.mixed_counts(MIXED_REQUESTS, seed=0)
    standard = [request.SerializeToString() for request in traffic.standard_load(schema, TWEETS["P1"])]
    mixed = [request.SerializeToString() for request in traffic.requests(schema, counts, seed=0)]
    overloads, tails = [], []
    with generator(target, standard) as of_one_size, generator(target, mixed) as of_mixed_sizes:
        for repetition in range(repetitions):
            _tell("P5, P6", repetition, repetitions)
            overloads.append(overload.measure(of_one_size, server, target, THREADS, seed=repetition))
            tails.append(tail.measure(of_mixed_sizes, counts, seed=repetition))
    return {**overload.measures(overloads), **tail.measures(tails)}


def _tell(what: str, repetition: int, repetitions: int) -> None:
    last = repetition + 1 == repetitions
    print(
        f"\r{what}: repetition {repetition + 1} of {repetitions}", end="\n" if last else "", file=sys.stderr, flush=True
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table, writes the JSON."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description="What serving costs.")
    parser.add_argument("--json", type=Path, metavar="PATH", required=True, help="where the figures go")
    parser.add_argument(
        "--bundle", type=bundle_directory, metavar="DIR", default=DEFAULT_BUNDLE, help="default: the embedded one"
    )
    parser.add_argument("--repetitions", type=positive, default=31, metavar="N", help="default %(default)s")
    arguments = parser.parse_args(argv)

    found = run(arguments.bundle, arguments.repetitions)

    write(found, arguments.json)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
