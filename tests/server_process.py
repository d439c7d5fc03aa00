"""The real server, in a process of its own, and stand-ins for servers that behave as it never would."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc


class Addresses(NamedTuple):
    """HOST:PORT of gRPC and of the metrics."""

    grpc: str
    metrics: str


@contextmanager
def serving(bundle: Path, *flags: str) -> Iterator[Addresses]:
    """`timeline-ranker serve` on free ports, from its ready line on; drained when the context is left."""
    with serving_models("--bundle", str(bundle), *flags) as addresses:
        yield addresses


@contextmanager
def serving_models(*flags: str) -> Iterator[Addresses]:
    """The same, with flags that say what to serve."""
    command = [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1"]
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


class Running(NamedTuple):
    """A server's process, which a test may do anything to."""

    process: subprocess.Popen[str]
    addresses: Addresses

    @property
    def descriptors(self) -> int:
        """How many it holds open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    @property
    def peak_memory_mb(self) -> int:
        """The most that it ever held in memory."""
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(kilobytes) // 1024


@contextmanager
def started(bundle: Path, *flags: str, first: str = "true", grpc_port: str = "0") -> Iterator[Running]:
    """A server from its ready line on, begun by a shell that does `first` before; killed if it is still there."""
    command = [sys.executable, "-m", "service", "serve", "--bundle", str(bundle), "--host", "127.0.0.1"]
    command += ["--drain-ms", "0", "--grpc-port", grpc_port, "--metrics-port", "0", *flags]
    by_shell = ["sh", "-c", f'{first} && exec "$@"', "sh", *command]
    with subprocess.Popen(by_shell, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = re.fullmatch(r"ready grpc=(\S+) metrics=(\S+)\n", process.stdout.readline())
            assert ready, "the server did not start; its log says why"
            yield Running(process, Addresses(*ready.groups()))
        finally:
            process.kill()


def sample(addresses: Addresses, series: str) -> float:
    """The value of one series of the metrics, as written in the text format."""
    with urllib.request.urlopen(f"http://{addresses.metrics}/metrics") as answer:
        text = answer.read().decode()
    (value,) = re.findall(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(value)


@contextmanager
def answering(service: str, methods: Mapping[str, Callable[[bytes, grpc.ServicerContext], bytes]]) -> Iterator[str]:
    """A server in this process that answers with functions from bytes to bytes; gives its HOST:PORT."""
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.unary_unary_rpc_method_handler(answer) for name, answer in methods.items()
    }
    with futures.ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[grpc.method_handlers_generic_handler(service, handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()
