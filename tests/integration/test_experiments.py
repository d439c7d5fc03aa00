"""Experiments on the real server: arms in answers and metrics, and files that do not start."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from service.stable_hash import uniform
from tests import toy
from tests.server_process import Addresses, serving

EXPERIMENTS = """
[[experiments]]
name = "sizes"
salt = "sizes-1"
arms = [{name = "control", share = 0.5}, {name = "short", share = 0.5, policy = {ranked_size = 2}}]

[[experiments]]
name = "weights"
salt = "weights-1"
[[experiments.arms]]
name = "control"
share = 1
[[experiments.arms]]
name = "no_likes"
share = 0
policy.head_weights.like = 0
"""


@pytest.fixture(scope="module")
def server(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A server that runs two experiments."""
    file = tmp_path_factory.mktemp("experiments") / "experiments.toml"
    file.write_text(EXPERIMENTS)
    with serving(toy_bundle, "--experiments", str(file)) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def stub(server: Addresses) -> Iterator[ranking_pb2_grpc.TimelineRankingServiceStub]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield ranking_pb2_grpc.TimelineRankingServiceStub(channel)


def request(viewer_id: int, **forced_arms: str) -> pb.RankTimelineRequest:
    return pb.RankTimelineRequest(viewer_id=viewer_id, candidates=toy.candidates([30, 10, 20]), forced_arms=forced_arms)


def timelines_by_arm(server: Addresses) -> Counter[tuple[str, str]]:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(r'^timeline_arm_total\{arm="(.*)",experiment="(.*)"\} (\S+)$', text, re.MULTILINE)
    return Counter({(experiment, arm): int(float(count)) for arm, experiment, count in found})


def test_viewers_get_the_arm_that_the_hash_says(
    server: Addresses, stub: ranking_pb2_grpc.TimelineRankingServiceStub
) -> None:
    """Arm, section sizes and counters of fifty viewers follow from the documented hash alone."""
    expected = {viewer: "control" if uniform("sizes-1", str(viewer)) < 0.5 else "short" for viewer in range(1, 51)}
    before = timelines_by_arm(server)
    responses = {viewer: stub.RankTimeline(request(viewer)) for viewer in expected}

    for viewer, response in responses.items():
        assert response.served_by.arms == {"sizes": expected[viewer], "weights": "control"}
        assert len(response.ranked.tweet_ids) == (3 if expected[viewer] == "control" else 2)
    counted = Counter(("sizes", arm) for arm in expected.values()) + Counter({("weights", "control"): 50})
    assert timelines_by_arm(server) - before == counted
    assert ("weights", "no_likes") in before


def test_a_forced_arm_ranks_as_it_says(stub: ranking_pb2_grpc.TimelineRankingServiceStub) -> None:
    """Without likes all three Tweets score the same; the policy in force has a version of its own."""
    control, forced = (stub.RankTimeline(request(1, sizes="control", weights=arm)) for arm in ("control", "no_likes"))

    assert forced.served_by.arms == {"sizes": "control", "weights": "no_likes"}
    assert len(set(forced.ranked.scores)) == 1
    assert len(set(control.ranked.scores)) == 3
    assert forced.served_by.policy_version != control.served_by.policy_version


@pytest.mark.parametrize(
    ("forced_arms", "text"),
    [
        ({"colour": "blue"}, "forced_arms: there is no experiment 'colour'; there are sizes, weights"),
        ({"sizes": "blue"}, "forced_arms: experiment 'sizes' has no arm 'blue'; it has control, short"),
    ],
)
def test_an_unknown_arm_is_refused(
    stub: ranking_pb2_grpc.TimelineRankingServiceStub, forced_arms: dict[str, str], text: str
) -> None:
    """INVALID_ARGUMENT, and what there is."""
    with pytest.raises(grpc.RpcError) as refused:
        stub.RankTimeline(request(1, **forced_arms))

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == text


@pytest.mark.parametrize(
    ("experiments", "status", "fault"),
    [
        (EXPERIMENTS.replace("salt =", "salz =", 1), 2, "experiment 'sizes': salz is not known; did you mean salt?"),
        (EXPERIMENTS.replace("like = 0", "likes = 0"), 1, "head_weights.likes: the model has no such head; did you"),
        (EXPERIMENTS.replace("share = 1", 'share = 1\nmodel = "canary"'), 1, "no model 'canary' is served"),
    ],
    ids=["file", "head", "model"],
)
def test_a_server_does_not_start_on_experiments_that_make_no_sense(
    toy_bundle: Path, tmp_path: Path, experiments: str, status: int, fault: str
) -> None:
    """One line on stderr says why; a file that can not be read at all is one, too."""
    file = tmp_path / "experiments.toml"
    for content, expected_status, expected in ((experiments, status, fault), (None, 2, "No such file")):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        command = [sys.executable, "-m", "service", "serve", "--bundle", str(toy_bundle), "--experiments", str(file)]
        ports = ["--host", "127.0.0.1", "--grpc-port", "0", "--metrics-port", "0"]
        outcome = subprocess.run([*command, *ports], capture_output=True, text=True, timeout=60)

        assert (outcome.returncode, outcome.stdout) == (expected_status, "")
        (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("timeline-ranker serve: ")]
        assert expected in line
