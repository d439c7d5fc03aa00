"""`timeline-trainer sample-request`: a request to try a server with, from a visit of the simulated world."""

from __future__ import annotations

import argparse
import sys

from google.protobuf import json_format

from model_export.datasets.world import SCHEMA, Session, sessions
from model_export.requests import rank_timeline_request

DONE, NONE_FOUND = 0, 1
_MS_PER_HOUR = 3_600_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("--world-seed", metavar="N", type=int, required=True, help="one that no model was trained on")
    parser.add_argument("--candidates-min", metavar="N", type=int, default=150, help="default %(default)s")
    parser.add_argument("--candidates-max", metavar="N", type=int, default=260, help="default %(default)s")
    parser.add_argument("--away-hours-min", metavar="H", type=float, default=12.0, help="default %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Prints the first fitting visit as a RankTimelineRequest in protobuf JSON; returns the exit status."""
    visits = sessions(arguments.world_seed, arguments.candidates_min, arguments.candidates_max)
    visit = next((visit for visit in visits if _away_hours(visit) >= arguments.away_hours_min), None)
    if visit is None:
        print(f"timeline-trainer sample-request: no such visit in world {arguments.world_seed}", file=sys.stderr)
        return NONE_FOUND
    print(json_format.MessageToJson(rank_timeline_request(visit, SCHEMA), indent=None))
    return DONE


def _away_hours(visit: Session) -> float:
    """Of a first visit: 0."""
    return (visit.request_time_ms - visit.last_visit_ms) / _MS_PER_HOUR if visit.last_visit_ms else 0.0
