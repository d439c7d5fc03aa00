"""A real server on a model repository: swaps under load, and whatever may be wrong with a version."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from service.__main__ import main
from service.bundle import write_bundle
from service.generated.timelines.ranking.v1 import golden_pb2, ranking_pb2_grpc
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.repository import Repository
from tests import toy
from tests.server_process import Addresses
from tests.spoiled import SPOILERS, flip_byte, slow_down

SERVE = [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--grpc-port", "0", "--metrics-port", "0"]
PATIENCE_S = 60


@contextmanager
def serving(root: Path, log: Path, *flags: str) -> Iterator[Addresses]:
    """A server on the repository that looks at it all the time, its log in a file."""
    command = [*SERVE, "--drain-ms", "0", "--model-repository", str(root), "--model-check-ms", "10", *flags]
    with log.open("w") as stderr, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as server:
        try:
            assert server.stdout is not None
            ready = re.fullmatch(r"ready grpc=(\S+) metrics=(\S+)\n", server.stdout.readline())
            assert ready, log.read_text()
            yield Addresses(*ready.groups())
        finally:
            server.terminate()
    assert server.returncode == 0


def sample(addresses: Addresses, series: str) -> float:
    with urllib.request.urlopen(f"http://{addresses.metrics}/metrics") as answer:
        values = re.findall(rf"^{re.escape(series)} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(values[0]) if values else 0.0


def describe(addresses: Addresses) -> pb.DescribeModelResponse:
    with grpc.insecure_channel(addresses.grpc) as channel:
        return ranking_pb2_grpc.TimelineRankingServiceStub(channel).DescribeModel(pb.DescribeModelRequest())


def until_serving(addresses: Addresses, version: int) -> None:
    """Asks, over the network each time, until that version is stable."""
    give_up_s = time.monotonic() + PATIENCE_S
    while describe(addresses).model_version != str(version):
        assert time.monotonic() < give_up_s


def until_counted(addresses: Addresses, series: str, count: int) -> None:
    """Asks, over the network each time, until the counter stands there."""
    give_up_s = time.monotonic() + PATIENCE_S
    while sample(addresses, series) < count:
        assert time.monotonic() < give_up_s


def publish(root: Path, scratch: Path, factor: float) -> int:
    """Publishes the toy with weights `factor` times as large; returns the version."""
    weights = {group: np.float32(factor) * table for group, table in toy.WEIGHTS.items()}
    golden = golden_pb2.GoldenFile()
    golden.CopyFrom(toy.golden_file())
    for case in golden.cases:
        for field in (case.response.probabilities, case.response.raw_probabilities, case.response.scores):
            field[:] = [factor * value for value in field]
    directory = scratch / f"toy-{factor}"
    write_bundle(directory, toy.model_bytes(weights=weights), toy.manifest_fields(), golden.SerializeToString())
    return Repository(root).publish(directory)


def point(root: Path, **labels: int) -> None:
    """Labels as promote would never write them."""
    content = {label: {"version": version, "previous": []} for label, version in labels.items()}
    partial = root / "labels.json.new"
    partial.write_text(json.dumps(content))
    partial.replace(root / "labels.json")


@pytest.fixture
def root(tmp_path: Path, toy_bundle: Path) -> Path:
    """A repository whose version 1 is stable."""
    repository = Repository(tmp_path / "models")
    repository.publish(toy_bundle)
    repository.promote(1, "stable")
    return repository.root


def test_no_request_fails_and_none_is_split_while_versions_change(root: Path, tmp_path: Path) -> None:
    """Under load, ten promotions back and forth: all calls are answered, each whole by the version that it names.

    Version 2 has half the weights of version 1: the probability of a like of Tweet 1, without features but its
    likes, 9, is 0.5 x 0.001 x (9 + 1) there, and half of that here.
    """
    publish(root, tmp_path, 0.5)
    like_of = {"1": 0.005, "2": 0.0025}
    request = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([9.0] * 200, strength=[float("nan")]))
    stop = threading.Event()

    def call(addresses: Addresses) -> set[str]:
        seen = set()
        with grpc.insecure_channel(addresses.grpc) as channel:
            stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
            while not stop.is_set():
                response = stub.RankTimeline(request, timeout=30)
                version = response.served_by.model_version
                likes = np.asarray(response.ranked.probabilities)[::3]
                np.testing.assert_allclose(likes, like_of[version], rtol=1e-5)
                seen.add(version)
        return seen

    with serving(root, tmp_path / "log") as addresses, ThreadPoolExecutor(3) as callers:
        calls = [callers.submit(call, addresses) for _ in range(3)]
        try:
            for turn in range(10):
                version = 2 - turn % 2
                Repository(root).promote(version, "stable")
                until_serving(addresses, version)
        finally:
            stop.set()
        assert [call.result() for call in calls] == [{"1", "2"}] * 3
        until_counted(addresses, 'timeline_model_loads_total{result="loaded"}', 11)  # told just after it serves
        assert sample(addresses, 'timeline_model_loads_total{result="refused"}') == 0


def test_whatever_is_wrong_with_a_version_the_old_one_serves_on(root: Path, tmp_path: Path, toy_bundle: Path) -> None:
    """Each fault is refused with one line in the log, counted, and told by DescribeModel; then a good one serves."""
    request = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1, 2]))
    with serving(root, tmp_path / "log") as addresses, grpc.insecure_channel(addresses.grpc) as channel:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        for tried, (spoil, fault) in enumerate(SPOILERS.values(), start=1):
            version = Repository(root).publish(toy_bundle)
            spoil(root / str(version))
            point(root, stable=version)
            until_counted(addresses, 'timeline_model_loads_total{result="refused"}', tried)

            assert stub.RankTimeline(request).served_by.model_version == "1"
            load = describe(addresses).loads[-1]
            assert load.version == str(version)
            (line,) = load.faults
            assert fault in line
        good = Repository(root).publish(toy_bundle)
        Repository(root).promote(good, "stable")
        until_serving(addresses, good)
        assert sample(addresses, 'timeline_model_loads_total{result="refused"}') == len(SPOILERS)
    refused = [line for line in (tmp_path / "log").read_text().splitlines() if "refused" in line]

    assert len(refused) == len(SPOILERS)


def test_a_version_that_was_only_half_there_serves_once_it_is_whole(
    root: Path, tmp_path: Path, toy_bundle: Path
) -> None:
    """Refused for each state that it was seen in, and tried anew when a file of it changes."""
    manifest = (toy_bundle / "manifest.json").read_bytes()
    with serving(root, tmp_path / "log") as addresses:
        late = root / str(Repository(root).publish(toy_bundle))
        (late / "manifest.json").unlink()
        point(root, stable=2)
        for refused, written in ((1, b""), (2, manifest[: len(manifest) // 2]), (3, manifest)):
            until_counted(addresses, 'timeline_model_loads_total{result="refused"}', refused)
            assert describe(addresses).model_version == "1"
            (late / "manifest.json.new").write_bytes(written)
            (late / "manifest.json.new").replace(late / "manifest.json")
        until_serving(addresses, 2)


def test_the_speed_that_is_asked_for_is_a_setting(root: Path, tmp_path: Path, toy_bundle: Path) -> None:
    """A server that does not mind serves the slow model."""
    slow = Repository(root).publish(toy_bundle)
    slow_down(root / str(slow))
    point(root, stable=1, canary=slow)
    with serving(root, tmp_path / "log", "--slowdown-max", "1000") as addresses:
        assert dict(describe(addresses).serving) == {"stable": "1", "canary": str(slow)}


def test_labels_are_served_and_nothing_else(root: Path, tmp_path: Path, toy_bundle: Path) -> None:
    """A canary by label and by number; a version without a label is not found until it has one."""
    Repository(root).publish(toy_bundle)
    with serving(root, tmp_path / "log") as addresses, grpc.insecure_channel(addresses.grpc) as channel:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.RankTimeline(pb.RankTimelineRequest(viewer_id=1, model="2"))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND

        Repository(root).promote(2, "canary")
        until_counted(addresses, 'timeline_model_loads_total{result="loaded"}', 2)
        for model, version in (("", "1"), ("stable", "1"), ("canary", "2"), ("2", "2")):
            response = stub.RankTimeline(pb.RankTimelineRequest(viewer_id=1, model=model))
            assert response.served_by.model_version == version


def test_experiments_keep_their_models(root: Path, tmp_path: Path, toy_bundle: Path) -> None:
    """An arm's model goes live with the server, moves with its label, and stays when the label goes."""
    Repository(root).publish(toy_bundle)
    Repository(root).promote(2, "canary")
    (tmp_path / "experiments.toml").write_text(
        """
        [[experiments]]
        name = "new_model"
        salt = "1"
        arms = [{name = "old", share = 0}, {name = "new", share = 1, model = "canary"}]
        """
    )
    flags = ["--experiments", str(tmp_path / "experiments.toml")]
    with serving(root, tmp_path / "log", *flags) as addresses, grpc.insecure_channel(addresses.grpc) as channel:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        request = pb.RankTimelineRequest(viewer_id=1)
        forced = pb.RankTimelineRequest(viewer_id=1, forced_arms={"new_model": "old"})
        assert stub.RankTimeline(request).served_by.model_version == "2"
        assert stub.RankTimeline(forced).served_by.model_version == "1"

        third = Repository(root).publish(toy_bundle)
        point(root, stable=third)
        until_serving(addresses, third)
        assert stub.RankTimeline(request).served_by.model_version == "2"
        assert stub.RankTimeline(forced).served_by.model_version == "3"


@pytest.mark.parametrize(
    ("labels", "faults"),
    [
        (None, ["{root}: no model is ready under stable; there are no labels: publish and promote a version"]),
        ("{", ["labels.json: is not JSON: Expecting property name"]),
        ('{"canary": {"version": 1}}', ["{root}: no model is ready under stable"]),
        ('{"stable": {"version": 2}}', ["version 2: model.onnx: sha256 is", "{root}: no model is ready under stable"]),
    ],
    ids=["nothing promoted", "broken labels", "no stable label", "flipped byte"],
)
def test_a_server_without_a_stable_model_does_not_start(
    root: Path, toy_bundle: Path, labels: str | None, faults: list[str]
) -> None:
    """Exit status 1, and a line for each thing wrong."""
    flip_byte(root / str(Repository(root).publish(toy_bundle)))
    (root / "labels.json").unlink()
    if labels is not None:
        (root / "labels.json").write_text(labels)
    outcome = subprocess.run([*SERVE, "--model-repository", str(root)], capture_output=True, text=True, timeout=60)
    prefix = "timeline-ranker serve: "
    lines = [line.removeprefix(prefix) for line in outcome.stderr.splitlines() if line.startswith(prefix)]

    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert len(lines) == len(faults)
    assert all(line.startswith(fault.format(root=root)) for line, fault in zip(lines, faults, strict=True)), lines


def test_status_asks_the_server(
    root: Path, tmp_path: Path, toy_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --target: what serves under each label there, and what became of each load."""
    with serving(root, tmp_path / "log") as addresses:
        flip_byte(root / str(Repository(root).publish(toy_bundle)))
        point(root, stable=2)
        until_counted(addresses, 'timeline_model_loads_total{result="refused"}', 1)
        assert main(["status", str(root), "--target", addresses.grpc]) == 0
        text = capsys.readouterr().out.splitlines()
        assert main(["status", str(root), "--target", addresses.grpc, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        target = addresses.grpc
        (root / "labels.json").write_text("{")
        assert main(["status", str(root), "--target", target]) == 1
        broken = capsys.readouterr()

    assert "labels.json: is not JSON" in broken.err
    assert broken.out.splitlines() == text[-3:]  # what serves is told all the same
    point(root, stable=2)
    assert text[0] == "stable: version 2, before it none"
    assert f"{target} serves stable: version 1" in text
    assert f"{target} loaded version 1" in text
    assert text[-1].startswith(f"{target} refused version 2: model.onnx: sha256 is")
    assert document["target"]["serving"] == {"stable": "1"}
    assert [(load["version"], len(load["faults"])) for load in document["target"]["loads"]] == [("1", 0), ("2", 1)]
    assert document["versions"][1]["faults"] == document["target"]["loads"][1]["faults"]
    assert main(["status", str(root), "--target", target]) == 1
    assert "timeline-ranker status: UNAVAILABLE" in capsys.readouterr().err
