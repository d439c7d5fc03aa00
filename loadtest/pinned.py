"""Processes that are held on one core and whose CPU time is read from outside."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from types import TracebackType


class PinnedProcess:
    """`python ARGUMENTS` on one core, spoken to in lines; ended when its context is left."""

    def __init__(self, core: int, *arguments: str) -> None:
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})  # a child inherits it
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        finally:
            os.sched_setaffinity(0, cores)
        self._name = " ".join(arguments)
        self._clock = _cpu_clock(self._process.pid)

    def __enter__(self) -> PinnedProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.communicate()

    def read_line(self) -> str:
        """The next line it prints; raises ChildProcessError if it ended instead."""
        assert self._process.stdout is not None  # noqa: S101 - it was opened with a pipe
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(f"{self._name} ended with status {self._process.wait()}")
        return line.rstrip("\n")

    def ask(self, line: str) -> str:
        """Sends a line and waits for the one that answers it."""
        assert self._process.stdin is not None  # noqa: S101 - it was opened with a pipe
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.read_line()

    def cpu_ns(self) -> int:
        """Nanoseconds of CPU that all its threads have used so far."""
        return time.clock_gettime_ns(self._clock)


def _cpu_clock(pid: int) -> int:
    """The id of a process's CPU clock: what /proc/PID/stat counts in ticks of 10 ms, in nanoseconds."""
    clock = ctypes.c_int()
    error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise OSError(error, os.strerror(error))
    return clock.value
