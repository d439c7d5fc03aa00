"""`timeline-ranker demo`: a server on the embedded model, and one sample timeline ranked by it over gRPC."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from service import rank

SAMPLE_REQUEST = Path(__file__).with_name("sample") / "request.json"

NO_SERVER = 1


def add_arguments(_: argparse.ArgumentParser) -> None:
    """The command takes nothing."""


def run(_: argparse.Namespace) -> int:
    """Starts the server as anyone would, ranks the sample request, stops the server; returns the exit status."""
    print("starting a server on the embedded model ...", file=sys.stderr)
    command = [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--drain-ms", "0"]
    command += ["--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:  # noqa: S603
        assert server.stdout is not None  # noqa: S101 - asked for above
        ready = server.stdout.readline().split()
        if not ready:
            print(server.communicate()[1], end="", file=sys.stderr)
            return NO_SERVER
        parser = argparse.ArgumentParser()
        rank.add_arguments(parser)
        target = ready[1].removeprefix("grpc=")
        print(f"timeline-ranker rank --target {target} {SAMPLE_REQUEST}", file=sys.stderr)
        try:
            return rank.run(parser.parse_args(["--target", target, str(SAMPLE_REQUEST)]))
        finally:
            server.terminate()
            server.communicate()
