"""Does a server stay as it is? `python -m loadtest.soak --minutes 10 | --requests 1000000`; `make soak MINUTES=10`.

A real server, with all that it does beside answering (served log, shadow model, new versions at first), gets timelines
to rank one after the other from a few callers: most are small, for a leak shows by their number, and some are large.
Among them are requests that are refused, explained or only scored, callers that hang up, and new connections all the
time. Its memory, threads and file descriptors are looked at SAMPLES times, the first WARM_UP_SAMPLES of them as a
warm-up; exit status 1 if they grew after it, or a call ended as none should.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc

from loadtest import traffic
from loadtest.measures import bundle_directory, positive
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
# Tweets in a request -> requests of that size, of those sent in turn: many calls in little time, all sizes among them.
MIX = {10: 188, 100: 9, 1_000: 2, 2_500: 1}
POLL_S = 0.05
# This process does not stand still for so long unless it is stopped, or the whole machine is.
PAUSE_S = 2.0
PAUSED = "DEADLINE_EXCEEDED in a pause of the machine"
# How calls may end: answered, refused for their content, given up by their caller, turned away to come back, or late
# where nobody could have been in time.
EXPECTED = frozenset({"OK", "INVALID_ARGUMENT", "CANCELLED", "RESOURCE_EXHAUSTED", PAUSED})
SERVICE = pb.DESCRIPTOR.services_by_name["TimelineRankingService"].full_name


class Sample(NamedTuple):
    """A server at one moment."""

    seconds: float
    calls: int
    memory_bytes: int
    threads: int
    descriptors: int


class Pauses:
    """Notices when this process stood still, as one that is stopped does, or one on a machine that is.

    The thread that waits for calls looks at the clock every POLL_S by `tick`; others ask.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begins to look; `clock` is in seconds."""
        self._clock = clock
        self._ticked_s = clock()
        self._ended_s = -math.inf

    def tick(self) -> None:
        """To be called often."""
        now_s = self._clock()
        if now_s - self._ticked_s > PAUSE_S:
            self._ended_s = now_s
        self._ticked_s = now_s

    def since(self, begun_s: float) -> bool:
        """Whether there was a pause that ended after this moment, or ends now."""
        return self._ended_s > begun_s or self._clock() - self._ticked_s > PAUSE_S


class Callers:
    """Threads that call a server until told to stop."""

    def __init__(self, target: str, requests: Sequence[pb.RankTimelineRequest], pauses: Pauses) -> None:
        """Begins to call."""
        self._ended: Counter[str] = Counter()
        self._target = target
        self._requests = requests
        self._pauses = pauses
        self._stop = threading.Event()
        self._lock = threading.Lock()  # guards `_ended`
        self._threads = [threading.Thread(target=self._call, args=(i,)) for i in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    @property
    def ended(self) -> Counter[str]:
        """How calls ended so far -> how many did, callers' own faults included."""
        with self._lock:
            return self._ended.copy()

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
                        self._ended[end] += 1
                    turn += 1
                    if self._stop.is_set():
                        return

    def _one(self, channel: grpc.Channel, stub: ranking_pb2_grpc.TimelineRankingServiceStub, turn: int) -> str:
        """Makes a call, in every hundred some of another kind; returns how it ended."""
        request = self._requests[turn % len(self._requests)]
        begun_s = time.monotonic()
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
            late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return PAUSED if late and self._pauses.since(begun_s) else str(error.code().name)
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


def soak(bundle: Path, minutes: float, calls: int | None) -> tuple[list[Sample], Counter[str]]:
    """Soaks a server; returns SAMPLES looks at it, evenly over the run, and how the calls ended.

    Args:
        bundle: What it serves, and under another version reloads and compares it with.
        minutes: How long, unless `calls` says how many.
        calls: How many, at least; None: as many as there is time for.
    """
    with tempfile.TemporaryDirectory() as directory:
        root, log = Path(directory) / "models", Path(directory) / "log"
        repository = Repository(root)
        for label in (STABLE, "canary"):
            repository.promote(repository.publish(bundle), label)
        with server(root, log) as (pid, target, metrics):
            requests, ended = _warm_up(target)
            pauses = Pauses()
            callers = Callers(target, requests, pauses)
            begun_s, samples = time.monotonic(), []

            def done() -> float:
                """The share of the run that is behind us."""
                if calls is not None:
                    return callers.ended.total() / calls
                return (time.monotonic() - begun_s) / (60 * minutes)

            try:
                for i in range(SAMPLES):
                    while done() < (i + 1) / SAMPLES:
                        time.sleep(POLL_S)
                        pauses.tick()
                    with urllib.request.urlopen(f"http://{metrics}/metrics") as answer:
                        answer.read()
                    if i in PROMOTE_AFTER:
                        repository.promote(2 - PROMOTE_AFTER.index(i) % 2, STABLE)
                    for file in sorted(log.iterdir())[:-1]:  # lest the disk be full
                        file.unlink()
                    samples.append(look(pid, begun_s, callers.ended.total()))
                    _tell(samples[-1])
            finally:
                callers.stop()
                print(file=sys.stderr)
    return samples, ended + callers.ended


def _tell(sample: Sample) -> None:
    megabytes = sample.memory_bytes / (1 << 20)
    print(f"\r{sample.calls:,} calls, {megabytes:.1f} MiB", end="", file=sys.stderr, flush=True)


def _warm_up(target: str) -> tuple[list[pb.RankTimelineRequest], Counter[str]]:
    """Makes up requests, the large ones among the small, and sends all at the same time.

    A server makes its threads as calls come, and each has memory of its own: from now on all of them are there.

    Returns: The requests, and how the calls ended.
    """
    with grpc.insecure_channel(target) as channel:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        schema = traffic.schema_of(stub.DescribeModel(pb.DescribeModelRequest(), timeout=DEADLINE_S))
        requests = [
            request
            for tweets, count in MIX.items()
            for request in traffic.requests(schema, [tweets] * count, tweets, min(tweets, traffic.AUTHORS))
        ]
        random.Random(1).shuffle(requests)  # noqa: S311 - no secret
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
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=1.0, metavar="M", help="how long; default %(default)s")
    length.add_argument("--requests", type=positive, metavar="N", help="how many, instead")
    parser.add_argument(
        "--bundle", type=bundle_directory, metavar="DIR", default=DEFAULT_BUNDLE, help="default: the embedded one"
    )
    parser.add_argument(
        "--memory-growth-max", type=float, metavar="SHARE", default=MEMORY_GROWTH_MAX, help="default %(default)s"
    )
    arguments = parser.parse_args(argv)
    if not arguments.minutes > 0:
        parser.error("--minutes must be more than 0")

    samples, ended = soak(arguments.bundle, arguments.minutes, arguments.requests)

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
