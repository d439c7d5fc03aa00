from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest import traffic
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from tests import toy
from tests.server_process import Addresses, answering

LOCUSTFILE = Path(__file__).parents[2] / "loadtest" / "locustfile.py"
SERVICE = pb.DESCRIPTOR.services_by_name["TimelineRankingService"].full_name


def locust(target: str) -> subprocess.CompletedProcess[str]:
    """Two users for three seconds."""
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", "--host", target]
    return subprocess.run(
        [*command, "--users", "2", "--spawn-rate", "2", "--run-time", "3s"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_users_get_their_timelines(toy_server: Addresses) -> None:
    """No failures, and latencies by candidate count that add up to what locust saw."""
    done = locust(toy_server.grpc)

    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^ +(\d+|all) +(\d+) ", done.stdout, re.MULTILINE))
    assert list(rows) == [*map(str, traffic.CANDIDATES_MIX), "all"]
    assert int(rows["all"]) == sum(int(count) for tweets, count in rows.items() if tweets != "all") > 0
    assert re.search(rf"^grpc +RankTimeline +{rows['all']} +0\(0\.00%\)", done.stderr, re.MULTILINE)


@pytest.fixture
def forgetful_target() -> Iterator[str]:
    """Where a server listens that always answers with an empty timeline."""
    description = pb.DescribeModelResponse(
        features=[pb.Feature(name=f.name, group=f.group, kind=f.kind, vocabulary=f.vocabulary, width=f.width)
                  for f in toy.SCHEMA.features],
        heads=[pb.Head(name="like", weight=1, sign=1)],
    ).SerializeToString()  # fmt: skip
    methods = {"DescribeModel": lambda _body, _context: description, "RankTimeline": lambda _body, _context: b""}
    with answering(SERVICE, methods) as target:
        yield target


def test_an_answer_without_the_tweets_is_a_failure(forgetful_target: str) -> None:
    """However quick it is: every call fails, and so does the run."""
    done = locust(forgetful_target)

    assert done.returncode == 1
    assert "the answer's Tweets are not the request's" in done.stderr
    assert re.search(r"^grpc +RankTimeline +(\d+) +\1\(100\.00%\)", done.stderr, re.MULTILINE)


def test_a_server_that_is_not_there_ends_the_run() -> None:
    """At once, with its address."""
    done = locust("127.0.0.1:1")

    assert done.returncode == 1
    assert "--host 127.0.0.1:1: " in done.stderr
