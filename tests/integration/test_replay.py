"""`timeline-ranker replay` between real servers: what is the same, what is not, and what can not be said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from service.__main__ import main
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from service.generated.timelines.ranking.v1.served_log_pb2 import ServedRecord
from service.replay import request_of
from service.served_log import LogFiles, read_log
from tests import toy
from tests.server_process import Addresses, serving

EXPERIMENTS = """
[[experiments]]
name = "exploring"
salt = "1"
arms = [{name = "off", share = 0.5}, {name = "on", share = 0.5, exploration_epsilon = 0.5}]
"""
POLICY = "ranked_size = 2\nicymi_size = 1\nicymi_candidates_min = 3\n"
HOUR_MS = 3_600_000
RECORDS = 60


def requests() -> list[pb.RankTimelineRequest]:
    """Of many viewers; those without an id or a time of their own, and first visits, among them."""
    rng = np.random.default_rng(7)
    return [
        pb.RankTimelineRequest(
            request_id=f"r{i}" if i % 3 else "",
            viewer_id=i + 1,
            last_visit_ms=10 * HOUR_MS * (i % 4 > 0),
            request_time_ms=40 * HOUR_MS * (i % 2),
            candidates=toy.candidates(rng.uniform(0, 700, 6).tolist()),
        )
        for i in range(RECORDS)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the servers of this module are started with."""
    folder = tmp_path_factory.mktemp("replay")
    (folder / "experiments.toml").write_text(EXPERIMENTS)
    (folder / "policy.toml").write_text(POLICY)
    return folder


@pytest.fixture(scope="module")
def flags(folder: Path) -> list[str]:
    return ["--experiments", str(folder / "experiments.toml"), "--policy", str(folder / "policy.toml")]


@pytest.fixture(scope="module")
def log(toy_bundle: Path, folder: Path, flags: list[str]) -> Path:
    """What a server answered, and the requests as received."""
    log = folder / "log"
    logging = ["--served-log", str(log), "--log-features", "1"]
    with serving(toy_bundle, *flags, *logging) as addresses, grpc.insecure_channel(addresses.grpc) as channel:
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        for request in requests():
            stub.RankTimeline(request, timeout=30)
    return log


@pytest.fixture(scope="module")
def same(toy_bundle: Path, flags: list[str]) -> Iterator[Addresses]:
    """A server like the one that wrote the log."""
    with serving(toy_bundle, *flags) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def other(folder: Path, flags: list[str]) -> Iterator[Addresses]:
    """A server of a toy whose Tweets' own columns make a like half as probable."""
    weights = {**toy.WEIGHTS, "tweet": np.array([0.5, 1, 1], np.float32) * toy.WEIGHTS["tweet"]}
    with serving(toy.write(folder / "other", weights), *flags) as addresses:
        yield addresses


def replayed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    status = main(["replay", *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_an_unchanged_server_answers_as_it_did(log: Path, same: Addresses, capsys: pytest.CaptureFixture[str]) -> None:
    """To the last bit: with ids and times that the server made up, both arms, and explored slots."""
    status, found = replayed(capsys, str(log), "--target", same.grpc, "--tolerance", "0")

    assert status == 0
    assert (found["records"], found["sent"], found["compared"], found["same"]) == (RECORDS,) * 4
    assert found["targets"] == [{"target": same.grpc, "statuses": {"OK": RECORDS}}]
    assert found["different"] == []
    assert found["top_10_overlap"] == found["rank_correlation"] == {"mean": 1, "min": 1}
    assert list(found["heads"]) == ["like", "reply", "negative"]
    assert found["heads"]["like"] == {"mean": 0, "mean_size": 0, "largest": 0}
    records = [pb.RankTimelineResponse.FromString(record.response) for record in read_log(log)]
    assert {record.served_by.arms["exploring"] for record in records} == {"off", "on"}


def test_another_model_shows(log: Path, other: Addresses, capsys: pytest.CaptureFixture[str]) -> None:
    """What the Tweet adds to the probability of a like is halved, on average and at most; replies are the same."""
    status, found = replayed(capsys, str(log), "--target", other.grpc)
    likes = []
    for record in read_log(log):
        response = pb.RankTimelineResponse.FromString(record.response)
        for section in (response.icymi, response.ranked, response.remainder):
            likes += list(section.probabilities)[::3]
    # An author's strength of 1 adds 0.2 to the raw probability, (likes + 1) / 1000 the rest; half of all that.
    expected = [(like - 0.1) / 2 for like in likes]

    assert status == 1
    assert found["same"] < RECORDS == found["compared"]
    assert len(found["different"]) == 20
    assert max(likes) < 0.5  # nothing was clipped, so the arithmetic above holds
    drift = found["heads"]["like"]
    assert drift["mean"] == pytest.approx(-np.mean(expected), rel=1e-4)
    assert drift["mean_size"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert drift["largest"] == pytest.approx(max(expected), rel=1e-4)
    assert found["heads"]["reply"]["largest"] == 0
    assert found["rank_correlation"]["mean"] == 1  # half of it, in the same order


def test_two_targets_are_held_against_each_other(
    log: Path, same: Addresses, other: Addresses, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of them is like the log's server, so the other is as far from it as from the log; backwards, minus that."""
    forwards = replayed(capsys, str(log), "--target", same.grpc, "--target", other.grpc)
    backwards = replayed(capsys, str(log), "--target", other.grpc, "--target", same.grpc)
    twice = replayed(capsys, str(log), "--target", other.grpc, "--target", other.grpc)
    _, alone = replayed(capsys, str(log), "--target", other.grpc)

    assert [status for status, _ in (forwards, backwards, twice)] == [1, 1, 0]
    assert [target["target"] for target in forwards[1]["targets"]] == [same.grpc, other.grpc]
    assert forwards[1]["heads"] == alone["heads"]
    assert backwards[1]["heads"]["like"]["mean"] == pytest.approx(-alone["heads"]["like"]["mean"])
    assert twice[1]["same"] == RECORDS


def test_what_can_not_be_replayed_is_counted_and_said(
    log: Path, same: Addresses, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records without their request, and, against the log alone, those whose answer depended on the load."""
    first, second, *others = read_log(log)
    first.request = b""
    degraded = pb.RankTimelineResponse.FromString(second.response)
    degraded.degradation = pb.DEGRADATION_PARTIAL
    second.response = degraded.SerializeToString()
    files = LogFiles(tmp_path)
    for record in (first, second, *others[:3]):
        files.append(record.SerializeToString())
    files.close()

    status, found = replayed(capsys, str(tmp_path), "--target", same.grpc)
    assert (status, found["records"], found["without_request"], found["degraded"], found["sent"]) == (0, 5, 1, 1, 3)
    status, found = replayed(capsys, str(tmp_path), "--target", same.grpc, "--target", same.grpc)
    assert (status, found["without_request"], found["degraded"], found["sent"]) == (0, 1, 0, 4)
    assert main(["replay", str(tmp_path), "--target", same.grpc]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[:6] == [
        "       5 records",
        "         passed over: 1 without their request (serve --log-features)",
        "         passed over: 1 whose answer was degraded",
        "       3 sent",
        f"       3 OK from {same.grpc}",
        "       3 the same, compared with the log",
    ]


def test_arms_are_those_of_the_log_unless_the_target_shall_choose(
    log: Path, toy_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that runs no experiment refuses the log's arms, by name; left to itself it explores nothing."""
    with serving(toy_bundle, "--policy", str(folder / "policy.toml")) as plain:
        status, refused = replayed(capsys, str(log), "--target", plain.grpc)
        assert (status, refused["compared"]) == (1, 0)
        assert refused["targets"][0]["statuses"] == {"INVALID_ARGUMENT": RECORDS}
        assert refused["rank_correlation"] == {"mean": None, "min": None}

        status, free = replayed(capsys, str(log), "--target", plain.grpc, "--assign-arms")
    explored = [record for record in read_log(log) if 0.5 in record.inclusion_probabilities]
    assert (free["compared"], free["heads"]["like"]["largest"]) == (RECORDS, 0)
    assert status == 1
    assert RECORDS - len(explored) <= free["same"] < RECORDS


def test_what_is_sent_again() -> None:
    """The request as it was, with what the server had added, and in full."""
    asked = pb.RankTimelineRequest(viewer_id=1, last_visit_ms=5, forced_arms={"ranker": "a"})
    record = ServedRecord(request=asked.SerializeToString(), served_at_ms=77)
    logged = pb.RankTimelineResponse(request_id="made", served_by=pb.ServedBy(arms={"ranker": "a", "size": "b"}))
    expected = pb.RankTimelineRequest(
        viewer_id=1, last_visit_ms=5, request_id="made", request_time_ms=77, require_full_ranking=True
    )

    expected.forced_arms["ranker"] = "a"
    assert request_of(record, logged, assign_arms=True) == expected
    expected.forced_arms["size"] = "b"
    assert request_of(record, logged, assign_arms=False) == expected


def test_a_log_cut_short_is_replayed_up_to_there(
    log: Path, same: Addresses, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The torn tail of a killed writer is no error; damage is one, and says where."""
    (file,) = log.iterdir()
    torn, damaged = tmp_path / "torn.log", tmp_path / "damaged.log"
    content = bytearray(file.read_bytes())
    torn.write_bytes(content[:-5])
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)

    assert main(["replay", str(torn), "--target", same.grpc]) == 0
    capsys.readouterr()
    status, found = replayed(capsys, str(damaged), "--target", same.grpc)
    assert status == 2
    assert 0 < found["same"] == found["records"] < RECORDS  # what came before the damage was compared


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["{log}/no", "--target", "{same}"], "{log}/no: No such file or directory"),
        (["{log}", "--target", "{same}", "--target", "{same}", "--target", "{same}"], "3 targets; one or two can be"),
        (["{log}", "--target", "127.0.0.1:1"], "--target 127.0.0.1:1: UNAVAILABLE"),
        (["{empty}", "--target", "{same}"], "{empty}: no request to send: no record"),
        (["{bare}", "--target", "{same}"], "{bare}: no request to send: 1 without their request"),
    ],
)
def test_what_makes_no_sense_is_said(
    log: Path, same: Addresses, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], fault: str
) -> None:
    """One line on stderr and exit status 2; nothing to compare is not "the same"."""
    names = {"log": str(log), "same": same.grpc, "empty": str(tmp_path / "empty"), "bare": str(tmp_path / "bare")}
    (tmp_path / "empty").mkdir()
    files = LogFiles(tmp_path / "bare")
    files.append(ServedRecord(viewer_id=1).SerializeToString())
    files.close()

    assert main(["replay", *(argument.format(**names) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith(f"timeline-ranker replay: {fault.format(**names)}")
    assert captured.out == ""


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "much"])
def test_a_tolerance_is_a_number_from_0(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else is a usage error that names it."""
    with pytest.raises(SystemExit) as ended:
        main(["replay", "log", "--target", "a:1", f"--tolerance={text}"])

    assert ended.value.code == 2
    assert f"argument --tolerance: {text!r} is not a number from 0" in capsys.readouterr().err
