from __future__ import annotations

import pytest
from google.protobuf import json_format

from model_export.__main__ import main
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb


def test_a_request_fits_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Candidates and time away are within the bounds, and every table is there."""
    arguments = ["--world-seed", "4", "--candidates-min", "30", "--candidates-max", "80", "--away-hours-min", "6"]

    status = main(["sample-request", *arguments])

    request = json_format.Parse(capsys.readouterr().out, pb.RankTimelineRequest())
    assert status == 0
    assert 30 <= len(request.candidates.tweet_ids) <= 80
    assert request.request_time_ms - request.last_visit_ms >= 6 * 3_600_000
    assert all(getattr(request.candidates, table).columns for table in ("viewer", "authors", "tweets"))


def test_no_fitting_visit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Bounds that no visit meets end in a line on stderr, and nothing on stdout."""
    status = main(["sample-request", "--world-seed", "4", "--away-hours-min", "1e9"])

    captured = capsys.readouterr()
    assert status == 1
    assert captured.out == ""
    assert "world 4" in captured.err
