"""Impressions as one matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model_export.baselines.rows import categorical_columns, collect, flat, tables_of
from model_export.datasets.records import Impressions, RecordSet
from service.schema import GROUPS, Schema


def test_tables_come_back_from_the_matrix(
    small_schema: Schema, make_impressions: Callable[[int, int], Impressions]
) -> None:
    """Side by side and apart again; the categorical columns are those of device and topic."""
    tables = make_impressions(20, 1).tables
    x = flat(tables)
    for group in GROUPS:
        np.testing.assert_array_equal(tables_of(small_schema, x)[group], tables[group])
    layouts = small_schema.layouts
    device, topic = categorical_columns(small_schema)
    np.testing.assert_array_equal(x[:, device], tables["viewer"][:, layouts["viewer"].offsets["device"]])
    np.testing.assert_array_equal(x[:, topic], tables["tweet"][:, layouts["tweet"].offsets["topic"]])


def test_only_rows_that_a_head_uses_are_kept(make_records: Callable[[int, int], RecordSet]) -> None:
    """Of two days those with a like; each row keeps its labels and who uses it."""
    records = make_records(3, 500)

    def liked(impressions: Impressions) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
        return np.stack([impressions.labels[:, 0] == 1, np.zeros(len(impressions), np.bool_)], axis=1)

    rows = collect(records, records.days[1:], liked)
    days = list(records.batches(records.days[1:]))
    expected = np.concatenate([flat(day.tables)[day.labels[:, 0] == 1] for day in days])
    assert 0 < len(expected) < 1000
    np.testing.assert_array_equal(rows.x, expected)
    assert rows.labels[:, 0].all()
    assert rows.used.tolist() == [[True, False]] * len(expected)
    assert len(rows.of_head(0)[0]) == len(expected)
    assert len(rows.of_head(1)[0]) == 0
