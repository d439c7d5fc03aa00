"""Running graphs over impressions, and the comparison with torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from model_export.calibrate import IDENTITY
from model_export.datasets.records import Impressions
from model_export.encode import make_encoding
from model_export.graph import build
from model_export.network import Network, NetworkPlan
from model_export.parity import ParityError, check_parity, torch_probabilities
from model_export.plan import FeaturePlan
from model_export.score import open_graph, same_viewer, score
from model_export.steps.discretize import Parameters, fit
from model_export.weights import Knots
from service.schema import Schema

NAN = float("nan")


@pytest.fixture
def impressions(make_impressions: Callable[[int, int], Impressions]) -> Impressions:
    return make_impressions(300, 0)


@pytest.fixture
def network(small_schema: Schema, impressions: Impressions) -> Network:
    torch.manual_seed(0)
    discretizer = fit(small_schema, [impressions], Parameters(bins=8))
    encoding = make_encoding(small_schema, FeaturePlan(raw_log=("tweet.likes",)), discretizer)
    network = Network(NetworkPlan(units=16, hidden=(8,), tower_units=4, crosses=1, cross_rank=4), encoding, heads=2)
    torch_probabilities(network, impressions)
    return network


def test_rows_of_one_viewer_go_together() -> None:
    """Consecutive equal rows, absent values included; the same row later is a run of its own."""
    table = np.array([[1, NAN], [1, NAN], [2, NAN], [1, NAN], [1, 0]], np.float32)

    assert list(same_viewer(table)) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]
    assert list(same_viewer(np.empty((3, 0), np.float32))) == [slice(0, 3)]


def test_graph_over_impressions_is_the_net(small_schema: Schema, network: Network, impressions: Impressions) -> None:
    """Every row with its own viewer and author."""
    knots = Knots(np.array([-1.4, 1.4], np.float32), np.array([-2.2, -0.8], np.float32))
    graph = open_graph(build(small_schema, network.to_weights(), [knots, IDENTITY]))

    raw, calibrated = score(graph, impressions)

    np.testing.assert_allclose(raw, torch_probabilities(network, impressions), atol=1e-5)
    np.testing.assert_allclose(calibrated[:, 1], raw[:, 1], rtol=1e-6)
    assert check_parity(network, graph, "float32", impressions, [knots, IDENTITY]) < 1e-5


def test_impressions_of_one_viewer_may_be_more_than_a_run_takes(
    small_schema: Schema, network: Network, impressions: Impressions
) -> None:
    """Each row's answer is the one that it has alone."""
    graph = open_graph(build(small_schema, network.to_weights(), [IDENTITY] * 2))
    many = impressions.take(np.arange(5_000) % 300)
    tables = {**many.tables, "viewer": np.repeat(many.tables["viewer"][:1], 5_000, axis=0)}

    raw = score(graph, replace(many, tables=tables))[0]

    assert raw.shape == (5_000, 2)
    for row in (0, 2_047, 2_048, 4_999):
        alone = replace(many, tables={group: table[row : row + 1] for group, table in tables.items()})
        np.testing.assert_allclose(raw[row], score(graph, alone)[0][0], atol=1e-6)


def test_a_graph_of_another_net_is_found_out(small_schema: Schema, network: Network, impressions: Impressions) -> None:
    """Other weights, or another calibration than stated."""
    weights = network.to_weights()
    other = open_graph(build(small_schema, replace(weights, bias=weights.bias + 0.1), [IDENTITY] * 2))
    with pytest.raises(ParityError, match="raw probabilities are up to"):
        check_parity(network, other, "float32", impressions, [IDENTITY] * 2)

    halved = Knots(np.zeros(1, np.float32), np.array([np.log(0.5)], np.float32))
    graph = open_graph(build(small_schema, weights, [IDENTITY, halved]))
    with pytest.raises(ParityError, match="head 1"):
        check_parity(network, graph, "float32", impressions, [IDENTITY] * 2)


def test_a_graph_that_answers_nan_is_found_out(
    small_schema: Schema, network: Network, impressions: Impressions
) -> None:
    """NaN is no small difference."""
    weights = network.to_weights()
    broken = open_graph(build(small_schema, replace(weights, bias=weights.bias * np.float32(NAN)), [IDENTITY] * 2))

    with pytest.raises(ParityError, match="nan apart"):
        check_parity(network, broken, "float32", impressions, [IDENTITY] * 2)
