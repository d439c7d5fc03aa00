"""The discretizer against hand-worked cuts, a slow reference, numpy and scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import KBinsDiscretizer

from model_export.discretize import Discretizer, bin_of, equal_frequency_boundaries, fit_feature
from model_export.sampling import row_uniform

NAN = float("nan")
DENORMAL = 1e-45

values_lists = st.lists(
    st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, DENORMAL, 3.4e38]),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    min_size=1,
    max_size=60,
)


def ones(values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.ones(len(values))


def float32(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, np.float32)


def test_bin_is_the_number_of_boundaries_at_or_below_the_value() -> None:
    """A value on a boundary belongs to the bin that the boundary opens; NaN has no bin."""
    bins = bin_of(float32([-5, 0, 0.5, 1, 9, NAN]), float32([0, 1]))

    assert bins.tolist() == [0, 1, 1, 2, 2, -1]


def test_eight_distinct_values_cut_in_four() -> None:
    """Worked by hand: two values a bin."""
    boundaries = equal_frequency_boundaries(float32([8, 1, 7, 2, 6, 3, 5, 4]), np.ones(8), 4)

    assert boundaries.tolist() == [3, 5, 7]


def test_weights_move_the_cut() -> None:
    """Worked by hand: 1 weighs as much as 2, 3 and 4 together."""
    boundaries = equal_frequency_boundaries(float32([1, 2, 3, 4]), np.array([3.0, 1.0, 1.0, 1.0]), 2)

    assert boundaries.tolist() == [2]


def test_mass_at_zero_gets_one_bin_and_the_tail_all_others() -> None:
    """90 % zeros and a heavy tail: the tail is still cut into equal parts."""
    tail = np.exp(np.random.default_rng(0).normal(3, 3, 1_000))
    values = float32(np.concatenate([np.zeros(9_000), tail]))

    fitted = fit_feature(values, ones(values), 11)

    assert fitted.histogram[0] == 9_000
    assert len(fitted.histogram) == 11
    assert max(abs(np.array(fitted.histogram[1:]) - 100)) <= 1


def test_heavy_value_in_the_middle_stands_alone() -> None:
    """Values on both sides of a heavy one share the remaining bins evenly."""
    values = float32([*range(-40, 0), *[0] * 1_000, *range(1, 41)])

    fitted = fit_feature(values, ones(values), 9)

    assert fitted.histogram == (10, 10, 10, 10, 1_000, 10, 10, 10, 10)


@pytest.mark.parametrize("bins", [2, 7, 32])
def test_agrees_with_numpy_quantiles_on_distinct_values(bins: int) -> None:
    """Without ties every boundary lies within one rank of the exact quantile, and so does scikit-learn's."""
    values = np.sort(np.random.default_rng(bins).lognormal(0, 2, 1_120).astype(np.float32))
    sklearn_bins = KBinsDiscretizer(bins, encode="ordinal", quantile_method="linear").fit(values[:, np.newaxis])

    boundaries = equal_frequency_boundaries(values, ones(values), bins)

    ranks = np.searchsorted(values, boundaries)
    numpy_ranks = np.searchsorted(values, np.quantile(values, np.arange(1, bins) / bins))
    sklearn_ranks = np.searchsorted(values, sklearn_bins.bin_edges_[0][1:-1])
    assert np.abs(ranks - numpy_ranks).max() <= 1
    assert np.abs(ranks - sklearn_ranks).max() <= 1


def slow_boundaries(values: list[float], weights: list[float], bins_max: int) -> list[float]:
    """The definition, one value at a time: shares by bisection, bins by walking."""
    distinct = sorted(set(values))
    mass = {v: sum(w for x, w in zip(values, weights, strict=True) if x == v) for v in distinct}
    if len(distinct) <= bins_max:
        return distinct[1:]
    low, high = 0.0, sum(mass.values())
    for _ in range(200):  # the share c with sum(min(mass, c)) = c * bins
        middle = (low + high) / 2
        filled = sum(min(m, middle) for m in mass.values()) / middle >= bins_max
        low, high = (middle, high) if filled else (low, middle)
    capped = {v: min(m, low) for v, m in mass.items()}
    boundaries: list[float] = []
    current, bins_left, left = 0.0, bins_max, sum(capped.values())
    share = left / bins_left
    for v in distinct:
        if (
            current > 0
            and bins_left > 1
            and abs(current - share) <= abs(current + mass[v] - share)
            and (current + mass[v] >= share)
        ):
            boundaries.append(v)
            bins_left -= 1
            share = sum(capped[x] for x in distinct if x >= v) / bins_left
            current = 0.0
        current += mass[v]
    return boundaries


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=300)
def test_agrees_with_the_slow_reference(numbers: list[int], bins: int, seed: int) -> None:
    """Ties, weights and heavy values give the cuts of the definition."""
    weights = np.random.default_rng(seed).uniform(0.1, 2, len(numbers))

    boundaries = equal_frequency_boundaries(float32(numbers), weights, bins)

    assert boundaries.tolist() == slow_boundaries([float(n) for n in numbers], weights.tolist(), bins)


@given(values_lists, st.integers(1, 8))
def test_boundaries_are_seen_values_strictly_rising_and_no_bin_is_empty(values: list[float], bins: int) -> None:
    """Any finite floats, denormals and the largest included."""
    array = float32(values)

    fitted = fit_feature(array, ones(array), bins)

    assert fitted.boundaries is not None
    boundaries = np.array(fitted.boundaries, np.float32)
    assert len(boundaries) < bins or bins == 1
    assert (np.diff(boundaries) > 0).all()
    assert set(boundaries.tolist()) <= set(array.tolist())
    assert min(fitted.histogram) > 0
    assert sum(fitted.histogram) == len(values)


@given(values_lists, st.integers(1, 8), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(values: list[float], bins: int, random: Any) -> None:
    """A shuffled sample gives the same bins."""
    shuffled = values.copy()
    random.shuffle(shuffled)

    assert fit_feature(float32(values), ones(values), bins) == fit_feature(float32(shuffled), ones(values), bins)


def test_absent_values_have_no_part_in_the_fit() -> None:
    """NaN moves the missing rate, by weight, and nothing else."""
    with_absent = fit_feature(float32([1, NAN, 2, 3]), np.array([1.0, 6.0, 1.0, 1.0]), 4)
    without = fit_feature(float32([1, 2, 3]), np.ones(3), 4)

    assert with_absent.boundaries == without.boundaries == (2, 3)
    assert with_absent.missing_rate == pytest.approx(6 / 9)
    assert without.missing_rate == 0


def test_constant_feature_has_one_bin() -> None:
    """It still says that it is present."""
    fitted = fit_feature(float32([7, 7, NAN]), np.ones(3), 16)

    assert fitted.boundaries == ()
    assert fitted.histogram == (2,)


def test_feature_never_present_has_no_bins() -> None:
    """Nothing seen, nothing made; a row of weight 0 is not there either."""
    fitted = fit_feature(float32([NAN, 5]), np.array([1.0, 0.0]), 16)

    assert fitted.boundaries is None
    assert fitted.missing_rate == 1
    assert fitted.rank_error == 1


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinities_are_refused(value: float) -> None:
    """They have no place among quantiles."""
    with pytest.raises(ValueError, match="infinite"):
        fit_feature(float32([1, value]), np.ones(2), 4)


@pytest.mark.parametrize("weight", [-1.0, NAN, float("inf")])
def test_bad_weights_are_refused(weight: float) -> None:
    """A weight is a finite amount."""
    with pytest.raises(ValueError, match="weights"):
        fit_feature(float32([1, 2]), np.array([1.0, weight]), 4)


def test_stated_rank_error_holds_on_a_sample() -> None:
    """The ranks of a sample's boundaries in all the data are off by less than stated, weights or not."""
    rng = np.random.default_rng(5)
    population = np.sort(rng.lognormal(0, 3, 200_000).astype(np.float32))
    sample = rng.choice(population, 2_000)

    fitted = fit_feature(sample, ones(sample), 20)

    assert fitted.boundaries is not None
    ranks = np.searchsorted(population, fitted.boundaries) / len(population)
    assert np.abs(ranks - np.arange(1, 20) / 20).max() < fitted.rank_error + 1 / 2_000
    assert fitted.rank_error == pytest.approx(np.sqrt(np.log(2_000) / 4_000))


@pytest.mark.parametrize("positive_weight", [1.0, 20.0])
def test_stated_rank_error_holds_for_rows_drawn_by_their_hash(positive_weight: float) -> None:
    """A fiftieth of 400,000 impressions in two shards, mostly absent, against the exact ranks of all of them."""
    rng = np.random.default_rng(3)
    n = 400_000
    ids = {name: rng.integers(1, 2**40, n) for name in ("viewer_id", "tweet_id", "session")}
    values = np.where(rng.random(n) < 0.3, rng.lognormal(0, 3, n), NAN).astype(np.float32)
    weights = np.where(rng.random(n) < 0.02, positive_weight, 1.0)
    shards = [{name: column[part] for name, column in ids.items()} for part in (slice(0, 70_000), slice(70_000, None))]
    drawn = np.concatenate([row_uniform(shard, seed=1) < 0.02 for shard in shards])

    fitted = fit_feature(values[drawn], weights[drawn], 20)

    assert (drawn == (row_uniform(ids, seed=1) < 0.02)).all()
    assert fitted.boundaries is not None
    present = ~np.isnan(values)
    below = [weights[present & (values < boundary)].sum() for boundary in fitted.boundaries]
    off = np.abs(np.array(below) / weights[present].sum() - np.arange(1, 20) / 20).max()
    assert 0.001 < off < fitted.rank_error < 0.09


def test_saved_boundaries_come_back_bit_for_bit(tmp_path: Path) -> None:
    """Through JSON and back, odd floats and a feature without bins included."""
    features = {
        "tweet.odd": fit_feature(float32([0.1, DENORMAL, 3.4e38, 1 / 3]), np.ones(4), 8),
        "tweet.never": fit_feature(float32([NAN]), np.ones(1), 8),
    }
    Discretizer(features).save(tmp_path / "a.json")
    loaded = Discretizer.load(tmp_path / "a.json")
    loaded.save(tmp_path / "b.json")

    assert loaded == Discretizer(features)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
