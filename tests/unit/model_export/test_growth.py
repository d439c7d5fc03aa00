from __future__ import annotations

import numpy as np
import pytest

from model_export.growth import TABLES, main, table, time_forms
from model_export.random_nets import NetShape
from service.schema import Feature, Head, Schema


def test_every_form_is_timed(small_schema: Schema) -> None:
    """Dense and sparse graphs of one net, a time for each round."""
    shape = NetShape(bins=4, units=8, hidden=(4,), tower_units=2, knots=3)
    forms = ("plain", "float32", "int8", "sparse")

    times = time_forms(small_schema, shape, rows=7, absent=0.5, forms=forms, rounds=3)

    assert list(times) == list(forms)
    assert all(laps.shape == (3,) and (laps > 0).all() for laps in times.values())


def test_more_features_take_longer() -> None:
    """Or it would not be the net that is timed."""
    few, many = (
        time_forms(
            Schema(tuple(Feature(f"f{i}", "tweet", "continuous") for i in range(count)), (Head("like", 1.0, 1),)),
            NetShape(hidden=(4,), tower_units=2, knots=3),
            rows=300,
            absent=0.3,
            forms=("int8",),
            rounds=5,
        )["int8"]
        for count in (2, 200)
    )
    assert few.min() < many.min()


def test_medians_stand_with_minima() -> None:
    """A line per size, a column per form."""
    lines = [("10", {"plain": np.array([3.0, 1.0, 2.0]), "int8": np.array([0.5, 0.25, 4.0])})]
    assert table("rows", lines).splitlines() == [
        "| rows | plain | int8 |",
        "|---|---|---|",
        "| 10 | 2.00 (1.00) | 0.50 (0.25) |",
    ]


def test_tables_are_asked_for_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """No other names, and at least one."""
    for arguments in ([], ["columns"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    said = capsys.readouterr().err
    assert all(name in said for name in TABLES)
