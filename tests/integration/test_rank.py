from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf import any_pb2, json_format
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from service.__main__ import main
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from tests import toy
from tests.server_process import Addresses, answering

NOW_MS = 1_700_000_000_000
# Tweet i (from 1) has 200 - i likes, so that the best are the first; the youngest is the last.
TWEETS = 120


@pytest.fixture
def request_message() -> pb.RankTimelineRequest:
    """120 Tweets by two authors, enough for the ICYMI module."""
    return pb.RankTimelineRequest(
        request_id="r-1",
        viewer_id=7,
        last_visit_ms=NOW_MS - 20 * 3_600_000,
        request_time_ms=NOW_MS,
        candidates=toy.candidates(
            likes=[200 - i for i in range(1, TWEETS + 1)],
            author_index=[i % 2 for i in range(TWEETS)],
            strength=[1.0, 1.0],
            created_at_ms=[NOW_MS - (TWEETS - i) * 60_000 for i in range(TWEETS)],
        ),
    )


@pytest.fixture
def request_file(request_message: pb.RankTimelineRequest, tmp_path: Path) -> Path:
    """The request as the command reads it."""
    return write(request_message, tmp_path)


def write(message: pb.RankTimelineRequest, directory: Path) -> Path:
    file = directory / "request.json"
    file.write_text(json_format.MessageToJson(message))
    return file


class Outcome(NamedTuple):
    """How the command ended, and what it wrote."""

    status: int
    stdout: str
    stderr: str


Rank = Callable[..., Outcome]


@pytest.fixture
def rank(capsys: pytest.CaptureFixture[str]) -> Rank:
    """The command, in this process; its arguments after `rank --target`."""

    def run(target: str, *arguments: str | Path) -> Outcome:
        try:
            status = main(["rank", "--target", target, *map(str, arguments)])
        except SystemExit as leave:
            status = int(str(leave.code))
        return Outcome(status, *capsys.readouterr())

    return run


def test_prints_the_timeline_that_the_server_built(
    rank: Rank, toy_server: Addresses, request_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sections, the facts, exit 0, nothing on stderr."""
    monkeypatch.setenv("COLUMNS", "100")
    done = rank(toy_server.grpc, request_file)

    assert (done.status, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "In case you missed it · 5 Tweets, best first"
    assert "Top Tweets · 30 Tweets, newest first" in lines
    assert "Everything else · 85 Tweets, newest first" in lines
    assert "… and 80 more (--all shows them)" in lines
    # The best Tweet is the first, made two hours before the request: 199 likes raise each raw probability of a like
    # by 0.2, strength 1 by 0.2; half of 0.4 is the calibrated one. Replies: 0.02 raw.
    assert lines[2].split() == ["2h", "@101", "0.2200", "20.0%", "1.00%", "<0.01%"]
    assert "candidates   120 Tweets by 2 authors" in lines
    assert "ICYMI        shown" in lines
    assert re.search(r"^server ms    \d+\.\d\d = decode ", done.stdout, re.MULTILINE)
    assert re.search(r"^round trip   \d+\.\d\d ms$", done.stdout, re.MULTILINE)


def test_shows_the_whole_remainder_when_asked(rank: Rank, toy_server: Addresses, request_file: Path) -> None:
    """All 120 Tweets have a line."""
    done = rank(toy_server.grpc, "--all", request_file)

    assert len(re.findall(r"^ .*@10[12] ", done.stdout, re.MULTILINE)) == TWEETS


def test_prints_the_response_as_protobuf_json(rank: Rank, toy_server: Addresses, request_file: Path) -> None:
    """lowerCamelCase names, default values, 64-bit integers as strings; and it is the whole response."""
    done = rank(toy_server.grpc, "--json", request_file)

    document: dict[str, Any] = json.loads(done.stdout)
    assert document["requestId"] == "r-1"
    assert document["icymi"]["tweetIds"] == ["1", "2", "3", "4", "5"]
    assert document["icymiDecision"] == "ICYMI_DECISION_SHOWN"
    assert document["timings"]["queueUs"] >= 0
    assert document["servedBy"]["arms"] == {}
    response = json_format.Parse(done.stdout, pb.RankTimelineResponse())
    assert sum(len(part.tweet_ids) for part in (response.icymi, response.ranked, response.remainder)) == TWEETS


def test_the_json_of_an_empty_timeline_has_three_empty_sections(
    rank: Rank, toy_server: Addresses, tmp_path: Path
) -> None:
    """Whoever reads it needs no special case."""
    done = rank(toy_server.grpc, "--json", write(pb.RankTimelineRequest(viewer_id=7), tmp_path))

    document = json.loads(done.stdout)
    empty: dict[str, list[Any]] = {"tweetIds": [], "scores": [], "probabilities": []}
    assert [document[section] for section in ("icymi", "ranked", "remainder")] == [empty, empty, empty]


def test_reads_the_request_from_standard_input(
    rank: Rank, toy_server: Addresses, request_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dash stands for it."""
    with request_file.open() as standard_input:
        monkeypatch.setattr("sys.stdin", standard_input)
        done = rank(toy_server.grpc, "--json", "-")

    assert (done.status, json.loads(done.stdout)["requestId"]) == (0, "r-1")


def test_writes_the_page_and_prints_the_timeline_too(
    rank: Rank, toy_server: Addresses, request_file: Path, tmp_path: Path
) -> None:
    """Every Tweet stands in both columns."""
    done = rank(toy_server.grpc, "--html", tmp_path / "page.html", request_file)

    page = (tmp_path / "page.html").read_text()
    assert done.status == 0
    assert done.stdout.startswith("In case you missed it")
    assert all(page.count(f'id="{column}{tweet}"') == 1 for column in "rt" for tweet in range(1, TWEETS + 1))


def test_an_empty_timeline_is_ranked(rank: Rank, toy_server: Addresses, tmp_path: Path) -> None:
    """No candidates are legal."""
    file = write(pb.RankTimelineRequest(viewer_id=7), tmp_path)

    done = rank(toy_server.grpc, file)

    assert done.status == 0
    assert "Everything else · 0 Tweets" in done.stdout


def test_a_refusal_names_status_and_field(
    rank: Rank, toy_server: Addresses, request_message: pb.RankTimelineRequest, tmp_path: Path
) -> None:
    """On stderr, with exit 1 and an empty stdout."""
    request_message.candidates.tweets.values.append(1)

    done = rank(toy_server.grpc, write(request_message, tmp_path))

    assert (done.status, done.stdout) == (1, "")
    assert done.stderr == (
        "refused: INVALID_ARGUMENT\n  candidates.tweets.values: 121 values for 120 rows x 1 columns\n"
    )


def test_an_unknown_model_is_refused(
    rank: Rank, toy_server: Addresses, request_message: pb.RankTimelineRequest, tmp_path: Path
) -> None:
    """A status without fields brings its message."""
    request_message.model = "nobody"

    done = rank(toy_server.grpc, write(request_message, tmp_path))

    assert done.status == 1
    assert done.stderr.startswith("refused: NOT_FOUND: no model 'nobody' is served")


def test_a_server_that_is_not_there_is_a_refusal(rank: Rank, request_file: Path) -> None:
    """Not a usage error: the command line was right."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    done = rank(f"127.0.0.1:{port}", request_file)

    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith("refused: UNAVAILABLE: ")


def test_a_server_that_never_answers_is_given_up_at_the_deadline(rank: Rank, request_file: Path) -> None:
    """The listener takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = rank(f"127.0.0.1:{listener.getsockname()[1]}", "--deadline-ms", "50", request_file)

    assert (done.status, done.stderr) == (1, "refused: DEADLINE_EXCEEDED: Deadline Exceeded\n")


def ask_to_come_back(_request: bytes, context: grpc.ServicerContext) -> bytes:
    """What an overloaded server does with a call."""
    detail, retry = any_pb2.Any(), error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(250)
    detail.Pack(retry)
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="queue is full", details=[detail])
    context.abort_with_status(rpc_status.to_status(status))


@pytest.fixture
def overloaded_target() -> Iterator[str]:
    """Where an overloaded server listens."""
    service = pb.DESCRIPTOR.services_by_name["TimelineRankingService"].full_name
    with answering(service, {"RankTimeline": ask_to_come_back}) as target:
        yield target


def test_an_overloaded_server_says_when_to_come_back(rank: Rank, overloaded_target: str, request_file: Path) -> None:
    """RetryInfo in words."""
    done = rank(overloaded_target, request_file)

    assert (done.status, done.stderr) == (
        1,
        "refused: RESOURCE_EXHAUSTED: queue is full\n  try again in 250 ms\n",
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "request.json: not a RankTimelineRequest in JSON: "),
        ('{"viewer": 1}', 'no field named "viewer"'),
        ('{"viewerId": 1.5}', "viewerId"),
        ('{"candidates": {"tweets": {"values": [NaN]}}}', "NaN"),
        ("\udcff", "request.json: not a RankTimelineRequest in JSON: "),
    ],
)
def test_json_that_is_no_request_is_a_usage_error(rank: Rank, tmp_path: Path, content: str, complaint: str) -> None:
    """File and fault are named; no server is asked."""
    file = tmp_path / "request.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))

    done = rank("127.0.0.1:1", file)

    assert (done.status, done.stdout) == (2, "")
    assert complaint in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("missing.json",), "missing.json: No such file or directory"),
        ((), "FILE"),
        (("--deadline-ms", "0", "x.json"), "'0' is not a positive whole number"),
        (("--deadline-ms", "soon", "x.json"), "'soon' is not a positive whole number"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(rank: Rank, arguments: tuple[str, ...], complaint: str) -> None:
    """Named, with exit 2."""
    done = rank("127.0.0.1:1", *arguments)

    assert (done.status, done.stdout) == (2, "")
    assert complaint in done.stderr


def test_a_page_that_can_not_be_written_is_a_usage_error(
    rank: Rank, toy_server: Addresses, request_file: Path, tmp_path: Path
) -> None:
    """The path is named."""
    done = rank(toy_server.grpc, "--html", tmp_path / "nowhere" / "page.html", request_file)

    assert done.status == 2
    assert "page.html: No such file or directory" in done.stderr


def on_a_terminal(target: str, file: Path, columns: str, **environment: str) -> str:
    """What the command writes to a terminal."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "service", "rank", "--target", target, str(file)]
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen(
        command, stdout=follower, env=clean | {"TERM": "xterm", "COLUMNS": columns} | environment
    ) as process:
        os.close(follower)
        output = b""
        while chunk := _read(leader):
            output += chunk
    os.close(leader)
    assert process.returncode == 0
    return output.decode()


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65_536)
    except OSError:  # how Linux says that the other end has gone
        return b""


def test_a_terminal_gets_colour_and_lines_that_fit(toy_server: Addresses, request_file: Path) -> None:
    """Its width decides what is left out."""
    text = on_a_terminal(toy_server.grpc, request_file, columns="64")

    assert "\x1b[" in text
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in text.splitlines()) <= 64


def test_no_color_is_honoured(toy_server: Addresses, request_file: Path) -> None:
    """On a terminal too."""
    assert "\x1b[" not in on_a_terminal(toy_server.grpc, request_file, columns="80", NO_COLOR="1")


def test_a_reader_who_has_seen_enough_gets_no_traceback(toy_server: Addresses, request_file: Path) -> None:
    """As in `rank ... | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "service", "rank", "--target", toy_server.grpc, str(request_file)]

    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False)

    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
