"""Golden cases."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from model_export.bundle import golden_file, signed_weights
from model_export.calibrate import IDENTITY
from model_export.datasets.records import Impressions
from model_export.encode import make_encoding
from model_export.graph import build
from model_export.network import Network, NetworkPlan
from model_export.plan import FeaturePlan
from model_export.score import open_graph, score
from model_export.steps.discretize import Parameters, fit
from service.align import Aligner
from service.decode import Decoder
from service.limits import Limits
from service.schema import Schema


@pytest.fixture
def impressions(make_impressions: Callable[[int, int], Impressions]) -> Impressions:
    """Sessions of 10; in the first one, rows 0 to 2 are by one author."""
    impressions = make_impressions(300, 0)
    impressions.tables["author"][:3] = impressions.tables["author"][0]
    return impressions


def test_golden_answers_are_the_graphs(small_schema: Schema, impressions: Impressions) -> None:
    """The requests, decoded and aligned as the server does it, are the impressions that were scored."""
    torch.manual_seed(0)
    encoding = make_encoding(small_schema, FeaturePlan(), fit(small_schema, [impressions], Parameters(bins=8)))
    network = Network(NetworkPlan(units=16, hidden=(8,), tower_units=4), encoding, heads=2)
    graph = open_graph(build(small_schema, network.eval().to_weights(), [IDENTITY] * 2))

    golden = golden_file(graph, small_schema, impressions, cases=3, version="abc")

    raw, probabilities = score(graph, impressions)
    decoder, aligner = Decoder(Limits()), Aligner(small_schema)
    assert len(golden.cases) == 3
    for number, case in enumerate(golden.cases):
        rows = slice(10 * number, 10 * number + 10)
        tables, counts = aligner.align(decoder.candidates(case.request.candidates))
        np.testing.assert_array_equal(tables.viewer[0], impressions.tables["viewer"][rows][0])
        np.testing.assert_array_equal(tables.authors[tables.author_index], impressions.tables["author"][rows])
        np.testing.assert_array_equal(tables.tweets, impressions.tables["tweet"][rows])
        assert counts.tweets.unknown == counts.authors.unknown == counts.viewer.unknown == 0
        assert case.request.raw
        assert case.response.model_version == "abc"
        assert list(case.response.heads) == ["like", "reply"]
        np.testing.assert_array_equal(np.reshape(case.response.raw_probabilities, (10, 2)), raw[rows])
        expected = probabilities[rows, 0] * 1.0 + probabilities[rows, 1] * 2.0
        np.testing.assert_allclose(case.response.scores, expected, rtol=1e-6)
    assert len(golden.cases[0].request.candidates.author_ids) < 10


def test_views_are_cut_to_what_a_golden_case_may_have(small_schema: Schema, impressions: Impressions) -> None:
    """At most 20 Tweets."""
    impressions.tables["viewer"][:] = impressions.tables["viewer"][0]
    encoding = make_encoding(small_schema, FeaturePlan(), fit(small_schema, [impressions], Parameters(bins=8)))
    network = Network(NetworkPlan(trunk="linear"), encoding, heads=2)
    graph = open_graph(build(small_schema, network.to_weights(), [IDENTITY] * 2))

    golden = golden_file(graph, small_schema, impressions, cases=5, version="abc")

    assert [len(case.request.candidates.tweet_ids) for case in golden.cases] == [20]


def test_signed_weights(small_schema: Schema) -> None:
    """By head."""
    assert signed_weights(small_schema).tolist() == [1.0, 2.0]
