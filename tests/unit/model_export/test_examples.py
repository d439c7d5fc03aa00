"""Encoded examples on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_export import examples as module
from model_export.examples import Examples, ExampleSet, ExampleWriter, record_type


def make_examples(rows: int, slots: int = 3, raws: int = 2) -> Examples:
    """Row i holds i in its first bin."""
    rng = np.random.default_rng(rows)
    bins = rng.integers(0, 60_000, (rows, slots)).astype(np.uint16)
    bins[:, :1] = np.arange(rows)[:, np.newaxis]
    raw = rng.normal(size=(rows, raws)).astype(np.float32)
    raw[rng.random(raw.shape) < 0.3] = np.nan
    labels, used = (rng.integers(0, 2, (rows, 2)).astype(np.uint8) for _ in range(2))
    return Examples(bins, raw, labels, used)


def write(folder: Path, examples: Examples, pieces: int = 7) -> ExampleSet:
    record = record_type(examples.bins.shape[1], examples.raw.shape[1], examples.labels.shape[1])
    with ExampleWriter(folder, record) as writer:
        for rows in np.array_split(np.arange(len(examples)), pieces):
            writer.write(Examples(examples.bins[rows], examples.raw[rows], examples.labels[rows], examples.used[rows]))
    return ExampleSet(folder, record)


def assert_same(parts: list[Examples], expected: Examples, order: np.ndarray | None = None) -> None:
    rows = np.arange(len(expected)) if order is None else order
    for name in ("bins", "raw", "labels", "used"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert joined.dtype == getattr(expected, name).dtype
        assert np.array_equal(joined, getattr(expected, name)[rows], equal_nan=name == "raw")


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups and files so small that a test has many of them."""
    monkeypatch.setattr(module, "ROW_GROUP_ROWS", 64)
    monkeypatch.setattr(module, "FILE_ROWS", 256)
    monkeypatch.setattr(module, "BUFFER_GROUPS", 4)


@pytest.mark.usefixtures("small_files")
def test_what_was_written_is_read_in_order(tmp_path: Path) -> None:
    """Bit for bit, over several files, whatever pieces it came in."""
    expected = make_examples(1_000)
    written = write(tmp_path / "examples", expected)

    assert len(list((tmp_path / "examples").iterdir())) == 4
    assert_same(list(written.in_order()), expected)


@pytest.mark.usefixtures("small_files")
def test_shuffled_reading_gives_every_example_once(tmp_path: Path) -> None:
    """In full batches but the last, far from the order written, the same again from the same seed."""
    expected = make_examples(1_000)
    written = write(tmp_path / "examples", expected)

    parts = list(written.shuffled(96, np.random.default_rng(1)))
    order = np.concatenate([part.bins[:, 0] for part in parts])

    assert [len(part) for part in parts] == [96] * 10 + [40]
    assert sorted(order.tolist()) == list(range(1_000))
    assert_same(parts, expected, order)
    assert abs(np.corrcoef(order, np.arange(1_000))[0, 1]) < 0.9
    # Each batch mixes rows from all over the data, not from one row group.
    assert min(np.ptp(part.bins[:, 0].astype(int)) for part in parts) > 128
    again = np.concatenate([part.bins[:, 0] for part in written.shuffled(96, np.random.default_rng(1))])
    assert (again == order).all()


@pytest.mark.usefixtures("small_files")
def test_moments_are_those_of_what_is_present(tmp_path: Path) -> None:
    """numpy's over all rows at once; 0 and 1 where nothing is present, 1 where nothing varies."""
    examples = make_examples(1_000, raws=4)
    examples.raw[:, 1] = 3 + 100 * examples.raw[:, 1]
    examples.raw[:, 2] = np.nan
    examples.raw[:, 3] = np.where(np.isnan(examples.raw[:, 3]), np.nan, 0.1)

    mean, deviation = write(tmp_path / "examples", examples).raw_moments()

    np.testing.assert_allclose(mean[:2], np.nanmean(examples.raw[:, :2].astype(np.float64), axis=0), rtol=1e-9)
    np.testing.assert_allclose(deviation[:2], np.nanstd(examples.raw[:, :2].astype(np.float64), axis=0), rtol=1e-9)
    assert mean[2:].tolist() == pytest.approx([0, 0.1])
    assert deviation[2:].tolist() == [1, 1]


@pytest.mark.parametrize(("slots", "raws"), [(0, 2), (3, 0)])
def test_one_kind_of_input_may_be_missing(tmp_path: Path, slots: int, raws: int) -> None:
    """A model of raw values alone, or of bins alone."""
    examples = make_examples(50, max(slots, 1), max(raws, 1))
    expected = Examples(examples.bins[:, :slots], examples.raw[:, :raws], examples.labels, examples.used)

    assert_same(list(write(tmp_path / "examples", expected).in_order()), expected)


def test_no_examples_is_an_empty_set(tmp_path: Path) -> None:
    """Nothing was sampled: nothing is read."""
    written = write(tmp_path / "examples", make_examples(0))

    assert list(written.in_order()) == list(written.shuffled(8, np.random.default_rng(0))) == []


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1_000, 320, 70, 3])
def test_processes_share_out_every_example(tmp_path: Path, rows: int, ranks: int) -> None:
    """No row twice, as many in each, of each left-over group fewer than `ranks` rows not read, in equal batches."""
    written = write(tmp_path / "examples", make_examples(rows), pieces=1)

    read = [list(written.shuffled(32, np.random.default_rng(1), rank, ranks)) for rank in range(ranks)]

    orders = [[int(row) for part in parts for row in part.bins[:, 0]] for parts in read]
    together = [row for order in orders for row in order]
    assert len(set(together)) == len(together)
    assert rows - len(together) < ranks * ranks
    assert {len(order) for order in orders} == {written.rows_each(ranks)}
    assert len({tuple(len(part) for part in parts) for parts in read}) == 1


@pytest.mark.usefixtures("small_files")
def test_a_process_reads_few_row_groups_that_others_read_too(tmp_path: Path) -> None:
    """Fifteen whole groups and 40 rows for four: three whole ones each, the others shared row by row."""
    written = write(tmp_path / "examples", make_examples(1_000))

    reads = [list(written.shuffled(32, np.random.default_rng(2), rank, 4)) for rank in range(4)]

    groups = [{int(row) // 64 for part in parts for row in part.bins[:, 0]} for parts in reads]
    shared = set.intersection(*groups)
    assert len(shared) == 4
    assert 15 in shared
    assert [len(group) for group in groups] == [7] * 4
    again = [list(written.shuffled(32, np.random.default_rng(3), rank, 4)) for rank in range(4)]
    assert {int(row) // 64 for part in again[0] for row in part.bins[:, 0]} != groups[0]
