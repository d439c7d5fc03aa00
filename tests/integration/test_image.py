from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import service
from service.__main__ import main

pytestmark = [pytest.mark.foreign, pytest.mark.slow]

BUILD = Path(__file__).with_name("build_image.sh")
SAMPLE_REQUEST = Path(service.__file__).with_name("sample") / "request.json"
NO_BASE = 77
IMAGE = "localhost/timeline-ranker:test"


class Image(NamedTuple):
    """The built image: its configuration, and `buildah run CONTAINER --` of a container made from it."""

    config: dict[str, Any]
    command: list[str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the container, as the image's user."""
        return subprocess.run([*self.command, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Built from the checkout."""
    # Not pytest's own directory, which outlives the run: there is half a gigabyte in it.
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run([BUILD, directory], capture_output=True, text=True, timeout=900, check=False)
        if done.returncode == NO_BASE:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stdout + done.stderr
        buildah = ["buildah", "--root", f"{directory}/store", "--runroot", f"{directory}/run"]
        os.environ |= {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
        inspect = subprocess.check_output([*buildah, "inspect", "--type", "image", IMAGE])
        container = subprocess.check_output([*buildah, "from", "--pull-never", IMAGE], text=True).strip()
        yield Image(json.loads(inspect)["Docker"]["config"], [*buildah, "run", container, "--"])


class Running(NamedTuple):
    """A server in the container, and the environment that it was given."""

    target: str
    environment: list[str]


@pytest.fixture(scope="module")
def server(image: Image) -> Iterator[Running]:
    """The image's own entry point and command, on free ports."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = {"HOST": "127.0.0.1", "GRPC_PORT": port, "METRICS_PORT": 0, "DRAIN_MS": 0}
    environment = ["env", *(f"TIMELINE_RANKER_{name}={value}" for name, value in settings.items())]
    command = [*image.command, *environment, *image.config["Entrypoint"], *image.config["Cmd"]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith(f"ready grpc=127.0.0.1:{port} "), "the server did not start; its log says why"
        yield Running(f"127.0.0.1:{port}", environment)
        process.terminate()


def test_the_image_ranks_the_sample_timeline(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """With the model inside it."""
    status = main(["rank", "--target", server.target, "--deadline-ms", "5000", str(SAMPLE_REQUEST)])

    assert status == 0
    assert capsys.readouterr().out.startswith("In case you missed it · ")


def test_its_health_check_passes_while_it_serves(image: Image, server: Running) -> None:
    """The very command that the image declares."""
    kind, command = image.config["Healthcheck"]["Test"]

    done = image.run(*server.environment, "sh", "-c", command)

    assert (kind, done.returncode) == ("CMD-SHELL", 0), done.stderr


def test_its_health_check_fails_where_nothing_serves(image: Image) -> None:
    """With the reason."""
    _, command = image.config["Healthcheck"]["Test"]

    done = image.run("env", "TIMELINE_RANKER_GRPC_PORT=1", "sh", "-c", command)

    assert done.returncode == 1
    assert done.stderr.startswith("timeline-ranker health: 127.0.0.1:1: UNAVAILABLE: ")


def test_it_runs_as_nobody_in_particular(image: Image) -> None:
    """A numeric user, so that Kubernetes can see that it is not root."""
    assert image.config["User"] == "65532:65532"
    assert image.run("id", "-u").stdout == "65532\n"


def test_it_has_what_serving_needs_and_nothing_else(image: Image) -> None:
    """Neither the trainer nor its dependencies, nor tests, nor pip."""
    names = ["torch", "onnx", "pyarrow", "sklearn", "locust", "pytest", "model_export", "loadtest", "tests", "pip"]
    look = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"

    assert image.run("python", "-c", look).stdout == "[]\n"
