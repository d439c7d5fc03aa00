"""Impressions as one matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model_export.baselines.rows import Products, Rows, categorical_columns, collect, flat, tables_of
from model_export.datasets.records import Impressions, RecordSet
from model_export.encode import Dot
from model_export.weights import VectorPair
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

    rows = collect(records, records.days[1:], liked, Products(records.schema, ()))
    days = list(records.batches(records.days[1:]))
    expected = np.concatenate([flat(day.tables)[day.labels[:, 0] == 1] for day in days])
    assert 0 < len(expected) < 1000
    np.testing.assert_array_equal(rows.x, expected)
    assert rows.labels[:, 0].all()
    assert rows.used.tolist() == [[True, False]] * len(expected)
    assert len(rows.of_head(0)[0]) == len(expected)
    assert len(rows.of_head(1)[0]) == 0


def test_a_spread_takes_every_second_row() -> None:
    """Evenly, the three arrays alike; where there are no more than asked for, all."""
    x, labels = np.arange(6, dtype=np.float32)[:, np.newaxis], np.arange(6, dtype=np.uint8)[:, np.newaxis]
    rows = Rows(x, labels, labels % 3 == 0)
    spread = rows.spread(3)
    assert spread.x[:, 0].tolist() == spread.labels[:, 0].tolist() == [0, 2, 4]
    assert spread.used[:, 0].tolist() == [True, False, False]
    assert rows.spread(6) is rows


def test_products_are_numbers_of_the_tweet(
    small_schema: Schema, make_impressions: Callable[[int, int], Impressions]
) -> None:
    """Text times tastes stands behind the other scalars, absent where either is; all else keeps its name and value."""
    text = small_schema.layouts["tweet"].offsets["text"] + np.arange(4)
    tastes = small_schema.layouts["viewer"].offsets["tastes"] + np.arange(4)
    products = Products(small_schema, (Dot("text x tastes", VectorPair(text, "viewer", tastes)),))
    impressions = make_impressions(300, 3)
    tables, layout = products.add(impressions).tables, products.with_them.layouts["tweet"]
    expected = [
        float(a @ b)
        for a, b in zip(impressions.tables["tweet"][:, text], impressions.tables["viewer"][:, tastes], strict=True)
    ]
    np.testing.assert_allclose(tables["tweet"][:, layout.offsets["text x tastes"]], expected, rtol=1e-5)
    assert 0.2 < np.isnan(expected).mean() < 0.8
    assert [feature.name for feature in layout.scalars] == ["likes", "has_image", "text x tastes"]
    for name, before in small_schema.layouts["tweet"].offsets.items():
        np.testing.assert_array_equal(tables["tweet"][:, layout.offsets[name]], impressions.tables["tweet"][:, before])
    for group in ("viewer", "author"):
        np.testing.assert_array_equal(tables[group], impressions.tables[group])


def test_without_products_nothing_changes(
    small_schema: Schema, make_impressions: Callable[[int, int], Impressions]
) -> None:
    """No pair of vectors in the plan: the same schema and the same tables."""
    products, impressions = Products(small_schema, ()), make_impressions(10, 4)
    assert products.with_them == small_schema
    np.testing.assert_array_equal(products.add(impressions).tables["tweet"], impressions.tables["tweet"])
