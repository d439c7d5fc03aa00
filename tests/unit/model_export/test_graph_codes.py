"""Bins whose weights lie in few directions enter the graph as codes, and add the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.graph import Precision, build
from model_export.graph_codes import plan_codes, split_by_height
from model_export.weights import Binned, Categorical, Floats, GroupWeights, NetWeights
from service.schema import GROUPS, Feature, Head, Kind, Schema
from tests.nets import RISING, Tables, f32, linear_net, reference_raw, run

UNITS = 128
SIZES = (5, 16, 12)


def _rows(rng: np.random.Generator, bins: int, rank: int) -> Floats:
    rows = rng.normal(0, 0.3, (bins, rank)) @ rng.normal(0, 0.3, (rank, UNITS))
    return np.asarray(rows, np.float32)


def _group(rng: np.random.Generator, rank: int) -> GroupWeights:
    """Two continuous features and a categorical, in columns 0 to 2."""
    binned = [
        Binned(i, np.arange(size - 1, dtype=np.float32), _rows(rng, size, rank)) for i, size in enumerate(SIZES[:2])
    ]
    return GroupWeights(tuple(binned), (Categorical(2, _rows(rng, SIZES[2], rank)),), ())


def _case(seed: int) -> tuple[Schema, NetWeights, Tables, list[int]]:
    """A net that shows its first layer's units, three features of rank 2 in each group, and five Tweets of it."""
    rng = np.random.default_rng(seed)
    kinds: tuple[Kind, ...] = ("continuous", "continuous", "categorical")
    features = [
        Feature(f"f{i}", group, kind, "", tuple(map(str, range(SIZES[2]))) if kind == "categorical" else ())
        for group in GROUPS
        for i, kind in enumerate(kinds)
    ]
    schema = Schema(tuple(features), tuple(Head(f"u{k}", 1.0, 1) for k in range(UNITS)))
    net = linear_net(UNITS, **{group: _group(rng, 2) for group in GROUPS})
    tables: Tables = {}
    for group, rows in zip(GROUPS, (1, 3, 5), strict=True):
        tables[group] = rng.integers(0, SIZES, (rows, 3)).astype(np.float32)
        tables[group][rng.random((rows, 3)) < 0.3] = np.nan
    return schema, net, tables, [0, 2, 1, 0, 2]


def _logits(probabilities: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    p = probabilities.astype(np.float64)
    return np.log(p / (1 - p))


@settings(max_examples=6)
@given(st.integers(0, 2**32))
def test_codes_add_what_the_bins_add(seed: int) -> None:
    """The slow reference's units, whatever is present, in all three groups."""
    schema, net, tables, index = _case(seed)

    raw = run(build(schema, net, [RISING] * UNITS), tables, index)[1]

    np.testing.assert_allclose(raw, reference_raw(net, tables, np.array(index)), rtol=0, atol=2e-6)


@settings(max_examples=6)
@given(st.integers(0, 2**32))
def test_int8_codes_are_off_by_half_a_step_of_127_at_most(seed: int) -> None:
    """Each feature's error is at most that of its codes times its directions, summed over features."""
    schema, net, tables, index = _case(seed)
    bound = np.full(UNITS, 1e-4)
    for group in net.groups.values():
        parts = plan_codes(group, "int8")
        assert parts
        bound += 0.5 * sum(np.abs(codes.directions).sum(axis=0) for codes in parts)

    found = _logits(run(build(schema, net, [RISING] * UNITS, "int8"), tables, index)[1])

    assert np.all(np.abs(found - _logits(reference_raw(net, tables, np.array(index)))) <= bound)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_steps_add_up_to_codes(precision: Precision) -> None:
    """Cumulative steps times directions are the weights of the bins; beyond a feature's thresholds nothing is added."""
    group = _group(np.random.default_rng(3), 2)

    parts = plan_codes(group, precision)

    assert [codes.columns.tolist() for codes in parts] == [[0], [1, 2]]
    assert [codes.steps.shape for codes in parts] == [(1, 2, 5), (2, 2, 16)]
    wanted = [*(b.weights for b in group.binned), group.categoricals[0].weights]
    for codes in parts:
        directions = codes.directions.reshape(-1, 2, UNITS).astype(np.float64)
        step_max = np.abs(directions).max(axis=(1, 2)).tolist()
        for i, column in enumerate(codes.columns.tolist()):
            size = SIZES[column]
            bins = np.cumsum(codes.steps[i].astype(np.float64), axis=1).T @ directions[i]
            tolerance = 1e-6 if precision == "float32" else step_max[i] * 1.01
            np.testing.assert_allclose(bins[:size], wanted[column], rtol=0, atol=tolerance)
            assert not codes.steps[i, :, size:].any()
            assert codes.thresholds[i].tolist()[:2] == [-np.inf, 0.0 if column < 2 else 1.0]
            assert np.isposinf(codes.thresholds[i, size:]).all()


@pytest.mark.parametrize(
    ("heights", "low"),
    [
        ([20, 3, 20, 2, 3], [1, 3, 4]),  # 49 thresholds apart, 100 together
        ([20, 20, 20, 15], None),  # 75 are not 10 % below 80
        ([4, 4], None),
        ([1, 2, 9, 10, 10, 10], [0, 1]),  # 4 + 40 of 60, and not 27 + 30
    ],
)
def test_low_features_go_apart_where_that_saves_a_tenth(heights: list[int], low: list[int] | None) -> None:
    """The cut that leaves the fewest thresholds, and every feature in one rectangle."""
    parts = [part.tolist() for part in split_by_height(np.array(heights))]

    everything = list(range(len(heights)))
    assert parts == ([everything] if low is None else [low, [i for i in everything if i not in low]])


def test_the_largest_steps_fit_eight_bits() -> None:
    """Codes that jump from end to end: the steps are twice as large as any code."""
    weights = np.outer([1, -1, 1, -1, *[0.5] * 12], np.linspace(-1, 1, UNITS)).astype(np.float32)
    group = GroupWeights((Binned(0, np.arange(15, dtype=np.float32), weights),), (), ())

    (codes,) = plan_codes(group, "int8")

    bins = np.cumsum(codes.steps[0, 0].astype(np.float64))[:, np.newaxis] * codes.directions.astype(np.float64)
    np.testing.assert_allclose(bins, weights, rtol=0, atol=np.abs(codes.directions).max() * 0.51)


def test_free_rows_stay_a_thermometer() -> None:
    """Rows without a common direction, few units, or no rows at all: bits cost less."""
    rng = np.random.default_rng(0)
    few_units = replace(Binned(0, np.arange(15, dtype=np.float32), _rows(rng, 16, 1)), weights=f32(*range(16))[:, None])

    assert plan_codes(_group(rng, 16), "float32") == []
    assert plan_codes(GroupWeights((few_units,), (), ()), "float32") == []
    assert plan_codes(GroupWeights((), (), ()), "float32") == []


def test_a_feature_that_adds_nothing_is_no_trouble() -> None:
    """All of its weights are zero, as where training never saw it."""
    nothing = Binned(0, np.arange(15, dtype=np.float32), np.zeros((16, UNITS), np.float32))
    group = _group(np.random.default_rng(1), 2)

    codes = next(part for part in plan_codes(replace(group, binned=(nothing, group.binned[1])), "int8"))

    assert codes.columns[0] == 0
    assert not (codes.steps[0].any() and codes.directions[:2].any())
