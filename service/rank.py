"""`timeline-ranker rank`: sends one request to a server and shows the timeline that comes back."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import cast

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from service import health_check
from service.client import add_tls_arguments, host_and_port, open_channel
from service.commands import write_out
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from service.render_html import render_html
from service.render_text import render_text
from service.timeline_view import timeline_view

RANKED, REFUSED, USAGE = 0, 1, 2

# Where the output is no terminal, wide enough for six heads.
_WIDTH_WITHOUT_TERMINAL = 110


class UsageError(Exception):
    """What the caller gave can not be used."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("file", metavar="FILE", help="a RankTimelineRequest in protobuf JSON; - reads standard input")
    parser.add_argument("--target", metavar="HOST:PORT", type=host_and_port, required=True, help="the server to ask")
    add_tls_arguments(parser)
    parser.add_argument(
        "--deadline-ms", type=_milliseconds, default=1000, help="how long to wait (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the response as protobuf JSON")
    parser.add_argument("--html", metavar="PATH", type=Path, help="also write the timeline as a page")
    parser.add_argument("--all", action="store_true", help="print the whole remainder")


def run(arguments: argparse.Namespace) -> int:
    """Ranks the timeline of `arguments.file`; returns the exit status: RANKED, REFUSED or USAGE."""
    try:
        request = read_request(arguments.file)
        now_ms = time.time_ns() // 1_000_000
        response, round_trip_us = _call(arguments, request)
        view = timeline_view(request, response, now_ms, round_trip_us)
        if arguments.html:
            _write_page(arguments.html, render_html(view))
    except UsageError as error:
        print(f"timeline-ranker rank: {error}", file=sys.stderr)
        return USAGE
    except grpc.RpcError as error:
        print(refusal(cast(grpc.Call, error)), file=sys.stderr)  # what a call raises is also the call
        return REFUSED
    if arguments.json:
        write_out(json_format.MessageToJson(response, always_print_fields_with_no_presence=True) + "\n")
    else:
        width = shutil.get_terminal_size((_WIDTH_WITHOUT_TERMINAL, 0)).columns
        write_out(render_text(view, width, colour=_colour_wanted(), whole=arguments.all))
    return RANKED


def read_request(file: str) -> pb.RankTimelineRequest:
    """The request in `file`, or on standard input if that is "-"; raises UsageError naming what is wrong."""
    name = "standard input" if file == "-" else file
    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return json_format.Parse(text, pb.RankTimelineRequest())
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from error
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}: not a RankTimelineRequest in JSON: {error}") from error


def refusal(call: grpc.Call) -> str:
    """Why a call was refused: its status, then a line for each field that is wrong and for when to come back."""
    violations, retries = [], []
    status = rpc_status.from_call(call)
    for detail in status.details if status else ():
        bad_request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(bad_request):
            violations += [
                f"  {violation.field}: {violation.description}" for violation in bad_request.field_violations
            ]
        elif detail.Unpack(retry):
            retries.append(f"  try again in {retry.retry_delay.ToMilliseconds()} ms")
    # The fields say all that the message of a bad request does.
    message = "" if violations else f": {call.details()}"
    return "\n".join([f"refused: {call.code().name}{message}", *violations, *retries])


def _call(arguments: argparse.Namespace, request: pb.RankTimelineRequest) -> tuple[pb.RankTimelineResponse, int]:
    """The answer, and the microseconds that it took on a connection that stood; raises grpc.RpcError."""
    timeout_s = arguments.deadline_ms / 1e3
    with open_channel(arguments) as channel:
        # Any first call makes the connection. Watching the channel for it instead races with closing the channel.
        with contextlib.suppress(grpc.RpcError):  # without a connection the second call says why
            health_check.check(channel, timeout_s)
        stub = ranking_pb2_grpc.TimelineRankingServiceStub(channel)
        started_ns = time.perf_counter_ns()
        response = stub.RankTimeline(request, timeout=timeout_s)
        return response, (time.perf_counter_ns() - started_ns) // 1000


def _write_page(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _milliseconds(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _colour_wanted() -> bool:
    """Colour goes to terminals that can show it, unless NO_COLOR (no-color.org) is set to anything."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
