"""Streaming of Parquet: what is held while rows go by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model_export.datasets.records import read_batches

_COLUMNS = ("a", "b", "c")


def _write(path: Path, rows: int, group_rows: int) -> None:
    rng = np.random.default_rng(0)
    pq.write_table(pa.table({name: rng.random(rows) for name in _COLUMNS}), path, row_group_size=group_rows)


def _held(path: Path) -> int:
    """Most bytes that pyarrow has after any batch of 10,000 rows."""
    before = int(pa.total_allocated_bytes())
    return max(int(pa.total_allocated_bytes()) - before for _ in read_batches(path, _COLUMNS, 10_000))


@pytest.mark.parametrize("groups", [1, 4])
def test_four_times_the_rows_take_no_more_memory(tmp_path: Path, groups: int) -> None:
    """600,000 rows more are 14.4 MB; as four row groups and as one."""
    _write(tmp_path / "few", 200_000, 200_000)
    _write(tmp_path / "many", 800_000, 800_000 // groups)

    assert _held(tmp_path / "many") < _held(tmp_path / "few") + 1_000_000


def test_batches_are_the_files_rows_in_order(tmp_path: Path) -> None:
    """Across the ends of row groups, the columns asked for."""
    _write(tmp_path / "file", 25_000, 7_000)

    batches = list(read_batches(tmp_path / "file", ["c", "a"], 10_000))

    expected = pq.read_table(tmp_path / "file")
    assert pa.Table.from_batches(batches).select(["c", "a"]).equals(expected.select(["c", "a"]))
    assert max(map(len, batches)) <= 10_000
