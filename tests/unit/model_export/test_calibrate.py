"""Calibration against a slow reference, scikit-learn and hand-worked cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from model_export.calibrate import (
    DISTANCE_MIN,
    IDENTITY,
    SLOPE_MIN,
    Blocks,
    ScoreCounts,
    apply_knots,
    fit_calibration,
    fit_isotonic,
    fit_logistic,
    prior_correction,
)
from model_export.weights import Knots

Floats = np.ndarray[Any, np.dtype[np.float32]]
Labels = np.ndarray[Any, np.dtype[np.uint8]]


def float32(values: Any) -> Floats:
    return np.array(values, np.float32)


def percent(values: list[int]) -> Floats:
    return np.array(values, np.float32) / np.float32(100)


def labels_of(values: Any) -> Labels:
    return np.array(values, np.uint8)


def fit(predictions: Floats, labels: Labels, events_min: int, blocks_max: int) -> Blocks:
    return fit_isotonic(ScoreCounts.of(predictions, labels), events_min, blocks_max)


def slow_blocks(predictions: list[float], labels: list[int]) -> list[list[float]]:
    """Pool adjacent violators by its definition: [rows, sum of predictions, positives] of each block, rising."""
    blocks: list[list[float]] = []
    for x in sorted(set(predictions)):
        tied = [y for p, y in zip(predictions, labels, strict=True) if p == x]
        blocks.append([len(tied), x * len(tied), sum(tied)])
        while len(blocks) > 1 and blocks[-2][2] / blocks[-2][0] >= blocks[-1][2] / blocks[-1][0]:
            top = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], top, strict=True)]
    return blocks


samples = st.integers(2, 80).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 99), min_size=n, max_size=n), st.lists(st.integers(0, 1), min_size=n, max_size=n)
    )
)
# Both classes at either end: then every block has both.
mixed_samples = samples.map(lambda sample: ([1, 1, 99, 99, *sample[0]], [0, 1, 0, 1, *sample[1]]))


@given(mixed_samples)
@settings(max_examples=300)
def test_knots_are_the_blocks_of_the_slow_reference(sample: tuple[list[int], list[int]]) -> None:
    """Where every block has both classes; ties in predictions included."""
    predictions = percent(sample[0])
    blocks = slow_blocks(predictions.astype(float).tolist(), sample[1])
    assert all(0 < positives < rows for rows, _, positives in blocks)

    knots = fit(predictions, labels_of(sample[1]), events_min=1, blocks_max=1_000)

    np.testing.assert_allclose(knots.x, [x / rows for rows, x, _ in blocks], rtol=1e-6)
    np.testing.assert_allclose(knots.y, [positives / rows for rows, _, positives in blocks], rtol=1e-6)


def test_agrees_with_scikit_learn_inside_the_blocks() -> None:
    """Of scores that lie in buckets of their own, every knot has the value of scikit-learn's step function there."""
    rng = np.random.default_rng(0)
    predictions = rng.integers(1, 2_000, 5_000).astype(np.float32) / np.float32(2_048)
    labels = (rng.random(5_000) < predictions**2).astype(np.uint8)
    sklearn_fit = IsotonicRegression(out_of_bounds="clip").fit(predictions.astype(np.float64), labels)

    knots = fit(predictions, labels, events_min=1, blocks_max=10_000)

    inner = knots.x[2:-2]  # the outermost blocks are joined until they hold both classes
    assert len(inner) > 10
    np.testing.assert_allclose(knots.y[2:-2], sklearn_fit.predict(inner.astype(np.float64)), rtol=1e-5)


@pytest.mark.parametrize(("rows", "base"), [(2_000, 0.3), (300_000, 0.3), (300_000, 0.003)])
def test_counted_scores_lose_no_more_than_is_stated(rows: int, base: float) -> None:
    """The regression of the counts against scikit-learn's of all rows: positives summed up to any score."""
    rng = np.random.default_rng(rows)
    predictions = (base * rng.beta(1, 3, rows) * 4).clip(0, 1).astype(np.float32)
    labels = (rng.random(rows) < predictions**1.1).astype(np.uint8)
    order = np.argsort(predictions, kind="stable")
    exact = IsotonicRegression().fit_transform(predictions[order].astype(np.float64), labels[order])
    counts = ScoreCounts.of(predictions, labels)
    counted = IsotonicRegression().fit_transform(
        np.arange(len(counts.rows)), counts.positives / counts.rows, sample_weight=counts.rows
    )

    ends = np.cumsum(counts.rows)
    off = np.abs(np.cumsum(counted * counts.rows) - np.cumsum(exact)[ends - 1]).max()

    assert len(counts.rows) < rows
    assert off <= counts.cumulative_error + 1e-6
    assert counts.cumulative_error < 0.004 * labels.sum()


def test_stated_loss_is_reached_by_the_worst_bucket() -> None:
    """Six negatives, then three positives, in one bucket: the exact line lies 3 x 6 / 9 below the chord."""
    predictions = np.float32(0.5) + np.arange(9, dtype=np.float32) * np.float32(2**-24)
    labels = labels_of([0] * 6 + [1] * 3)
    exact = IsotonicRegression().fit_transform(predictions.astype(np.float64), labels)

    counts = ScoreCounts.of(predictions, labels)

    assert counts.rows.tolist() == [9]
    assert counts.cumulative_error == pytest.approx(2.0)
    chord = np.arange(1, 10) * 3 / 9
    assert np.abs(chord - np.cumsum(exact)).max() == pytest.approx(2.0)


@given(
    st.lists(
        st.tuples(st.floats(0, 1, width=32) | st.sampled_from([0.0, -0.0, 1.0, 1e-45, 1e-38]), st.integers(0, 1)),
        max_size=60,
    ),
    st.integers(0, 60),
)
def test_counts_of_parts_add_up_to_the_counts_of_all(rows: list[tuple[float, int]], cut: int) -> None:
    """To the last bit, in either order, empty parts and denormals included; nothing is lost."""
    scores, labels = float32([score for score, _ in rows]), labels_of([label for _, label in rows])
    one, two = ScoreCounts.of(scores[:cut], labels[:cut]), ScoreCounts.of(scores[cut:], labels[cut:])

    whole = ScoreCounts.of(scores, labels)

    for added in (one + two, two + one):
        for name in ("buckets", "rows", "score_sums", "positives"):
            assert getattr(added, name).tolist() == getattr(whole, name).tolist()
    assert whole.events == (labels.sum(), len(labels) - labels.sum())
    assert whole.score_sums.sum() == pytest.approx(scores.astype(np.float64).sum())
    assert len(set(whole.buckets.tolist())) == len(whole.buckets)


def test_scores_of_a_bucket_are_close_and_in_order() -> None:
    """At most 2^-12 of themselves apart, and a larger score is never in an earlier bucket."""
    scores = np.sort(np.random.default_rng(0).lognormal(-3, 2, 100_000).clip(0, 1).astype(np.float32))
    distinct = np.unique(scores)

    counts = ScoreCounts.of(distinct, np.zeros(len(distinct), np.uint8))

    ends = np.cumsum(counts.rows)
    lowest, highest = distinct[ends - counts.rows], distinct[ends - 1]
    assert (counts.rows > 1).any()
    assert (highest <= lowest * np.float32(1 + 2**-12)).all()
    means = counts.score_sums / counts.rows
    assert (np.diff(means) > 0).all()


def test_four_rows_by_hand() -> None:
    """Labels 0 1 | 0 1 at .1 .2 | .3 .4 pool to one half each: one block at the mean of all."""
    knots = fit(float32([0.1, 0.2, 0.3, 0.4]), labels_of([0, 1, 0, 1]), 1, 100)

    assert knots.x.tolist() == [pytest.approx(0.25)]
    assert knots.y.tolist() == [0.5]


@given(samples, st.integers(1, 5), st.integers(1, 8))
def test_knots_rise_strictly_with_enough_events_each(
    sample: tuple[list[int], list[int]], events_min: int, blocks_max: int
) -> None:
    """Any data: strictly rising, apart, at most as many as asked, inside (0, 1), the mean kept."""
    predictions, labels = percent(sample[0]), labels_of(sample[1])
    assume(events_min <= labels.sum() <= len(labels) - events_min)

    knots = fit(predictions, labels, events_min, blocks_max)

    assert (np.diff(knots.x) > DISTANCE_MIN / 2 * knots.x[:-1]).all()
    assert (np.diff(knots.y) > 0).all()
    assert 1 <= len(knots.x) <= blocks_max
    assert 0 < knots.y[0] <= labels.mean() + 1e-6
    assert labels.mean() - 1e-6 <= knots.y[-1] < 1


@given(samples, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(sample: tuple[list[int], list[int]], random: Any) -> None:
    """Equal predictions are one point, so neither does their order."""
    assume(0 < sum(sample[1]) < len(sample[1]))
    pairs = list(zip(*sample, strict=True))
    random.shuffle(pairs)
    knots = fit(percent(sample[0]), labels_of(sample[1]), 1, 50)
    shuffled = fit(percent([p for p, _ in pairs]), labels_of([y for _, y in pairs]), 1, 50)

    assert knots.x.tolist() == shuffled.x.tolist()
    assert knots.y.tolist() == shuffled.y.tolist()


def test_constant_predictions_give_one_knot() -> None:
    """There is one thing to say: the base rate."""
    knots = fit(np.full(10, 0.3, np.float32), labels_of([1, 0, 0, 0, 0] * 2), 1, 50)

    assert (knots.x.tolist(), knots.y.tolist()) == ([pytest.approx(0.3)], [pytest.approx(0.2)])


@pytest.mark.parametrize("prediction", [0.0, 1.0])
def test_saturated_predictions_can_be_calibrated(prediction: float) -> None:
    """A raw probability of exactly 0 or 1 has no log odds: it counts as a millionth away, and says what it came to."""
    counts = ScoreCounts.of(np.full(4, prediction, np.float32), labels_of([1, 0, 0, 0]))

    knots = fit_calibration(counts, 1.0, 1, 50)

    near = float32([abs(prediction - 1e-6)])
    assert apply_knots(knots, near) == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_one_class_only_is_refused(labels: list[int]) -> None:
    """There is nothing to fit a rise to."""
    with pytest.raises(ValueError, match="too few of one"):
        fit(float32([0.1, 0.2, 0.3]), labels_of(labels), 1, 50)


def test_no_rows_are_refused() -> None:
    """An empty head has neither class."""
    with pytest.raises(ValueError, match="0 positives and 0 negatives"):
        fit(float32([]), labels_of([]), 1, 50)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 1.0001])
def test_predictions_that_are_no_probabilities_are_refused(score: float) -> None:
    """NaN would sort anywhere."""
    with pytest.raises(ValueError, match="NaN or outside"):
        ScoreCounts.of(float32([0.1, score]), labels_of([0, 1]))


def test_denormal_predictions_are_calibrated_like_others() -> None:
    """The smallest scores there are: one knot for zero and denormals, one far above."""
    counts = ScoreCounts.of(float32([0.0, 1e-45, 1e-40, 0.5, 0.5]), labels_of([0, 1, 0, 0, 1]))

    assert fit_isotonic(counts, 1, 50).y.tolist() == [pytest.approx(1 / 3), pytest.approx(0.5)]
    assert np.isfinite(apply_knots(fit_calibration(counts, 1.0, 1, 50), float32([0.0, 1e-45, 1.0]))).all()


def test_blocks_are_joined_by_lines_in_the_log_odds() -> None:
    """Scores 0.2 and 0.8 that come true one and three times in four: 0.5 lies half way, and says 0.5."""
    predictions = np.repeat(float32([0.2, 0.8]), 400)
    labels = labels_of([1] * 100 + [0] * 300 + [1] * 300 + [0] * 100)

    knots = fit_calibration(ScoreCounts.of(predictions, labels), 0.5, events_min=20, blocks_max=8)

    scores = float32([0.2, 0.5, 0.8])
    np.testing.assert_allclose(apply_knots(knots, scores), [0.25, 0.5, 0.75], rtol=1e-3)
    between = np.linspace(0.21, 0.79, 50)
    mapped = apply_knots(knots, between.astype(np.float32))
    ratio = np.log(3) / np.log(4)
    np.testing.assert_allclose(np.log(mapped / (1 - mapped)), np.log(between / (1 - between)) * ratio, atol=1e-5)


def test_beyond_the_blocks_the_sampling_alone_is_undone() -> None:
    """One block in the middle of the scores: everywhere the same factor of the odds, next to that of the sampling."""
    predictions = np.linspace(0.05, 0.95, 2_000, dtype=np.float32)
    labels = labels_of([i % 4 == 0 for i in range(2_000)])

    knots = fit_calibration(ScoreCounts.of(predictions, labels), 0.1, events_min=20, blocks_max=1)

    mapped = apply_knots(knots, predictions)
    factor = mapped / (1 - mapped) * (1 - predictions) / predictions
    np.testing.assert_allclose(factor, factor[0], rtol=1e-4)
    assert mapped.mean() == pytest.approx(0.25, rel=0.15)


@given(samples, st.integers(1, 8), st.sampled_from([1e-3, 0.2, 1.0]))
def test_calibration_rises_strictly(sample: tuple[list[int], list[int]], blocks_max: int, rate: float) -> None:
    """Any data: knots rise strictly and are finite, and so do the answers, inside (0, 1), beyond the scores as well."""
    predictions, labels = percent(sample[0]), labels_of(sample[1])
    assume(0 < labels.sum() < len(labels))

    knots = fit_calibration(ScoreCounts.of(predictions, labels), rate, 1, blocks_max)

    assert 1 <= len(knots.x) <= blocks_max
    assert np.isfinite([knots.x, knots.y]).all()
    assert (np.diff(knots.x) > 0).all()
    assert (np.diff(knots.y) > 0).all()
    mapped = apply_knots(knots, np.linspace(1e-6, 1 - 1e-6, 1_001, dtype=np.float32))
    assert (np.diff(mapped) > 0).all()
    assert 0 < mapped[0] < mapped[-1] < 1


@pytest.mark.parametrize("rate", [0.01, 1.0])
def test_what_is_calibrated_already_keeps_the_formula_of_sampling(rate: float) -> None:
    """Labels drawn with r q / (1 - q + r q): as that, within what 4,000 or more events leave open."""
    rng = np.random.default_rng(1)
    q = rng.beta(2, 3, 400_000).astype(np.float32)
    p = rate * q / (1 - q + rate * q)
    labels = (rng.random(len(q)) < p).astype(np.uint8)

    knots = fit_calibration(ScoreCounts.of(q, labels), rate, events_min=20, blocks_max=8)

    middle = (q > 0.1) & (q < 0.9)
    np.testing.assert_allclose(apply_knots(knots, q[middle]), p[middle], rtol=0.12)


@pytest.mark.parametrize("rate", [0.01, 1.0])
@pytest.mark.parametrize(("slope", "level"), [(0.7, -0.5), (1.4, 1.0)])
def test_a_line_in_the_log_odds_is_found_again(slope: float, level: float, rate: float) -> None:
    """Labels drawn from such a line over what the undone sampling leaves: its probabilities, to what chance allows."""
    rng = np.random.default_rng(1)
    z = rng.normal(-1, 1, 200_000)
    q = (1 / (1 + np.exp(np.log(rate) - z))).astype(np.float32)
    p = 1 / (1 + np.exp(-slope * z - level))
    labels = (rng.random(len(z)) < p).astype(np.uint8)

    knots = fit_logistic(ScoreCounts.of(q, labels), rate)

    np.testing.assert_allclose(apply_knots(knots, q[np.abs(z + 1) < 2]), p[np.abs(z + 1) < 2], rtol=0.05)
    assert (np.diff(knots.x) > 0).all()
    assert (np.diff(knots.y) > 0).all()


def test_the_line_makes_levels_and_scores_agree() -> None:
    """What greatest likelihood means: predictions sum to the positives, and so do both weighted by the log odds."""
    rng = np.random.default_rng(2)
    q = rng.beta(2, 5, 20_000).astype(np.float32)
    labels = (rng.random(len(q)) < q**1.5).astype(np.uint8)

    said = apply_knots(fit_logistic(ScoreCounts.of(q, labels), 1.0), q)

    z = np.log(q.astype(np.float64) / (1 - q))
    assert said.sum() == pytest.approx(labels.sum(), rel=2e-3)
    assert z @ said == pytest.approx(z @ labels, rel=4e-3)


def test_a_line_rises_even_where_positives_have_the_lower_scores() -> None:
    """By as little as it may: order is not turned round."""
    rng = np.random.default_rng(3)
    q = rng.uniform(0.1, 0.9, 5_000).astype(np.float32)
    labels = (rng.random(len(q)) < 1 - q).astype(np.uint8)

    knots = fit_logistic(ScoreCounts.of(q, labels), 1.0)

    assert (knots.y[-1] - knots.y[0]) / (np.log(9) * 2) == pytest.approx(SLOPE_MIN, rel=0.02)


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.3, 1.0])
def test_prior_correction_follows_the_formula(rate: float) -> None:
    """r q / (1 - q + r q)."""
    q = np.linspace(0.001, 0.9999, 5_000).astype(np.float32)
    q64 = q.astype(np.float64)

    np.testing.assert_allclose(apply_knots(prior_correction(rate), q), rate * q64 / (1 - q64 + rate * q64), rtol=1e-6)


def test_map_of_knots_by_hand() -> None:
    """Knots at odds (1/4, 1/9), (2/3, 1): a line between in the log odds, the factor of the last one beyond it."""
    knots = Knots(np.log(float32([1 / 4, 2 / 3])), np.log(float32([1 / 9, 1])))

    mapped = apply_knots(knots, float32([0.0, 1 / 9, 0.2, 0.4, 0.5, 1.0]))

    # Odds of 1/8 are half of 1/4, so 1/18; odds of 1 are 3/2 of 2/3, so 3/2.
    assert mapped.tolist() == [pytest.approx(v, abs=1e-7) for v in (0.0, 1 / 19, 0.1, 0.5, 0.6, 1.0)]
    half_way = float32([np.sqrt(1 / 6) / (1 + np.sqrt(1 / 6))])
    assert apply_knots(knots, half_way) == pytest.approx(1 / 4, rel=1e-6)  # odds of sqrt(1/9 * 1)


def test_identity_changes_nothing() -> None:
    """What an uncalibrated graph carries."""
    q = float32([0.0, 1e-6, 0.25, 1.0])

    np.testing.assert_allclose(apply_knots(IDENTITY, q), q, rtol=1e-12)
