"""Does a server stay as it is? `python -m loadtest.soak --minutes 10`, or `make soak MINUTES=10`.

A real server, with all that it does beside answering (served log, shadow model, new versions at first), gets timelines
to rank one after the other from a few callers. Among them are requests that are refused, explained or only
scored, callers that hang up, and new connections all the time. Its memory, threads and file descriptors are looked at
every now and then; exit status 1 if they grew after the warm-up, or a call ended as none should.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc

from loadtest import traffic
from service.config import DEFAULT_BUNDLE
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from service.repository import STABLE, Repository

STEADY, GROWN = 0, 1
CALLERS = 4
# A quarter of the samples is warm-up; of the others the first third is compared with the last.
SAMPLES = 60
WARM_UP_SAMPLES = 15
# After these samples the other version becomes the stable one. All are in the warm-up: with every load and unload the
# memory of a process moves up or down by some per cent, though not on and on (docs/decisions/0061).
PROMOTE_AFTER = (2, 5, 8, 11)
MEMORY_GROWTH_MAX = 0.02
CALLS_PER_CONNECTION = 500
DEADLINE_S = 30.0
# How calls may end: answered, refused for their content, given up by their caller, or turned away to come back.
EXPECTED = frozenset({"OK", "INVALID_ARGUMENT", "CANCELLED", "RESOURCE_EXHAUSTED"})
SERVICE = pb.DESCRIPTOR.services_by_name["TimelineRankingService"].full_name


class Sample(NamedTuple):
    """A server at one moment."""

    seconds: float
    calls: int
    memory_bytes: int
    threads: int
    descriptors: int


class Callers:
    """Threads that call a server until told to stop.

    Attributes:
        ended: How calls ended -> how many did, callers' own faults included.
    """

    def __init__(self, target: str, requests: Sequence[pb.RankTimelineRequest]) -> None:
        """Begins to call."""
        self.ended: Counter[str] = Counter()
        self._target = target
        self._requests = requests
        self._stop = threading.Event()
        self._lock = threading.Lock()  # guards `ended`
        self._threads = [threading.Thread(target=self._call, args=(i,)) for i in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Waits for the calls under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self, caller: int) -> None:
        turn = caller * 17  # callers are at different places of the mix
        while not self._stop.is_set():
            with grpc.insecure_channel(self._target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
                for _ in range(CALLS_PER_CONNECTION):
                    end = self._one(channel, stub, turn)
                    with self._lock:
                        self.ended[end] += 1
                    turn += 1
                    if self._stop.is_set():
                        return

    def _one(self, channel: grpc.Channel, stub: ranking_pb2_grpc.TimelineRankingServiceStub, turn: int) -> str:
        """Makes a call, in every hundred some of another kind; returns how it ended."""
        request = self._requests[turn % len(self._requests)]
        try:
            match turn % 100:
                case 10:
                    stub.ScoreTweets(
                        pb.ScoreTweetsRequest(viewer_id=1, candidates=request.candidates, raw=True), timeout=DEADLINE_S
                    )
                case 20:
                    stub.DescribeModel(pb.DescribeModelRequest(), timeout=DEADLINE_S)
                case 30:
                    send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/RankTimeline")
                    send(b"\xff\xff", timeout=DEADLINE_S)
                case 40:
                    call = stub.RankTimeline.future(request, timeout=DEADLINE_S)
                    call.cancel()
                    return call.code().name
                case 50:
                    explained = pb.RankTimelineRequest()
                    explained.CopyFrom(request)
                    explained.explain = True
                    stub.RankTimeline(explained, timeout=DEADLINE_S)
                case _:
                    traffic.check_tweets(request, stub.RankTimeline(request, timeout=DEADLINE_S))
        except grpc.RpcError as error:
            return str(error.code().name)
        except ValueError as error:
            return str(error)
        return "OK"


@contextmanager
def server(root: Path, log: Path) -> Iterator[tuple[int, str, str]]:
    """A server of a repository: its process id and the HOST:PORT of gRPC and of the metrics."""
    flags = {
        "--model-repository": str(root),
        "--model-check-ms": "200",
        "--served-log": str(log),
        "--log-features": "0.001",
        "--shadow-model": "canary",
        "--shadow-share": "0.01",
        "--host": "127.0.0.1",
        "--grpc-port": "0",
        "--metrics-port": "0",
        "--drain-ms": "0",
    }
    command = [sys.executable, "-m", "service", "serve", *(word for flag in flags.items() for word in flag)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:  # noqa: S603 - our own
        try:
            assert process.stdout is not None  # noqa: S101 - it was opened with a pipe
            ready = re.fullmatch(r"ready grpc=(\S+) metrics=(\S+)\n", process.stdout.readline())
            if ready is None:
                raise ChildProcessError("the server did not start")
            yield process.pid, ready[1], ready[2]
        finally:
            process.terminate()


def look(pid: int, begun_s: float, calls: int) -> Sample:
    """A process as it is now."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = {name: int(re.findall(rf"^{name}:\s*(\d+)", status, re.MULTILINE)[0]) for name in ("VmRSS", "Threads")}
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(time.monotonic() - begun_s, calls, fields["VmRSS"] * 1024, fields["Threads"], descriptors)


def soak(bundle: Path, minutes: float, tweets: int | None) -> tuple[list[Sample], Counter[str]]:
    """Soaks a server for so long; returns what it looked like, and how the calls ended.

    Args:
        bundle: What it serves, and under another version reloads and compares it with.
        minutes: How long.
        tweets: In each request; None: the default mix.
    """
    with tempfile.TemporaryDirectory() as directory:
        root, log = Path(directory) / "models", Path(directory) / "log"
        repository = Repository(root)
        for label in (STABLE, "canary"):
            repository.promote(repository.publish(bundle), label)
        with server(root, log) as (pid, target, metrics):
            requests, ended = _warm_up(target, tweets)
            callers = Callers(target, requests)
            begun_s, samples = time.monotonic(), []
            try:
                for i in range(SAMPLES):
                    time.sleep(max(0.0, begun_s + (i + 1) * 60 * minutes / SAMPLES - time.monotonic()))
                    with urllib.request.urlopen(f"http://{metrics}/metrics") as answer:
                        answer.read()
                    if i in PROMOTE_AFTER:
                        repository.promote(2 - PROMOTE_AFTER.index(i) % 2, STABLE)
                    for file in sorted(log.iterdir())[:-1]:  # lest the disk be full
                        file.unlink()
                    samples.append(look(pid, begun_s, callers.ended.total()))
                    print(f"\r{samples[-1].calls} calls", end="", file=sys.stderr, flush=True)
            finally:
                callers.stop()
                print(file=sys.stderr)
    return samples, ended + callers.ended


def _warm_up(target: str, tweets: int | None) -> tuple[list[pb.RankTimelineRequest], Counter[str]]:
    """Makes up requests and sends all at the same time; returns them, and how the calls ended.

    A server makes its threads as calls come, and each has memory of its own: from now on all of them are there.
    """
    with grpc.insecure_channel(target) as channel:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        schema = traffic.schema_of(stub.DescribeModel(pb.DescribeModelRequest(), timeout=DEADLINE_S))
        counts = [tweets] * traffic.REQUESTS if tweets else traffic.mixed_counts(traffic.REQUESTS, seed=1)
        requests = traffic.requests(schema, counts, seed=1)
        burst = [stub.RankTimeline.future(request, timeout=DEADLINE_S) for request in requests]
        return requests, Counter(call.code().name for call in burst)


class Growth(NamedTuple):
    """What became of a server after the warm-up: from the first third of the samples to the last.

    Attributes:
        memory: Growth of the median, as a share of it.
        threads, descriptors: Growth of the least number: what is there at quiet moments, too.
    """

    memory: float
    threads: int
    descriptors: int

    @staticmethod
    def of(samples: Sequence[Sample]) -> Growth:
        """Compares SAMPLES samples."""
        third = (SAMPLES - WARM_UP_SAMPLES) // 3
        early, late = samples[WARM_UP_SAMPLES : WARM_UP_SAMPLES + third], samples[-third:]
        memory = [statistics.median(s.memory_bytes for s in part) for part in (early, late)]
        threads = [min(s.threads for s in part) for part in (early, late)]
        descriptors = [min(s.descriptors for s in part) for part in (early, late)]
        return Growth(memory[1] / memory[0] - 1, threads[1] - threads[0], descriptors[1] - descriptors[0])


def faults(growth: Growth, ended: Counter[str], memory_growth_max: float) -> list[str]:
    """What is not as it should be, a line each."""
    found = []
    if growth.memory > memory_growth_max:
        found.append(f"memory grew by {growth.memory:.2%}, {memory_growth_max:.0%} is the most")
    if growth.threads > 0:
        found.append(f"{growth.threads} threads more")
    if growth.descriptors > 0:
        found.append(f"{growth.descriptors} file descriptors more")
    return found + [f"{count} calls ended with {end}" for end, count in ended.items() if end not in EXPECTED]


def main(argv: Sequence[str] | None = None) -> int:
    """Soaks, prints a table and what is wrong; returns the exit status, STEADY or GROWN."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.soak", description="Does a server stay as it is?")
    parser.add_argument("--minutes", type=float, default=1.0, metavar="M", help="default %(default)s")
    parser.add_argument("--bundle", type=Path, metavar="DIR", default=DEFAULT_BUNDLE, help="default: the embedded one")
    parser.add_argument("--tweets", type=int, metavar="N", help="in each request; default: the mix of loadtest/traffic")
    parser.add_argument(
        "--memory-growth-max", type=float, metavar="SHARE", default=MEMORY_GROWTH_MAX, help="default %(default)s"
    )
    arguments = parser.parse_args(argv)
    if not arguments.minutes > 0 or (arguments.tweets is not None and arguments.tweets < 1):
        parser.error("--minutes and --tweets must be more than 0")

    samples, ended = soak(arguments.bundle, arguments.minutes, arguments.tweets)

    print(f"{'seconds':>8}{'calls':>12}{'memory MiB':>12}{'threads':>9}{'descriptors':>13}")
    for sample in samples[:: max(1, SAMPLES // 15)]:
        memory = sample.memory_bytes / (1 << 20)
        print(f"{sample.seconds:8.0f}{sample.calls:12,}{memory:12.1f}{sample.threads:9}{sample.descriptors:13}")
    growth = Growth.of(samples)
    print(f"\n{ended.total():,} calls: {', '.join(f'{count:,} {end}' for end, count in ended.most_common())}")
    figures = f"memory {growth.memory:+.2%}, threads {growth.threads:+}, descriptors {growth.descriptors:+}"
    print(f"after the warm-up: {figures}")
    found = faults(growth, ended, arguments.memory_growth_max)
    for fault in found:
        print(f"fault: {fault}")
    return GROWN if found else STEADY


if __name__ == "__main__":
    sys.exit(main())
