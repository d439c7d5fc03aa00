"""`timeline-trainer served-log`: what was served, as a table for analyses.

A row for each request, Tweet and experiment that the viewer was in; where none was running one row, whose experiment
and arm are null. Within a request rows go by the experiment's name, then section, then position.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import served_log_pb2
from service.served_log import CorruptLogError, read_log

DONE, REFUSED = 0, 1
SCHEMA = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("viewer_id", pa.int64(), nullable=False),
        pa.field("experiment", pa.string()),
        pa.field("arm", pa.string()),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("served_at_ms", pa.int64(), nullable=False),
        pa.field("tweet_id", pa.int64(), nullable=False),
        pa.field("section", pa.string(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),  # from 0 within the section
        pa.field("score", pa.float32()),  # null: not scored
        pa.field("inclusion_probability", pa.float32(), nullable=False),
    ]
)
SECTIONS = pa.array(["icymi", "ranked", "remainder"])
# About 4 MB compressed: enough for columns to compress well, little enough to hold in memory.
GROUP_ROWS = 200_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("log", metavar="LOG", type=Path, help="directory of a served log, or one file of it")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the Parquet file; replaced if there")


def run(arguments: argparse.Namespace) -> int:
    """Converts a log; the path of the file is all that stands on stdout."""
    try:
        rows = write_table(tqdm(read_log(arguments.log), unit=" records"), arguments.out)
    except (OSError, CorruptLogError, ValueError) as error:
        print(f"timeline-trainer served-log: {error}", file=sys.stderr)
        return REFUSED
    print(f"{rows} rows", file=sys.stderr)
    print(arguments.out)
    return DONE


def write_table(records: Iterable[served_log_pb2.ServedRecord], path: Path, group_rows: int = GROUP_ROWS) -> int:
    """Writes records as Parquet; returns the number of rows. The file appears when it is whole.

    Args:
        records: Of a log.
        path: The file.
        group_rows: A row group ends with the record that brings it to as many.

    Raises:
        ValueError: A record is not what a server writes. What `records` and the disk raise comes through, too.
    """
    partial = path.with_name(f"{path.name}.partial")
    rows = begun_at = 0
    try:
        with pq.ParquetWriter(partial, SCHEMA) as writer:
            group: list[pa.RecordBatch] = []
            for record in records:
                group.append(record_rows(record))
                rows += group[-1].num_rows
                if rows - begun_at >= group_rows:
                    writer.write_table(pa.Table.from_batches(group))
                    group, begun_at = [], rows
            writer.write_table(pa.Table.from_batches(group, SCHEMA))
        partial.replace(path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
    return rows


def record_rows(record: served_log_pb2.ServedRecord) -> pa.RecordBatch:
    """The rows of one record; raises ValueError where answer and inclusion probabilities do not go together."""
    response = pb.RankTimelineResponse.FromString(record.response)
    sections = (response.icymi, response.ranked, response.remainder)
    sizes = [len(section.tweet_ids) for section in sections]
    tweets = sum(sizes)
    if len(record.inclusion_probabilities) != tweets:
        found = len(record.inclusion_probabilities)
        raise ValueError(f"request {response.request_id!r}: {found} inclusion probabilities for {tweets} Tweets")
    arms: list[tuple[str | None, str | None]] = [*sorted(response.served_by.arms.items())] or [(None, None)]

    def tiled(arrays: list[np.ndarray]) -> np.ndarray:
        return np.tile(np.concatenate(arrays), len(arms))

    def same(value: object, kind: pa.DataType) -> pa.Array:
        return pa.repeat(pa.scalar(value, kind), tweets * len(arms))

    def by_arm(place: int) -> pa.Array:
        names = pa.array([arm[place] for arm in arms], pa.string())
        return names.take(np.repeat(np.arange(len(arms)), tweets))

    scores = tiled([np.asarray(section.scores, np.float32) for section in sections])
    columns = {
        "request_id": same(response.request_id, pa.string()),
        "viewer_id": same(record.viewer_id, pa.int64()),
        "experiment": by_arm(0),
        "arm": by_arm(1),
        "model_version": same(response.served_by.model_version, pa.string()),
        "served_at_ms": same(record.served_at_ms, pa.int64()),
        "tweet_id": tiled([np.asarray(section.tweet_ids, np.int64) for section in sections]),
        "section": SECTIONS.take(tiled([np.repeat(np.arange(len(sizes)), sizes)])),
        "position": tiled([np.arange(size, dtype=np.int32) for size in sizes]),
        "score": pa.array(scores, mask=np.isnan(scores)),
        "inclusion_probability": tiled([np.asarray(record.inclusion_probabilities, np.float32)]),
    }
    return pa.RecordBatch.from_pydict(columns, SCHEMA)
