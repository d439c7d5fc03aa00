"""What counts as growth, and a short soak of a real server."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import grpc
import pytest

from loadtest.soak import PAUSED, SAMPLES, Callers, Growth, Pauses, Sample, faults, look
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from tests.server_process import answering

MIB = 1 << 20


def samples(
    memory_mib: list[float], threads: list[int] | None = None, descriptors: list[int] | None = None
) -> list[Sample]:
    threads = threads or [9] * len(memory_mib)
    descriptors = descriptors or [7] * len(memory_mib)
    columns = zip(memory_mib, threads, descriptors, strict=True)
    return [Sample(float(i), 100 * i, int(m * MIB), t, d) for i, (m, t, d) in enumerate(columns)]


def test_growth_by_hand() -> None:
    """Of sixty samples fifteen are warm-up; the next fifteen are compared with the last, by median or by least.

    The first of them have 100 to 114 MiB, the last 110 to 124: medians 107 and 117.
    """
    memory = [500.0] * 15 + [100.0 + i for i in range(15)] + [900.0] * 15 + [110.0 + i for i in range(15)]
    threads = [5] * 15 + [12, 9, 14] * 5 + [1] * 15 + [20, 11, 30] * 5
    growth = Growth.of(samples(memory, threads, [1] * 15 + [7] * 44 + [6]))

    assert growth.memory == pytest.approx(117 / 107 - 1, abs=1e-6)
    assert (growth.threads, growth.descriptors) == (2, -1)


@pytest.mark.parametrize(
    ("growth", "ended", "lines"),
    [
        (Growth(0.02, 0, 0), Counter(OK=5, CANCELLED=1, INVALID_ARGUMENT=1, RESOURCE_EXHAUSTED=1), []),
        (Growth(-0.5, -3, -1), Counter(), []),
        (Growth(0.0201, 0, 0), Counter(OK=5), ["memory grew by 2.01%, 2% is the most"]),
        (Growth(0.0, 1, 2), Counter(OK=5), ["1 threads more", "2 file descriptors more"]),
        (Growth(0.0, 0, 0), Counter(OK=5, INTERNAL=2), ["2 calls ended with INTERNAL"]),
        (Growth(0.0, 0, 0), Counter({"r1: the answer's Tweets are not": 1}), ["1 calls ended with r1: the answer's"]),
    ],
)
def test_what_is_a_fault(growth: Growth, ended: Counter[str], lines: list[str]) -> None:
    """More of anything, beyond the margin for memory; and any end of a call that the mix does not explain."""
    found = faults(growth, ended, 0.02)

    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))


def test_a_process_is_seen_as_the_kernel_has_it() -> None:
    """Of a process that holds 64 MiB, two threads and a file of its own more than one that does not."""
    code = """
import sys, threading
extra = sys.argv[1] == "more"
if extra:
    kept = bytearray(b"x") * (64 << 20)
    file = open("/dev/null")
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""
    seen = []
    for kind in ("less", "more"):
        command = [sys.executable, "-c", code, kind]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            seen.append(look(process.pid, 0.0, 0))
            process.communicate("")
    less, more = seen

    assert more.threads - less.threads == 2
    assert more.descriptors - less.descriptors == 1
    assert 60 * MIB < more.memory_bytes - less.memory_bytes < 70 * MIB


def test_pauses_by_hand() -> None:
    """Looked at every second but for the five before 110: what began before that moment may be late because of it."""
    now_s = [100.0]
    pauses = Pauses(lambda: now_s[0])
    for now_s[0] in (101.0, 103.0, 104.0, 105.0):
        pauses.tick()
    assert not pauses.since(99.0)

    now_s[0] = 110.0  # nobody has looked yet
    assert pauses.since(109.9)

    pauses.tick()
    assert pauses.since(109.9)
    assert not pauses.since(110.0)


@pytest.mark.parametrize(("paused", "end"), [(True, PAUSED), (False, "DEADLINE_EXCEEDED")])
def test_a_late_call_is_no_fault_where_everything_stood_still(
    paused: bool, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server that answers nothing does to its callers is its own fault, unless they were stopped as well."""
    monkeypatch.setattr("loadtest.soak.DEADLINE_S", 0.05)
    now_s = [0.0]
    pauses = Pauses(lambda: now_s[0])
    now_s[0] = 3.0 if paused else 1.0
    called, go_on = threading.Event(), threading.Event()

    def answer(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        called.set()
        go_on.wait()
        return b""

    with answering("timelines.ranking.v1.TimelineRankingService", {"RankTimeline": answer}) as target:
        callers = Callers(target, [pb.RankTimelineRequest()], pauses)
        assert called.wait(60)
        callers.stop()
        go_on.set()

    assert set(callers.ended) == {end}
    assert (not faults(Growth(0, 0, 0), callers.ended, 0.02)) is paused


@pytest.mark.slow
@pytest.mark.parametrize("length", [("--minutes", "0.2"), ("--requests", "2500")], ids=["by time", "by count"])
def test_a_short_soak(length: tuple[str, str], toy_bundle: Path) -> None:
    """All kinds of calls end as they should, versions change, nothing leaks threads or files; a table says so.

    Some seconds are no time to judge memory by: the margin is wide.
    """
    flags = [*length, "--bundle", str(toy_bundle), "--memory-growth-max", "0.3"]
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.soak", *flags], capture_output=True, text=True, timeout=240, check=False
    )
    header, *lines = done.stdout.splitlines()

    assert done.returncode == 0, done.stdout + done.stderr
    assert header.split() == ["seconds", "calls", "memory", "MiB", "threads", "descriptors"]
    assert len([line for line in lines if line.startswith(" ")]) == SAMPLES // (SAMPLES // 15)
    assert "CANCELLED" in done.stdout
    assert "INVALID_ARGUMENT" in done.stdout
    if length[0] == "--requests":
        calls = [int(line.split()[1].replace(",", "")) for line in lines if line.startswith(" ")]
        # A look is taken as soon as so many calls are over, and every fourth look has a line.
        assert all(calls[i] >= 2_500 * (4 * i + 1) / SAMPLES for i in range(len(calls)))
        assert int(lines[-2].split()[0].replace(",", "")) >= 2_500


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--minutes", "0"], "--minutes must be more than 0"),
        (["--minutes", "nan"], "--minutes must be more than 0"),
        (["--requests", "0"], "'0' is not a positive whole number"),
        (["--requests", "1", "--minutes", "1"], "not allowed with argument"),
    ],
)
def test_nothing_is_no_soak(flags: list[str], message: str) -> None:
    """A usage error."""
    command = [sys.executable, "-m", "loadtest.soak", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert message in done.stderr
