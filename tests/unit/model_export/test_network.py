"""The network against the definitions of its layers, and its arrays against itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from model_export.datasets.records import Impressions
from model_export.encode import Encoding, make_encoding
from model_export.examples import Examples
from model_export.first_layer import FirstLayer, normal_scores
from model_export.network import CrossLayer, Network, NetworkPlan, TowerLayer
from model_export.plan import FeaturePlan
from model_export.steps.discretize import Parameters, fit
from model_export.train import batch_tensors
from model_export.weights import NetWeights
from service.schema import GROUPS, Schema

TRUNKS = ("linear", "mlp", "dcn")


@pytest.fixture
def impressions(make_impressions: Callable[[int, int], Impressions]) -> Impressions:
    return make_impressions(400, 0)


@pytest.fixture
def encoding(small_schema: Schema, impressions: Impressions) -> Encoding:
    features = FeaturePlan(
        raw=("viewer.hours_away",),
        raw_log=("tweet.likes", "author.strength"),
        dots=(("tweet.text", "viewer.tastes"), ("author.style", "tweet.text")),
    )
    return make_encoding(small_schema, features, fit(small_schema, [impressions], Parameters(bins=8)))


def inputs_of(encoding: Encoding, impressions: Impressions) -> tuple[Any, torch.Tensor]:
    bins, raw = encoding.encode(impressions.tables)
    return batch_tensors(Examples(bins, raw, impressions.labels, impressions.labels), encoding)


def slow_h(weights: NetWeights, impressions: Impressions, row: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The first layer as `model_export.weights` defines it, one feature at a time in float64."""
    h = weights.bias.astype(np.float64)
    for group in GROUPS:
        table, part = impressions.tables[group][row], weights.groups[group]
        for binned in part.binned:
            if not np.isnan(table[binned.column]):
                h = h + binned.weights[sum(b <= table[binned.column] for b in binned.boundaries)]
        for categorical in part.categoricals:
            if not np.isnan(table[categorical.column]):
                h = h + categorical.weights[int(table[categorical.column])]
        for raw in part.raws:
            for i, column in enumerate(raw.columns):
                x = float(table[column])
                if not np.isnan(x):
                    t = np.sign(x) * np.log(1 + abs(x)) if raw.log else x
                    h = h + (np.clip(t / raw.scale[i], -1, 1) + raw.bias[i]) * raw.weights[i]
    if weights.dots is not None:
        raw = weights.dots.raw
        for i, pair in enumerate(weights.dots.pairs):
            ours, others = impressions.tables["tweet"][row], impressions.tables[pair.group][row]
            product = sum(
                float(ours[a]) * float(others[b]) for a, b in zip(pair.tweet_columns, pair.columns, strict=True)
            )
            if not np.isnan(product):
                h = h + (np.clip(product / raw.scale[i], -1, 1) + raw.bias[i]) * raw.weights[i]
    return h


def slow_logits(weights: NetWeights, h: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, Any]:
    """Everything behind the first layer, for one row."""
    wide: Any = 0.0
    if weights.wide and weights.towers is not None:
        units = len(h) - len(weights.towers.bias)
        h, wide = h[:units], h[units:]
    x = h
    for cross in weights.crosses:
        x = h * (x @ cross.down @ cross.up + cross.bias) + x
    if weights.relu:
        x = np.maximum(x, 0)
    for dense in weights.trunk:
        x = np.maximum(x @ dense.weights + dense.bias, 0)
    if weights.towers is None:
        return x
    hidden = np.maximum(x @ weights.towers.hidden.weights + weights.towers.hidden.bias, 0)
    units = weights.towers.out.shape[1]
    heads = range(len(weights.towers.bias))
    deep = [hidden[j * units : (j + 1) * units] @ weights.towers.out[j] + weights.towers.bias[j] for j in heads]
    return np.asarray(wide + np.array(deep))


@pytest.mark.parametrize(("wide", "standardize"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("directions", [0, 2, 3])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_arrays_say_what_the_trained_net_computes(
    trunk: Any,
    directions: int,
    wide: bool,
    standardize: bool,
    encoding: Encoding,
    impressions: Impressions,
) -> None:
    """Normalization folded, slots and columns where they belong: the same logits to 1e-4 of their size."""
    torch.manual_seed(0)
    plan = NetworkPlan(
        trunk=trunk,
        units=12,
        directions=directions,
        hidden=(10, 6),
        tower_units=3,
        crosses=2,
        cross_rank=4,
        dropout=0.2,
        wide=wide,
        standardize=standardize,
    )
    network = Network(plan, encoding, heads=2)
    if standardize:
        raws = len(encoding.raw_names)
        network.first.standardize(np.linspace(-1.0, 2.0, raws), np.linspace(0.5, 3.0, raws))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    network.train()
    for _ in range(20):  # moves running max, and mean and variance of the normalization
        network(*inputs_of(encoding, impressions))
    network.eval()

    logits = network(*inputs_of(encoding, impressions)).detach().numpy()

    weights = network.to_weights()
    expected = np.stack([slow_logits(weights, slow_h(weights, impressions, row)) for row in range(len(impressions))])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def first_layer(encoding: Encoding, units: int = 3) -> FirstLayer:
    layer = FirstLayer(encoding, units, 2, np.ones(encoding.rows, int), np.ones(len(encoding.raw_names), int))
    torch.nn.init.normal_(layer.raw_bias)
    return layer


def raw_inputs(encoding: Encoding, raw: list[list[float]]) -> tuple[Any, torch.Tensor]:
    values = np.full((len(raw), len(encoding.raw_names)), np.nan, np.float32)
    values[:, : len(raw[0])] = raw
    bins = np.zeros((len(raw), len(encoding.slots)), np.uint16)
    labels = np.zeros((len(raw), 2), np.uint8)
    return batch_tensors(Examples(bins, values, labels, labels), encoding)


def test_absent_and_zero_are_different(encoding: Encoding) -> None:
    """A present zero adds bias x weights; an absent value adds nothing."""
    layer = first_layer(encoding).train()

    h = layer(*raw_inputs(encoding, [[float("nan")], [0.0]]))

    torch.testing.assert_close(h[0], layer.bias)
    torch.testing.assert_close(h[1], layer.bias + layer.raw_bias[0] * layer.raw_weights[0])


def test_running_max_covers_the_batch_before_it_is_scaled(encoding: Encoding) -> None:
    """In training nothing exceeds 1, the max never decays, and the order of rows has no part."""
    layer = first_layer(encoding).train()
    with torch.no_grad():
        layer.raw_bias.zero_()

    h = layer(*raw_inputs(encoding, [[2.0], [-4.0]])) - layer.bias
    layer(*raw_inputs(encoding, [[1.0]]))

    torch.testing.assert_close(h, torch.tensor([[0.5], [-1.0]]) * layer.raw_weights[0])
    assert layer.running_max[0] == 4.0


def test_values_beyond_the_running_max_are_held_at_one(encoding: Encoding) -> None:
    """Out of training the max stays; a column that saw nothing but zeros has scale 1."""
    layer = first_layer(encoding)
    with torch.no_grad():
        layer.raw_bias.zero_()
    layer.train()(*raw_inputs(encoding, [[2.0, 0.0]]))

    h = layer.eval()(*raw_inputs(encoding, [[100.0, float("nan")], [float("nan"), 0.25]])) - layer.bias

    torch.testing.assert_close(h[0], layer.raw_weights[0])
    torch.testing.assert_close(h[1], 0.25 * layer.raw_weights[1])
    assert layer.running_max[0] == 2.0


def test_without_normalization_values_enter_as_they_are(encoding: Encoding) -> None:
    """By hand while training; normalized afterwards it computes the same, up to the largest value that it saw."""
    ones = np.ones(encoding.rows, int), np.ones(len(encoding.raw_names), int)
    layer = FirstLayer(encoding, 3, 2, *ones, without="normalization").train()
    torch.nn.init.normal_(layer.raw_bias)
    inputs = raw_inputs(encoding, [[2.0, -30.0], [float("nan"), 4.0]])
    weights, bias = layer.raw_weights.detach().clone(), layer.raw_bias.detach().clone()

    before = layer(*inputs)
    layer.normalize()

    expected = layer.bias + (2.0 + bias[0]) * weights[0] + (-30.0 + bias[1]) * weights[1]
    torch.testing.assert_close(before[0], expected)
    torch.testing.assert_close(before[1], layer.bias + (4.0 + bias[1]) * weights[1])
    torch.testing.assert_close(layer.eval()(*inputs), before)
    torch.testing.assert_close(layer.raw_weights[1], 30.0 * weights[1])


def test_without_feature_bias_it_stays_zero(encoding: Encoding) -> None:
    """The gradient reaches the weights of a value, not its bias; with the bias it reaches both."""
    for without, moves in (("feature_bias", False), (None, True)):
        ones = np.ones(encoding.rows, int), np.ones(len(encoding.raw_names), int)
        layer = FirstLayer(encoding, 3, 2, *ones, without=without)  # type: ignore[arg-type]  # two of its literals
        layer(*raw_inputs(encoding, [[2.0]])).sum().backward()
        assert layer.raw_weights.grad is not None
        assert (layer.raw_bias.grad is not None) == moves


def test_standardized_values_enter_as_told(encoding: Encoding) -> None:
    """(value - mean) / deviation, plus the bias, where present; beyond the running max as the max itself."""
    ones = np.ones(encoding.rows, int), np.ones(len(encoding.raw_names), int)
    layer = FirstLayer(encoding, 3, 2, *ones, standardized=True)
    torch.nn.init.normal_(layer.raw_bias)
    others = np.zeros(len(encoding.raw_names) - 1)
    layer.standardize(np.append(5.0, others), np.append(4.0, others + 1.0))
    layer.train()(*raw_inputs(encoding, [[9.0]]))

    h = layer.eval()(*raw_inputs(encoding, [[7.0], [100.0], [float("nan")]])) - layer.bias

    torch.testing.assert_close(h[0], (0.5 + layer.raw_bias[0]) * layer.raw_weights[0])
    torch.testing.assert_close(h[1], (1.0 + layer.raw_bias[0]) * layer.raw_weights[0])
    assert (h[2] == 0).all()


@pytest.mark.parametrize("directions", [0, 1, 2, 4])
def test_what_no_example_had_contributes_nothing(directions: int, encoding: Encoding) -> None:
    """Rows and raw values never seen start at zero, and training does not move them."""
    row_counts, raw_counts = np.full(encoding.rows, 5), np.full(len(encoding.raw_names), 5)
    row_counts[2] = raw_counts[1] = 0

    layer = FirstLayer(encoding, 3, directions, row_counts, raw_counts)

    zero_rows = (layer.table().detach().numpy() == 0).all(axis=1)
    assert zero_rows[2]
    assert zero_rows.sum() == 1 or directions == 1  # with one code, the score of a single bin is 0 as well
    assert (layer.raw_weights.detach().numpy() == 0).all(axis=1).nonzero()[0].tolist() == [1]


def test_rows_of_a_slot_are_spanned_by_its_directions(encoding: Encoding) -> None:
    """A slot of 8 bins has a table of rank 2; free rows have full rank."""
    counts = np.full(encoding.rows, 5), np.full(len(encoding.raw_names), 5)
    spanned, free = (FirstLayer(encoding, 6, d, *counts).table().detach().numpy() for d in (2, 0))
    slot, start = next((s, o) for s, o in zip(encoding.slots, encoding.offsets, strict=True) if s.size >= 6)

    assert np.linalg.matrix_rank(spanned[start : start + slot.size], tol=1e-4) == 2
    assert np.linalg.matrix_rank(free[start : start + slot.size], tol=1e-4) == 6


def test_normal_scores_by_hand() -> None:
    """Three bins of a third each: mid-ranks 1/6, 1/2, 5/6, symmetric; then mean 0 and variance 1, by weight."""
    np.testing.assert_allclose(normal_scores(np.array([4, 4, 4])), [-np.sqrt(1.5), 0, np.sqrt(1.5)], atol=1e-6)

    counts = np.array([900, 0, 50, 30, 20])
    scores = normal_scores(counts)
    assert np.average(scores, weights=counts) == pytest.approx(0, abs=1e-6)
    assert np.average(scores**2, weights=counts) == pytest.approx(1, rel=1e-5)
    assert (np.diff(scores) > 0).all()
    assert normal_scores(np.array([0, 7, 0])).tolist() == [0, 0, 0]


def test_cross_layer_by_hand() -> None:
    """x0 = (1, 2), x = (3, 4), down x up = [[1, 0], [1, 0]], bias (0, 1): (1 * 7 + 3, 2 * 1 + 4)."""
    cross = CrossLayer(2, 1)
    with torch.no_grad():
        cross.down.fill_(1.0)
        cross.up.copy_(torch.tensor([[1.0, 0.0]]))
        cross.bias.copy_(torch.tensor([0.0, 1.0]))

    assert cross(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])).tolist() == [[10.0, 6.0]]


def test_each_head_has_a_tower_of_its_own() -> None:
    """Moving one head's tower leaves the other head's logit alone."""
    towers = TowerLayer(4, heads=2, units=3)
    x = torch.randn(5, 4)
    before = towers(x).detach()

    with torch.no_grad():
        towers.hidden.weight[3:] += 1.0
        towers.out[1] += 1.0

    assert (towers(x)[:, 0] == before[:, 0]).all()
    assert (towers(x)[:, 1] != before[:, 1]).any()


@pytest.mark.parametrize("trunk", TRUNKS)
def test_base_logits_are_where_the_heads_start(trunk: Any, encoding: Encoding) -> None:
    """The bias that nothing else touches holds them."""
    network = Network(NetworkPlan(trunk=trunk), encoding, heads=2)
    network.set_base_logits(np.array([-1.0, -3.0], np.float32))

    weights = network.to_weights()

    bias = weights.bias if weights.towers is None else weights.towers.bias
    assert bias.tolist() == [-1.0, -3.0]


@pytest.mark.parametrize("directions", [0, 2])
def test_the_linear_part_of_a_wide_net_is_a_linear_net(
    directions: int, encoding: Encoding, impressions: Impressions
) -> None:
    """It starts at nothing; with towers that say nothing, what it learned alone is the answer, linear in each value."""
    inputs = inputs_of(encoding, impressions)
    torch.manual_seed(0)
    network = Network(NetworkPlan(units=12, directions=directions, hidden=(6,), wide=True), encoding, heads=2).eval()
    assert network.towers is not None
    assert (network.first(*inputs)[:, 12:] == 0).all()

    torch.nn.init.normal_(network.first.bias)
    torch.nn.init.normal_(network.first.raw_weights)
    torch.nn.init.zeros_(network.towers.out)
    network.set_base_logits(np.array([-1.0, -3.0], np.float32))

    expected = network.first(*inputs)[:, 12:] + torch.tensor([-1.0, -3.0])
    torch.testing.assert_close(network(*inputs), expected)
    assert expected.std(dim=0).min() > 0
