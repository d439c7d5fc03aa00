from __future__ import annotations

import os

import pytest

from loadtest.pinned import PinnedProcess

SAY_CORES = "import os; print(os.sched_getaffinity(0), flush=True); input()"
# Answers a line with the CPU time that it saw itself use: none, then that of a loop.
BURN = """
import time
for line in iter(input, "end"):
    before = time.process_time_ns()
    while time.process_time_ns() - before < int(line): pass
    print(time.process_time_ns(), flush=True)
"""


def test_a_pinned_process_has_one_core_and_its_parent_keeps_all() -> None:
    """Whichever core is asked for."""
    cores = os.sched_getaffinity(0)

    for core in cores:
        with PinnedProcess(core, "-c", SAY_CORES) as process:
            assert process.read_line() == str({core})

    assert os.sched_getaffinity(0) == cores


def test_cpu_time_from_outside_is_what_the_process_sees_itself() -> None:
    """To a millisecond, where ticks would give ten."""
    with PinnedProcess(min(os.sched_getaffinity(0)), "-c", BURN) as process:
        before_ns = int(process.ask("0"))
        outside_before_ns = process.cpu_ns()
        after_ns = int(process.ask(str(30_000_000)))
        outside_after_ns = process.cpu_ns()

    assert after_ns - before_ns >= 30_000_000
    assert outside_after_ns - outside_before_ns == pytest.approx(after_ns - before_ns, abs=1_000_000)


def test_a_process_that_ends_instead_of_answering_is_named() -> None:
    """With its exit status."""
    with (
        PinnedProcess(min(os.sched_getaffinity(0)), "-c", "raise SystemExit(3)") as process,
        pytest.raises(ChildProcessError, match=r"-c raise SystemExit\(3\) ended with status 3"),
    ):
        process.read_line()
