"""What viewers notice of a new version: `python -m loadtest.reload --plot reload.png`.

A server on one core serves a model repository; calls of mixed sizes come at LOAD of the rate that saturates it, from
another core, whether it keeps up or not. In the middle of that new versions are promoted. Printed is the latency of
each second, counted where calls were due; exit status 1 if a call failed or was not answered in full.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np

from loadtest import traffic
from loadtest.measures import bundle_directory
from loadtest.open_loop import PATIENCE_S, Outcome, arrivals, generator
from loadtest.picture import picture
from loadtest.pinned import PinnedProcess
from service.config import DEFAULT_BUNDLE
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from service.repository import STABLE, Repository

ALL_ANSWERED, FAILED = 0, 1
LOAD = 0.7
PROMOTIONS = 2  # evenly over the run
SATURATING_CALLS = 800
# Room for what comes while the server stands still: that is to show as latency, not as refusals.
THREADS = 128
# More than any server answers in a run: every call has a body of its own, so that its outcome says which call it was.
CALLS_MAX = 500_000


class Reload(NamedTuple):
    """A version that was promoted, and when it served, in seconds from the start of the load."""

    version: str
    promoted_s: float
    serving_s: float


class Second(NamedTuple):
    """The calls that were due in one second; latencies in milliseconds, NaN where there were none."""

    calls: int
    failed: int
    p50_ms: float
    p99_ms: float


class Run(NamedTuple):
    """A whole run; the rate is in calls per second."""

    saturating: float
    seconds: list[Second]
    reloads: list[Reload]


def by_second(outcomes: Sequence[Outcome], due_s: Sequence[float], duration_s: int) -> list[Second]:
    """Sorts outcomes, whose `body` is the number of the call, into the seconds that the calls were due in."""
    seconds = []
    at = np.array([int(due_s[outcome.body]) for outcome in outcomes])
    milliseconds = np.array([1e3 * outcome.latency_s for outcome in outcomes])
    failed = np.array([not outcome.full for outcome in outcomes])
    for second in range(duration_s):
        here = at == second
        quantiles = (float("nan"), float("nan"))
        if here.any():
            quantiles = tuple(np.quantile(milliseconds[here], (0.5, 0.99), method="inverted_cdf").tolist())
        seconds.append(Second(int(here.sum()), int(failed[here].sum()), *quantiles))
    return seconds


def measure(bundle: Path, duration_s: int) -> Run:
    """Runs server and load; raises OSError where there are not two cores to do it on."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise OSError("two cores are needed: one for the server, one for who calls it")
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = Repository(root)
        for _ in range(1 + PROMOTIONS):
            repository.publish(bundle)
        repository.promote(1, STABLE)
        stack.callback(os.sched_setaffinity, 0, cores)
        os.sched_setaffinity(0, {cores[1]})
        ports = ("--host", "127.0.0.1", "--grpc-port", "0", "--metrics-port", "0", "--drain-ms", "0")
        flags = ("--model-repository", str(root), "--model-check-ms", "100", "--threads", str(THREADS))
        command = ("-m", "service", "serve", *flags, *ports)
        target = stack.enter_context(PinnedProcess(cores[0], *command)).read_line().split()[1].removeprefix("grpc=")
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(stack.enter_context(grpc.insecure_channel(target)))
        schema = traffic.schema_of(stub.DescribeModel(pb.DescribeModelRequest()))
        counts = traffic.mixed_counts(traffic.REQUESTS, seed=1)
        bodies = [request.SerializeToString() for request in traffic.requests(schema, counts, seed=1)]
        caller = stack.enter_context(generator(target, bodies * (CALLS_MAX // len(bodies))))
        caller.one_at_a_time(range(len(bodies)))  # first calls cost more than later ones
        saturating = caller.saturate(range(SATURATING_CALLS))
        due_s = arrivals(LOAD * saturating, duration_s, np.random.default_rng(1))
        promoted_s: list[float] = []
        begun_s, begun_ms = time.monotonic(), time.time() * 1e3
        promoting = threading.Thread(target=_promote, args=(root, begun_s, duration_s, promoted_s))
        promoting.start()
        outcomes = caller.offer(due_s, range(len(due_s)), PATIENCE_S).outcomes
        promoting.join()
        loads = {load.version: load for load in stub.DescribeModel(pb.DescribeModelRequest()).loads}
        reloads = [
            Reload(version, at_s, (loads[version].at_ms - begun_ms) / 1e3)
            for version, at_s in zip(map(str, range(2, 2 + PROMOTIONS)), promoted_s, strict=True)
        ]
        return Run(saturating, by_second(outcomes, due_s.tolist(), duration_s), reloads)


def _promote(root: Path, begun_s: float, duration_s: int, promoted_s: list[float]) -> None:
    """Promotes the versions from 2 on, each in its time, as an operator does; notes when."""
    for i in range(PROMOTIONS):
        time.sleep(max(0.0, begun_s + (i + 1) * duration_s / (PROMOTIONS + 1) - time.monotonic()))
        promoted_s.append(time.monotonic() - begun_s)
        # Out of the way of the calls that are being sent: an operator is on another machine.
        command = ["nice", "-n", "19", sys.executable, "-m", "service", "promote", str(root), str(i + 2)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own


def plot(run: Run, path: Path) -> None:
    """Draws the latency of each second, and when versions were promoted and loaded."""
    from matplotlib.figure import Figure  # of the extras: who wants no picture needs none of it

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    middles = [i + 0.5 for i in range(len(run.seconds))]
    axes.plot(middles, [second.p99_ms for second in run.seconds], label="p99", color="tab:red")
    axes.plot(middles, [second.p50_ms for second in run.seconds], label="median", color="tab:blue")
    for reload in run.reloads:
        label = "from promoted to serving" if reload is run.reloads[0] else None
        axes.axvspan(reload.promoted_s, reload.serving_s, color="tab:gray", alpha=0.3, label=label)
    axes.set(xlabel="seconds", ylabel="latency, ms", xlim=(0, len(run.seconds)), ylim=(0, None))
    axes.set_title(f"New versions at {LOAD:.0%} of saturation ({run.saturating:.0f} calls per second)")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)


def report(run: Run) -> str:
    """A line for each second, and what they come to."""
    lines = [f"{'second':>6}{'calls':>8}{'failed':>8}{'p50 ms':>9}{'p99 ms':>9}"]
    happened = [
        (int(at_s), f"version {reload.version} {event}")
        for reload in run.reloads
        for event, at_s in (("promoted", reload.promoted_s), ("serves", reload.serving_s))
    ]
    loading = set()
    for i, second in enumerate(run.seconds):
        events = [event for at_s, event in happened if at_s == i]
        if any(int(reload.promoted_s) <= i <= reload.serving_s for reload in run.reloads):
            loading.add(i)
        figures = f"{second.calls:8}{second.failed:8}{second.p50_ms:9.2f}{second.p99_ms:9.2f}"
        lines.append(f"{i:6}{figures}  {', '.join(events)}".rstrip())
    lines += [f"{at_s:6}  {event}" for at_s, event in happened if at_s >= len(run.seconds)]  # after the last call
    calm = [second.p99_ms for i, second in enumerate(run.seconds) if i not in loading]
    busy = [run.seconds[i].p99_ms for i in sorted(loading)]
    calls, failed = (sum(column) for column in list(zip(*run.seconds, strict=True))[:2])
    lines += [
        "",
        f"{calls:,} calls at {LOAD:.0%} of {run.saturating:.0f} per second, {failed} failed",
        f"p99 of a second: median {np.nanmedian(calm):.1f} ms, at most {np.nanmax(calm):.1f} ms without a reload; "
        f"{', '.join(f'{ms:.1f}' for ms in busy)} ms with one",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status, ALL_ANSWERED or FAILED."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.reload", description="What viewers notice of a reload.")
    parser.add_argument(
        "--bundle", type=bundle_directory, metavar="DIR", default=DEFAULT_BUNDLE, help="default: the embedded one"
    )
    parser.add_argument("--seconds", type=int, default=30, metavar="N", help="default %(default)s")
    parser.add_argument("--plot", type=picture, metavar="PATH", help="also draw it")
    arguments = parser.parse_args(argv)
    if arguments.seconds < 1 + PROMOTIONS:
        parser.error(f"--seconds must be at least {1 + PROMOTIONS}")
    run = measure(arguments.bundle, arguments.seconds)
    print(report(run))
    if arguments.plot:
        plot(run, arguments.plot)
    return FAILED if any(second.failed for second in run.seconds) else ALL_ANSWERED


if __name__ == "__main__":
    sys.exit(main())
