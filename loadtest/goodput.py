"""How a server holds up under ever more calls: `python -m loadtest.goodput --plot goodput.png --json PATH`.

The standard load of 500 Tweets comes at LOADS times the rate that saturates the server, whether it keeps up or not,
with P5's deadline (loadtest/overload.py); server and callers have a core each. Printed is what became of the calls, and
goodput, the rate of answers in full and in time, as a share of that at saturation: P5 is this share at twice the rate.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np

from loadtest import overload, traffic
from loadtest.measures import Measure, bundle_directory, commit, machine, positive, write
from loadtest.open_loop import Offered, Outcome, generator
from loadtest.picture import picture
from loadtest.pinned import PinnedProcess
from service.config import DEFAULT_BUNDLE
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc

LOADS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
TWEETS = 500
THREADS = 32  # of the server, as in loadtest.bench
# What becomes of calls: all Tweets scored, in time; fewer scored, in time; turned away; nothing in time; any other end.
KINDS = ("full", "degraded", "refused", "late", "failed")


class Point(NamedTuple):
    """What one load came to.

    Attributes:
        offered: Calls per second.
        shares: Kind -> share of the calls, of all KINDS.
        generator_cpu: Share of a core that the callers took; near 1 they were too slow for the load.
    """

    offered: float
    shares: Mapping[str, float]
    generator_cpu: float

    @property
    def goodput(self) -> float:
        """Answers in full and in time, per second."""
        return self.offered * self.shares["full"]


class Repetition(NamedTuple):
    """The rate that saturates the server in calls per second, the deadline, and a point for each of LOADS."""

    saturation: overload.Saturation
    points: list[Point]


def kind(outcome: Outcome, deadline_s: float) -> str:
    """Which of KINDS it is."""
    match outcome.code:
        case grpc.StatusCode.OK if outcome.latency_s > deadline_s:
            return "late"
        case grpc.StatusCode.OK:
            return "full" if outcome.full else "degraded"
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return "refused"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return "late"
        case _:
            return "failed"


def point(offered: Offered, deadline_s: float) -> Point:
    """Sums up what became of a load."""
    counts = Counter(kind(outcome, deadline_s) for outcome in offered.outcomes)
    calls = counts.total()
    shares = {name: counts[name] / calls for name in KINDS}
    return Point(calls / offered.seconds, shares, offered.generator_cpu)


def run(bundle: Path, repetitions: int, seconds: float) -> list[Repetition]:
    """Measures; raises OSError where there are not two cores to do it on."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise OSError("two cores are needed: one for the server, one for who calls it")
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cores)
        os.sched_setaffinity(0, {cores[1]})
        flags = ("--bundle", str(bundle), "--threads", str(THREADS), "--drain-ms", "0")
        ports = ("--host", "127.0.0.1", "--grpc-port", "0", "--metrics-port", "0")
        server = stack.enter_context(PinnedProcess(cores[0], "-m", "service", "serve", *flags, *ports))
        target = server.read_line().split()[1].removeprefix("grpc=")
        with grpc.insecure_channel(target) as channel:
            stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
            schema = traffic.schema_of(stub.DescribeModel(pb.DescribeModelRequest()))
        bodies = [request.SerializeToString() for request in traffic.standard_load(schema, TWEETS)]
        caller = stack.enter_context(generator(target, bodies))
        found = []
        for repetition in range(repetitions):
            saturation = overload.find_saturation(caller)
            rng = np.random.default_rng(repetition)
            points = []
            for times in LOADS:
                _tell(f"repetition {repetition + 1} of {repetitions}, {times:g} x saturation")
                offered = overload.offer(caller, saturation, times, rng, seconds)
                points.append(point(offered, saturation.deadline_s))
            found.append(Repetition(saturation, points))
        _tell("", end="\r")
        return found


def measures(repetitions: Sequence[Repetition]) -> dict[str, Measure]:
    """For each load the goodput, its share of that at saturation, and of each kind the share of the calls, a mean."""
    at_saturation = [r.points[LOADS.index(1.0)].goodput for r in repetitions]
    found = {
        "saturating": Measure.of([r.saturation.rate for r in repetitions], "calls/s"),
        "deadline": Measure.of([1e3 * r.saturation.deadline_s for r in repetitions], "ms"),
    }
    for i, times in enumerate(LOADS):
        points = [r.points[i] for r in repetitions]
        of_saturation = [p.goodput / at for p, at in zip(points, at_saturation, strict=True)]
        found[f"goodput_{times:g}x"] = Measure.of([p.goodput for p in points], "calls/s")
        found[f"goodput_share_{times:g}x"] = Measure.of(of_saturation, "ratio")
        for name in KINDS:
            shares = [p.shares[name] for p in points]
            # The mean, for these add up to one, which medians need not.
            found[f"{name}_{times:g}x"] = Measure(statistics.mean(shares), min(shares), max(shares), "ratio")
        found[f"generator_{times:g}x"] = Measure.of([p.generator_cpu for p in points], "cores")
    return found


def report(found: Mapping[str, Measure]) -> str:
    """A line for each load: medians over the repetitions, of what became of the calls the mean."""
    lines = [
        f"{machine()}, commit {commit()}",
        f"saturated by {found['saturating'].value:.0f} calls/s of {TWEETS} Tweets; "
        f"deadline {found['deadline'].value:.1f} ms",
        "",
        "  load  goodput/s  of saturation" + "".join(f"{name:>10}" for name in KINDS) + "   callers' core",
    ]
    for times in LOADS:
        goodput, share = found[f"goodput_{times:g}x"].value, found[f"goodput_share_{times:g}x"].value
        kinds = "".join(f"{found[f'{name}_{times:g}x'].value:10.1%}" for name in KINDS)
        lines.append(f"{times:5g}x{goodput:11.1f}{share:15.0%}{kinds}{found[f'generator_{times:g}x'].value:16.0%}")
    return "\n".join(lines)


def plot(found: Mapping[str, Measure], path: Path) -> None:
    """Draws goodput over load, and below what became of the calls."""
    from matplotlib.figure import Figure  # of the extras: who wants no picture needs none of it
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    shares = [found[f"goodput_share_{times:g}x"] for times in LOADS]
    above.fill_between(LOADS, [s.min for s in shares], [s.max for s in shares], color="tab:green", alpha=0.2, lw=0)
    above.plot(LOADS, [s.value for s in shares], "o-", color="tab:green")
    for times, share in zip(LOADS, shares, strict=True):
        above.annotate(f"{share.value:.0%}", (times, share.value), (0, 9), textcoords="offset points", ha="center")
    above.axhline(1, color="tab:gray", lw=0.8, ls="--")
    above.set(ylim=(0, 1.15 * max(s.max for s in shares)))
    above.set(ylabel="answers in full and in time,\nas a share of those at saturation")
    colors = ("tab:green", "gold", "lightsteelblue", "tab:red", "black")
    labels = ("in full and in time", "in time, with fewer scores", "refused at once", "nothing in time", "failed")
    bottom = np.zeros(len(LOADS))
    for name, color, label in zip(KINDS, colors, labels, strict=True):
        heights = [found[f"{name}_{times:g}x"].value for times in LOADS]
        below.bar(LOADS, heights, 0.18, bottom, color=color, label=label, edgecolor="white", lw=0.5)
        bottom += heights
    below.set(ylim=(0, 1), ylabel="what became of the calls")
    saturating = f"{found['saturating'].value:.0f} per second"
    below.set_xlabel(f"calls that come, in multiples of the {saturating} that saturate it")
    below.set_xticks(LOADS, [f"{times:g}" for times in LOADS])
    for axes in (above, below):
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3)
    deadline = f"{found['deadline'].value:.0f} ms"
    figure.suptitle(f"More calls than a server can answer ({TWEETS} Tweets each, deadline {deadline})")
    figure.savefig(path, dpi=110)


def _tell(text: str, end: str = "") -> None:
    print(f"\r{text:60}", end=end, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table, writes what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.goodput", description="Goodput under ever more calls.")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures, with their spread")
    parser.add_argument("--plot", type=picture, metavar="PATH", help="also draw them")
    parser.add_argument(
        "--bundle", type=bundle_directory, metavar="DIR", default=DEFAULT_BUNDLE, help="default: the embedded one"
    )
    parser.add_argument("--repetitions", type=positive, default=3, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=overload.OFFERED_S, metavar="S", help="of each load; default %(default)s"
    )
    arguments = parser.parse_args(argv)
    if not 0 < arguments.seconds < float("inf"):
        parser.error("--seconds must be more than 0")

    found = measures(run(arguments.bundle, arguments.repetitions, arguments.seconds))

    print(report(found))
    if arguments.json:
        write(found, arguments.json)
    if arguments.plot:
        plot(found, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
