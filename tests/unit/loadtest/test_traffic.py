from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format

from loadtest import traffic
from model_export.datasets.world_schema import SCHEMA
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.schema import Feature, Head, Schema
from tests import toy


@pytest.fixture(scope="module")
def standard() -> pb.RankTimelineRequest:
    """One request of the standard load."""
    return traffic.requests(SCHEMA, [500], seed=1)[0]


def test_the_standard_load_has_the_size_that_measurements_are_defined_for(standard: pb.RankTimelineRequest) -> None:
    """500 Tweets by 100 authors; 64, 32 and 24 scalars, and the categoricals and vectors on top."""
    candidates = standard.candidates

    assert (len(set(candidates.tweet_ids)), len(set(candidates.author_ids))) == (500, 100)
    assert len(candidates.author_index) == len(candidates.created_at_ms) == 500
    assert max(candidates.author_index) < 100
    sizes = [
        (len(table.columns), len(table.values), len(table.categorical), len(table.vectors))
        for table in (candidates.tweets, candidates.authors, candidates.viewer)
    ]
    assert sizes == [(64, 64 * 500, 2, 1), (32, 32 * 100, 1, 0), (24, 24, 2, 1)]


def test_a_third_of_what_is_sent_is_absent(standard: pb.RankTimelineRequest) -> None:
    """Of scalars, of categories and of vectors; a vector is absent as a whole."""
    tweets = standard.candidates.tweets
    topic, embedding = tweets.categorical[1], np.asarray(tweets.vectors[0].values).reshape(500, -1)

    assert np.isnan(np.asarray(tweets.values)).mean() == pytest.approx(1 / 3, abs=0.01)
    assert (np.asarray(topic.indices) == len(topic.vocabulary)).mean() == pytest.approx(1 / 3, abs=0.1)
    assert np.isnan(embedding).any(axis=1).mean() == pytest.approx(1 / 3, abs=0.1)
    assert (np.isnan(embedding).any(axis=1) == np.isnan(embedding).all(axis=1)).all()


def test_a_request_reaches_all_gates_of_the_icymi_module(standard: pb.RankTimelineRequest) -> None:
    """Away for 14 hours, and every Tweet from that time."""
    assert standard.request_time_ms - standard.last_visit_ms == 14 * 3_600_000
    created_at_ms = np.asarray(standard.candidates.created_at_ms)
    assert (created_at_ms > standard.last_visit_ms).all()
    assert (created_at_ms <= standard.request_time_ms).all()


def test_the_same_seed_makes_the_same_requests() -> None:
    """Byte for byte; another seed makes others, and no two of one seed are alike."""
    first = [r.SerializeToString(deterministic=True) for r in traffic.requests(SCHEMA, [20, 20], seed=7)]

    assert first == [r.SerializeToString(deterministic=True) for r in traffic.requests(SCHEMA, [20, 20], seed=7)]
    assert first[0] != first[1]
    assert first[0] != traffic.requests(SCHEMA, [20], seed=8)[0].SerializeToString(deterministic=True)


def test_values_come_from_the_sample_where_it_has_the_column() -> None:
    """Only present values are drawn, and only into the column of that name."""
    request = pb.RankTimelineRequest()
    request.candidates.tweets.columns.extend(["likes", "is_reply"])
    request.candidates.tweets.values.extend([1234.0, 0.5, float("nan"), 0.25])

    (made,) = traffic.requests(toy.SCHEMA, [200], seed=3, authors=2, sample=traffic.Sample.of(request))

    values = np.asarray(made.candidates.tweets.values).reshape(200, 2)
    drawn = [set(column[~np.isnan(column)].tolist()) for column in values.T]
    assert list(made.candidates.tweets.columns) == ["likes", "is_reply"]
    assert drawn == [{1234.0}, {0.5, 0.25}]


def test_values_fit_their_unit_without_a_sample() -> None:
    """Flags are 0 or 1, shares lie between, counts are whole."""
    schema = Schema(
        (
            Feature("flag", "tweet", "binary"),
            Feature("share", "tweet", "continuous", "ratio"),
            Feature("likes", "tweet", "continuous", "count"),
            Feature("age", "tweet", "continuous", "hours"),
        ),
        (Head("like", 1.0, 1),),
    )

    (made,) = traffic.requests(schema, [300], seed=3, authors=1)

    flag, share, likes, age = np.asarray(made.candidates.tweets.values).reshape(300, 4).T
    assert set(flag[~np.isnan(flag)].tolist()) == {0.0, 1.0}
    assert np.nanmin(share) >= 0
    assert np.nanmax(share) <= 1
    assert np.array_equal(likes, np.floor(likes), equal_nan=True)
    assert np.nanmin(likes) >= 0
    assert np.nanmin(age) > 0


def test_costs_are_measured_on_values_of_the_sample_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 requests of one size, all of them with the values of its file."""
    sample = pb.RankTimelineRequest()
    sample.candidates.authors.columns.append("strength")
    sample.candidates.authors.values.append(0.25)
    (tmp_path / "request.json").write_text(json_format.MessageToJson(sample))
    monkeypatch.setattr(traffic, "SAMPLE_REQUEST", tmp_path / "request.json")

    made = traffic.standard_load(toy.SCHEMA, 20)

    assert [len(request.candidates.tweet_ids) for request in made] == [20] * 64
    strengths = np.concatenate([np.asarray(request.candidates.authors.values) for request in made])
    assert set(strengths[~np.isnan(strengths)].tolist()) == {0.25}


def test_mixed_counts_follow_the_mix() -> None:
    """Each count about as often as its share says."""
    counts = traffic.mixed_counts(20_000, seed=5)

    assert sum(traffic.CANDIDATES_MIX.values()) == pytest.approx(1)
    for candidates, share in traffic.CANDIDATES_MIX.items():
        assert counts.count(candidates) / 20_000 == pytest.approx(share, abs=0.01)


def test_a_served_description_gives_the_schema_back() -> None:
    """All that a schema says is in the answer of DescribeModel."""
    description = pb.DescribeModelResponse(
        features=[
            pb.Feature(name=f.name, group=f.group, kind=f.kind, unit=f.unit, vocabulary=f.vocabulary, width=f.width)
            for f in toy.SCHEMA.features
        ],
        heads=[pb.Head(name=h.name, weight=h.weight, sign=h.sign) for h in toy.SCHEMA.heads],
    )

    assert traffic.schema_of(description) == toy.SCHEMA
