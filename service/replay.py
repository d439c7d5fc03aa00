"""`timeline-ranker replay`: sends what a served log holds once more, and says what came out differently."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc

from service import health_check
from service.agreement import TOP_K, Drift, Spread, Tally, compare
from service.client import add_tls_arguments, host_and_port, open_channel
from service.commands import write_out
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc, served_log_pb2
from service.served_log import CorruptLogError, read_log

SAME, DIFFERENT, USAGE = 0, 1, 2
# Longer than any timeline takes: a slow answer is to be compared, not cut off.
DEADLINE_S = 30.0
# How many of the requests that came out differently are named.
NAMED_MAX = 20
_PROGRESS_EVERY = 100


class UsageError(Exception):
    """What the caller gave can not be used."""


@dataclass(slots=True)
class Outcome:
    """What a replay came to.

    Attributes:
        records: In the log.
        without_request: Records that were passed over: their request is not in the log.
        degraded: Records that were passed over: the answer in the log depended on the load of the moment.
        statuses: For each target, how its calls ended.
        same: Of the requests compared.
        different: Ids of the others, those that were refused included; the first NAMED_MAX.
        tally: The figures of the requests compared.
    """

    records: int = 0
    without_request: int = 0
    degraded: int = 0
    statuses: list[Counter[str]] = field(default_factory=list)
    same: int = 0
    different: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    @property
    def sent(self) -> int:
        """Requests that each target was sent."""
        return self.records - self.without_request - self.degraded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("log", metavar="LOG", type=Path, help="directory of a served log, or one file of it")
    parser.add_argument(
        "--target",
        metavar="HOST:PORT",
        type=host_and_port,
        action="append",
        required=True,
        help="a server to ask; one is compared with the log, two with each other",
    )
    add_tls_arguments(parser)
    parser.add_argument(
        "--tolerance",
        metavar="P",
        type=_tolerance,
        default=1e-5,
        help="how far apart probabilities and scores that are the same may be (default %(default)s)",
    )
    parser.add_argument(
        "--assign-arms",
        action="store_true",
        help="let the targets assign the viewers to arms, instead of forcing those of the log",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Replays a log; returns the exit status: SAME, DIFFERENT (refused included) or USAGE."""
    targets = arguments.target
    try:
        if len(targets) > 2:
            raise UsageError(f"{len(targets)} targets; one or two can be compared")
        with ExitStack() as stack:
            stubs = [_connect(stack.enter_context(open_channel(arguments, target)), target) for target in targets]
            damage: list[str] = []
            outcome = replay(_read(arguments.log, damage), stubs, arguments.tolerance, arguments.assign_arms)
        if not outcome.sent and not damage:
            raise UsageError(f"{arguments.log}: no request to send: {'; '.join(_passed_over(outcome)) or 'no record'}")
    except UsageError as error:
        print(f"timeline-ranker replay: {error}", file=sys.stderr)
        return USAGE
    text = json.dumps(to_json(outcome, targets), indent=1) if arguments.json else to_text(outcome, targets)
    write_out(text + "\n")
    if damage:  # what came before it was compared, and is no less true
        print(f"timeline-ranker replay: {damage[0]}", file=sys.stderr)
        return USAGE
    return SAME if outcome.same == outcome.sent else DIFFERENT


def replay(
    records: Iterable[served_log_pb2.ServedRecord],
    stubs: Sequence[ranking_pb2_grpc.TimelineRankingServiceStub],
    tolerance: float,
    assign_arms: bool,
) -> Outcome:
    """Sends the requests of a log, one after the other, to one target or to two at the same time.

    Args:
        records: Of the log.
        stubs: The targets; the answers of one are compared with the log, those of two with each other.
        tolerance: See `Agreement.same`.
        assign_arms: Whether the targets choose the arms; if not, those of the log are forced.
    """
    outcome = Outcome(statuses=[Counter() for _ in stubs])
    for record in records:
        outcome.records += 1
        if outcome.records % _PROGRESS_EVERY == 0:
            print(f"\r{outcome.records} records", end="", file=sys.stderr, flush=True)
        logged = pb.RankTimelineResponse.FromString(record.response)
        if not record.request:
            outcome.without_request += 1
            continue
        if len(stubs) == 1 and logged.degradation != pb.DEGRADATION_NONE:
            outcome.degraded += 1
            continue
        request = request_of(record, logged, assign_arms)
        calls = [stub.RankTimeline.future(request, timeout=DEADLINE_S) for stub in stubs]
        for call, statuses in zip(calls, outcome.statuses, strict=True):
            statuses[call.code().name] += 1  # waits for the answer
        if all(call.code() is grpc.StatusCode.OK for call in calls):
            answers = [call.result() for call in calls]
            agreement = compare(*((logged, *answers) if len(answers) == 1 else answers))
            outcome.tally.add(agreement)
            if agreement.same(tolerance):
                outcome.same += 1
                continue
        if len(outcome.different) < NAMED_MAX:
            outcome.different.append(request.request_id)
    if outcome.records >= _PROGRESS_EVERY:
        print(file=sys.stderr)
    return outcome


def request_of(
    record: served_log_pb2.ServedRecord, logged: pb.RankTimelineResponse, assign_arms: bool
) -> pb.RankTimelineRequest:
    """The request of a record, such that an unchanged server gives the answer of the log.

    What the server added is put in: the id, which seeds the exploration, and the time. The ranking has to be a full
    one, so that the load of the target does not decide what comes out.
    """
    request = pb.RankTimelineRequest.FromString(record.request)
    request.request_id = logged.request_id
    request.request_time_ms = request.request_time_ms or record.served_at_ms
    request.require_full_ranking = True
    if not assign_arms:
        request.forced_arms.update(logged.served_by.arms)
    return request


def to_json(outcome: Outcome, targets: Sequence[str]) -> dict[str, Any]:
    """The outcome; a figure that is not defined is null."""
    tally = outcome.tally
    return {
        "records": outcome.records,
        "without_request": outcome.without_request,
        "degraded": outcome.degraded,
        "sent": outcome.sent,
        "compared": tally.compared,
        "same": outcome.same,
        "different": outcome.different,
        "targets": [
            {"target": target, "statuses": dict(sorted(statuses.items()))}
            for target, statuses in zip(targets, outcome.statuses, strict=True)
        ],
        f"top_{TOP_K}_overlap": _spread_json(tally.top_overlap),
        "rank_correlation": _spread_json(tally.rank_correlation),
        "score": _drift_json(tally.score),
        "heads": {head: _drift_json(drift) for head, drift in tally.heads.items()},
    }


def to_text(outcome: Outcome, targets: Sequence[str]) -> str:
    """The outcome for people; heads in the order of the model, statuses by name."""
    tally = outcome.tally
    lines = [f"{outcome.records:>8} records"]
    lines += [f"{'':9}passed over: {line}" for line in _passed_over(outcome)]
    lines.append(f"{outcome.sent:>8} sent")
    for target, statuses in zip(targets, outcome.statuses, strict=True):
        lines += [f"{count:>8} {status} from {target}" for status, count in sorted(statuses.items())]
    against = "the log" if len(targets) == 1 else "each other"
    lines.append(f"{outcome.same:>8} the same, compared with {against}")
    if outcome.different:
        more = outcome.sent - outcome.same - len(outcome.different)
        lines.append(f"{'':9}different: {', '.join(outcome.different)}{f' and {more} more' if more else ''}")
    if tally.compared:
        lines += ["", f"{'':24}{'mean':>12}{'least':>12}"]
        for name, spread in ((f"top {TOP_K} overlap", tally.top_overlap), ("rank correlation", tally.rank_correlation)):
            lines.append(f"{name:24}{spread.mean:12.4f}{spread.min:12.4f}")
        lines += ["", f"{'difference':24}{'mean':>12}{'mean size':>12}{'largest':>12}"]
        for name, drift in (*tally.heads.items(), ("score", tally.score)):
            lines.append(f"{name:24}{drift.mean:12.3g}{drift.mean_size:12.3g}{drift.largest:12.3g}")
    return "\n".join(lines)


def _passed_over(outcome: Outcome) -> list[str]:
    lines = []
    if outcome.without_request:
        lines.append(f"{outcome.without_request} without their request (serve --log-features)")
    if outcome.degraded:
        lines.append(f"{outcome.degraded} whose answer was degraded")
    return lines


def _connect(channel: grpc.Channel, target: str) -> ranking_pb2_grpc.TimelineRankingServiceStub:
    try:
        status = health_check.check(channel, DEADLINE_S)
    except grpc.RpcError as error:
        call = cast(grpc.Call, error)  # what a call raises is also the call
        status = f"{call.code().name}: {call.details()}"
    if status != "SERVING":
        raise UsageError(f"--target {target}: {status}")
    return ranking_pb2_grpc.TimelineRankingServiceStub(channel)


def _read(log: Path, damage: list[str]) -> Iterable[served_log_pb2.ServedRecord]:
    """The records up to the first damage, which is added to `damage`."""
    try:
        yield from read_log(log)
    except OSError as error:
        raise UsageError(f"{log}: {error.strerror}") from error
    except CorruptLogError as error:
        damage.append(str(error))


def _spread_json(spread: Spread) -> dict[str, float | None]:
    return {"mean": _number(spread.mean), "min": _number(spread.min)}


def _drift_json(drift: Drift) -> dict[str, float | None]:
    return {"mean": _number(drift.mean), "mean_size": _number(drift.mean_size), "largest": drift.largest}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return value
