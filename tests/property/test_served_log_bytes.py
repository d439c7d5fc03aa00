"""Whatever happens to the bytes of a served log, what is read of it was written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from service.generated.timelines.ranking.v1.served_log_pb2 import ServedRecord
from service.served_log import CorruptLogError, LogFiles, read_log

RECORDS = st.lists(
    st.builds(
        ServedRecord,
        viewer_id=st.integers(-(2**63), 2**63 - 1),
        served_at_ms=st.integers(0, 2**42),
        response=st.binary(max_size=40),
        inclusion_probabilities=st.lists(st.floats(0, 1, width=32), max_size=5),
        request=st.binary(max_size=40),
    ),
    max_size=6,
)


def write(directory: Path, records: list[ServedRecord], file_bytes_max: int = 1 << 20) -> None:
    files = LogFiles(directory, file_bytes_max=file_bytes_max)
    for record in records:
        files.append(record.SerializeToString())
    files.close()


@given(RECORDS, st.integers(1, 200))
def test_all_that_was_written_comes_back(records: list[ServedRecord], file_bytes_max: int) -> None:
    """Whatever the size of a file, reading gives the records in the order of writing."""
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), records, file_bytes_max)

        assert list(read_log(Path(directory))) == records


@given(RECORDS.filter(bool))
def test_a_log_cut_at_any_byte_gives_the_records_before(records: list[ServedRecord]) -> None:
    """At every length that a killed writer can leave, exactly the records that are whole come back."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "served-00000001.log"
        ends = []
        files = LogFiles(Path(name))
        for record in records:
            files.append(record.SerializeToString())
            ends.append(path.stat().st_size)
        files.close()
        for length in range(ends[-1], -1, -1):
            os.truncate(path, length)

            assert list(read_log(path)) == records[: sum(end <= length for end in ends)]


@given(RECORDS.filter(bool), st.data())
def test_a_changed_byte_never_goes_unseen(records: list[ServedRecord], data: st.DataObject) -> None:
    """With any byte changed to anything else, the records before it come back and then an error."""
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), records)
        path = Path(directory) / "served-00000001.log"
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        seen = []
        try:
            for record in read_log(path):
                seen.append(record)  # noqa: PERF402 -- what was seen before the error counts
        except CorruptLogError:
            assert seen == records[: len(seen)]
            assert len(seen) < len(records)
        else:
            raise AssertionError("the changed byte went unseen")
