"""Permutation importance on a net whose use of features is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model_export.datasets.records import Impressions, RecordSet
from model_export.report.importance import draw, importance, permuted
from model_export.score import open_graph, same_viewer
from service.bundle import Bundle
from service.schema import Schema


def test_what_the_signal_is_made_of_matters_most(records: RecordSet, bundle: Bundle) -> None:
    """Likes follow author.strength, replies the Tweet's vector; a feature that is never there loses exactly nothing."""
    graph = open_graph(bundle.model)
    few = draw(records, records.days[-2:], 10_000)

    groups, features = importance(graph, bundle.schema, few)

    assert len(few) == 3_000
    assert list(groups) == ["viewer", "author", "tweet"]
    assert list(features) == [f"{feature.group}.{feature.name}" for feature in bundle.schema.features]
    assert max(features, key=lambda name: features[name][0]) == "author.strength"
    assert max(groups, key=lambda name: groups[name][0]) == "author"
    assert (features["author.never"] == 0).all()
    assert features["author.strength"][0] > 1


def test_rows_are_dealt_out_and_views_keep_one_viewer(
    make_impressions: Callable[[int, int], Impressions], small_schema: Schema
) -> None:
    """The same values in other places; no other column and no other table is touched, nor the given impressions."""
    impressions = make_impressions(200, 0)
    before = impressions.tables["tweet"].copy()
    rng = np.random.default_rng(0)

    tweets = permuted(impressions, "tweet", slice(0, 1), rng).tables
    assert np.array_equal(impressions.tables["tweet"], before, equal_nan=True)
    assert np.array_equal(tweets["tweet"][:, 1:], before[:, 1:], equal_nan=True)
    assert not np.array_equal(tweets["tweet"][:, 0], before[:, 0], equal_nan=True)
    assert np.array_equal(np.sort(tweets["tweet"][:, 0]), np.sort(before[:, 0]), equal_nan=True)
    assert tweets["author"] is impressions.tables["author"]

    viewers = permuted(impressions, "viewer", slice(0, small_schema.layouts["viewer"].width), rng).tables["viewer"]
    runs = list(same_viewer(impressions.tables["viewer"]))
    assert all(len(list(same_viewer(viewers[run]))) == 1 for run in runs)
    assert not np.array_equal(viewers, impressions.tables["viewer"], equal_nan=True)
