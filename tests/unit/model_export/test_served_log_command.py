"""A served log as Parquet, read back by pyarrow."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.__main__ import main
from model_export.served_log_command import write_table
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1.served_log_pb2 import ServedRecord
from service.served_log import LogFiles

IDS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(width=32, allow_infinity=False)
NAMES = st.text("abc-é", min_size=1, max_size=3)
COLUMNS = (
    "request_id",
    "viewer_id",
    "experiment",
    "arm",
    "model_version",
    "served_at_ms",
    "tweet_id",
    "section",
    "position",
    "score",
    "inclusion_probability",
)


@st.composite
def records(draw: st.DrawFn) -> ServedRecord:
    """A record with sections of any size, any number of experiments, and Tweets that were not scored."""

    def section() -> pb.Section:
        tweets = draw(st.lists(st.tuples(IDS, FLOATS), max_size=4))
        return pb.Section(tweet_ids=[t[0] for t in tweets], scores=[t[1] for t in tweets])

    response = pb.RankTimelineResponse(
        request_id=draw(st.text(max_size=3)), icymi=section(), ranked=section(), remainder=section()
    )
    response.served_by.model_version = draw(NAMES)
    response.served_by.arms.update(draw(st.dictionaries(NAMES, NAMES, max_size=3)))
    tweets = sum(len(part.tweet_ids) for part in (response.icymi, response.ranked, response.remainder))
    return ServedRecord(
        viewer_id=draw(IDS),
        served_at_ms=draw(st.integers(0, 2**42)),
        response=response.SerializeToString(),
        inclusion_probabilities=draw(st.lists(st.floats(0, 1, width=32), min_size=tweets, max_size=tweets)),
    )


def rows(record: ServedRecord) -> Iterator[dict[str, Any]]:
    """What a record comes to, the slow way."""
    response = pb.RankTimelineResponse.FromString(record.response)
    arms = response.served_by.arms
    names: list[str | None] = [*sorted(arms)] or [None]
    for experiment in names:
        arm = arms[experiment] if experiment is not None else None
        probabilities = iter(record.inclusion_probabilities)
        for name in ("icymi", "ranked", "remainder"):
            section = getattr(response, name)
            for position, (tweet_id, score) in enumerate(zip(section.tweet_ids, section.scores, strict=True)):
                values = (
                    response.request_id,
                    record.viewer_id,
                    experiment,
                    arm,
                    response.served_by.model_version,
                    record.served_at_ms,
                    tweet_id,
                    name,
                    position,
                    None if math.isnan(score) else score,
                    next(probabilities),
                )
                yield dict(zip(COLUMNS, values, strict=True))


def served(tweets: int, **arms: str) -> ServedRecord:
    """A timeline of so many Tweets, all of them in the remainder."""
    section = pb.Section(tweet_ids=range(tweets), scores=[0.5] * tweets)
    response = pb.RankTimelineResponse(request_id="r", remainder=section, served_by=pb.ServedBy(arms=arms))
    return ServedRecord(
        viewer_id=1, response=response.SerializeToString(), inclusion_probabilities=np.zeros(tweets).tolist()
    )


@given(st.lists(records(), max_size=5), st.integers(1, 10))
def test_a_row_for_each_request_tweet_and_experiment(served_records: list[ServedRecord], group_rows: int) -> None:
    """Whatever was served, and wherever row groups end, the table read back is what a slow loop makes of it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "served.parquet"
        count = write_table(served_records, path, group_rows)
        found = pq.read_table(path)
        expected = [row for record in served_records for row in rows(record)]

        assert tuple(found.column_names) == COLUMNS
        assert found.to_pylist() == expected
        assert count == len(expected)
        assert os.listdir(directory) == ["served.parquet"]


def test_types_are_stated() -> None:
    """Null is possible where it means something, and nowhere else; also in a file without a row."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "served.parquet"
        write_table([], path)
        schema = pq.read_schema(path)

    assert {field.name for field in schema if field.nullable} == {"experiment", "arm", "score"}
    assert {field.name for field in schema if field.type == pa.int64()} == {"viewer_id", "served_at_ms", "tweet_id"}
    assert (schema.field("position").type, schema.field("score").type) == (pa.int32(), pa.float32())


def test_row_groups_end_with_a_record(tmp_path: Path) -> None:
    """Six rows and four more make ten, so the third record begins a group."""
    write_table([served(6), served(2, a="x", b="y"), served(1)], tmp_path / "t.parquet", group_rows=10)
    metadata = pq.read_metadata(tmp_path / "t.parquet")

    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [10, 1]


def log_of(directory: Path, *served_records: ServedRecord) -> Path:
    """A log with one file."""
    files = LogFiles(directory)
    for record in served_records:
        files.append(record.SerializeToString())
    files.close()
    return directory / "served-00000001.log"


def test_the_command_converts_a_log_without_its_torn_tail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file's path on stdout; a file that was there is replaced."""
    file = log_of(tmp_path / "log", served(3, a="x"), served(2))
    os.truncate(file, file.stat().st_size - 1)
    out = tmp_path / "served.parquet"
    out.write_text("an older one")

    assert main(["served-log", str(tmp_path / "log"), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert captured.err.endswith("3 rows\n")
    assert pq.read_table(out).column("tweet_id").to_pylist() == [0, 1, 2]


def test_a_log_that_is_not_sound_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged byte, a record that no server writes, and no log at all: exit 1, one line, nothing half done."""
    damaged = log_of(tmp_path / "damaged", served(3), served(2))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    strange = served(3)
    strange.inclusion_probabilities.append(0.5)
    log_of(tmp_path / "strange", strange)
    for log, fault in (
        (damaged, f"{damaged}: damaged record at byte"),
        (tmp_path / "strange", "request 'r': 4 inclusion probabilities for 3 Tweets"),
        (tmp_path / "no", "No such file or directory"),
    ):
        out = tmp_path / "out" / "served.parquet"
        out.parent.mkdir(exist_ok=True)

        assert main(["served-log", str(log), "--out", str(out)]) == 1
        assert fault in capsys.readouterr().err.splitlines()[-1]
        assert list(out.parent.iterdir()) == []
