"""The real server, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Addresses(NamedTuple):
    """HOST:PORT of gRPC and of the metrics."""

    grpc: str
    metrics: str


@contextmanager
def serving(bundle: Path, *flags: str) -> Iterator[Addresses]:
    """`timeline-ranker serve` on free ports, from its ready line on; drained when the context is left."""
    command = [sys.executable, "-m", "service", "serve", "--bundle", str(bundle), "--host", "127.0.0.1"]
    ports = ["--grpc-port", "0", "--metrics-port", "0", "--drain-ms", "0"]
    with subprocess.Popen([*command, *ports, *flags], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = re.fullmatch(r"ready grpc=(\S+) metrics=(\S+)\n", process.stdout.readline())
            assert ready, "the server did not start; its log says why"
            yield Addresses(*ready.groups())
        finally:
            process.terminate()
    assert process.returncode == 0
