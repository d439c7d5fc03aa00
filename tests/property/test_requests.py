"""Any legal request gets a right answer, any illegal one the right refusal, and the server goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from service.schema import Group
from tests import toy
from tests.property.requests import SPOILERS, Columns, Drawn, Spoiler, drawn_requests
from tests.server_process import serving

METHODS = [
    f"/timelines.ranking.v1.TimelineRankingService/{m}" for m in ("RankTimeline", "ScoreTweets", "DescribeModel")
]
OK_CODES = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}


@pytest.fixture(scope="module")
def channel(toy_bundle: Path) -> Iterator[grpc.Channel]:
    with serving(toy_bundle) as addresses, grpc.insecure_channel(addresses.grpc) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> ranking_pb2_grpc.TimelineRankingServiceStub:
    return ranking_pb2_grpc.TimelineRankingServiceStub(channel)


def aligned(columns: Columns, group: Group, rows: int) -> NDArray[np.float64]:
    """A table in the model's columns, the slow way: NaN where the request says nothing that the model knows."""
    layout = toy.SCHEMA.layouts[group]
    table = np.full((rows, layout.width), math.nan)
    for row in range(rows):
        for feature in layout.features:
            start = layout.offsets[feature.name]
            if feature.kind == "vector":
                vector = columns.vectors.get(feature.name, [None] * rows)[row]
                if vector is not None:
                    table[row, start : start + feature.width] = vector
            elif feature.kind == "categorical":
                category = columns.categorical.get(feature.name, [None] * rows)[row]
                if category in feature.vocabulary:
                    table[row, start] = feature.vocabulary.index(category)
            elif feature.name in columns.scalars:
                table[row, start] = columns.scalars[feature.name][row]
    return table


def expected_counts(columns: Columns, group: Group) -> pb.FeatureCounts.Columns:
    features = {f.name: f for f in toy.SCHEMA.layouts[group].features}
    sent = {*columns.scalars, *columns.categorical, *columns.vectors}
    return pb.FeatureCounts.Columns(
        present=len(sent & features.keys()),
        absent=len(features.keys() - sent),
        unknown=len(sent - features.keys()),
        unknown_categories=sum(
            len({c for c in cells if c is not None} - set(features[name].vocabulary))
            for name, cells in columns.categorical.items()
            if name in features
        ),
    )


def expected_scores(drawn: Drawn) -> Mapping[int, float]:
    """Tweet id -> relevance, by sums in Python."""
    candidates = drawn.request.candidates
    sizes: dict[Group, int] = {"viewer": 1, "author": len(candidates.author_ids), "tweet": len(candidates.tweet_ids)}
    tables = {group: aligned(drawn.tables[group], group, rows) for group, rows in sizes.items()}
    index = np.array(candidates.author_index, np.int64)
    raw = toy.raw_probabilities(tables["viewer"], tables["author"], index, tables["tweet"])
    signed = [h.sign * h.weight for h in toy.SCHEMA.heads]
    return dict(zip(candidates.tweet_ids, (raw / 2) @ signed, strict=True))


@settings(max_examples=100)
@given(drawn_requests())
def test_a_legal_request_is_answered(stub: ranking_pb2_grpc.TimelineRankingServiceStub, drawn: Drawn) -> None:
    """Every Tweet in exactly one section with its score; columns counted; an explanation if and only if asked."""
    response = stub.RankTimeline(drawn.request)

    sections = (response.icymi, response.ranked, response.remainder)
    scores = expected_scores(drawn)
    found = {i: s for section in sections for i, s in zip(section.tweet_ids, section.scores, strict=True)}
    assert sorted(i for section in sections for i in section.tweet_ids) == sorted(drawn.request.candidates.tweet_ids)
    assert found == pytest.approx(scores, abs=1e-4)
    for section in sections:
        assert len(section.probabilities) == 3 * len(section.tweet_ids)
    assert response.features == pb.FeatureCounts(
        viewer=expected_counts(drawn.tables["viewer"], "viewer"),
        authors=expected_counts(drawn.tables["author"], "author"),
        tweets=expected_counts(drawn.tables["tweet"], "tweet"),
    )
    assert response.request_id == drawn.request.request_id or not drawn.request.request_id
    assert response.request_id
    assert response.HasField("explanation") == drawn.request.explain
    if drawn.request.explain:
        shown = len(response.icymi.tweet_ids) + len(response.ranked.tweet_ids)
        assert len(response.explanation.raw_probabilities) == 3 * shown
        assert len(response.explanation.tweets) == shown


@settings(max_examples=50)
@given(drawn_requests(), st.randoms(use_true_random=False))
def test_order_of_columns_and_rows_does_not_matter(
    stub: ranking_pb2_grpc.TimelineRankingServiceStub, drawn: Drawn, random: Any
) -> None:
    """The Tweets sent in another order get the same timeline, bit for bit."""
    candidates = drawn.request.candidates
    order = random.sample(range(len(candidates.tweet_ids)), len(candidates.tweet_ids))
    shuffled = pb.RankTimelineRequest()
    shuffled.CopyFrom(drawn.request)
    for name in ("tweet_ids", "created_at_ms", "author_index"):
        values = getattr(candidates, name)
        getattr(shuffled.candidates, name)[:] = [values[i] for i in order]
    shuffled.candidates.tweets.CopyFrom(permuted(candidates.tweets, order))

    first, second = stub.RankTimeline(drawn.request), stub.RankTimeline(shuffled)

    assert [first.icymi, first.ranked, first.remainder] == [second.icymi, second.ranked, second.remainder]


def permuted(table: pb.FeatureTable, order: list[int]) -> pb.FeatureTable:
    """The table with its rows in another order."""

    def rows(values: Any, width: int) -> list[Any]:
        return [x for i in order for x in values[i * width : (i + 1) * width]]

    ends = np.cumsum([0, *table.sparse_row_lengths])
    spans = [range(ends[i], ends[i + 1]) for i in order] if table.sparse_row_lengths else []
    return pb.FeatureTable(
        columns=table.columns,
        values=rows(table.values, len(table.columns)) if table.values else [],
        sparse_row_lengths=[len(span) for span in spans],
        sparse_column_indices=[table.sparse_column_indices[j] for span in spans for j in span],
        sparse_values=[table.sparse_values[j] for span in spans for j in span],
        categorical=[
            pb.CategoricalColumn(name=c.name, vocabulary=c.vocabulary, indices=rows(c.indices, 1))
            for c in table.categorical
        ],
        vectors=[pb.VectorColumn(name=v.name, width=v.width, values=rows(v.values, v.width)) for v in table.vectors],
    )


@settings(max_examples=100)
@given(drawn_requests(), st.sampled_from(SPOILERS))
def test_an_illegal_request_is_refused_by_field(
    stub: ranking_pb2_grpc.TimelineRankingServiceStub, drawn: Drawn, spoiler: Spoiler
) -> None:
    """INVALID_ARGUMENT with a google.rpc.BadRequest that names the field; the next request is answered."""
    spoiled = pb.RankTimelineRequest()
    spoiled.CopyFrom(drawn.request)
    spoiler.spoil(spoiled)

    with pytest.raises(grpc.RpcError) as caught:
        stub.RankTimeline(spoiled)

    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type] # what a call raises is also the call
    assert status is not None
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    detail = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(detail)
    assert [v.field for v in detail.field_violations] == [spoiler.field]
    assert stub.RankTimeline(drawn.request).degradation == pb.DEGRADATION_NONE


@pytest.mark.parametrize("spoiler", SPOILERS, ids=lambda spoiler: spoiler.field)
def test_every_kind_of_error_is_found(stub: ranking_pb2_grpc.TimelineRankingServiceStub, spoiler: Spoiler) -> None:
    """Each once for sure, on a small request."""
    request = pb.RankTimelineRequest(viewer_id=1, candidates=toy.candidates([1, 2]))
    spoiler.spoil(request)

    with pytest.raises(grpc.RpcError) as caught:
        stub.RankTimeline(request)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.details() or "").startswith(f"{spoiler.field}: ")


def code_of(channel: grpc.Channel, method: str, body: bytes) -> grpc.StatusCode:
    """What a call from bytes to bytes ends with."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    return call.future(body, timeout=30).code()


@settings(max_examples=300)
@given(st.sampled_from(METHODS), st.binary(max_size=300))
def test_any_bytes_get_an_answer(channel: grpc.Channel, method: str, body: bytes) -> None:
    """OK, or a refusal that is the caller's fault; never INTERNAL, never silence."""
    assert code_of(channel, method, body) in OK_CODES


@settings(max_examples=100)
@given(drawn_requests(), st.data())
def test_a_request_with_flipped_bytes_gets_an_answer(channel: grpc.Channel, drawn: Drawn, data: st.DataObject) -> None:
    """Nearly legal bytes reach deeper than random ones."""
    body = bytearray(drawn.request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))

    assert code_of(channel, METHODS[0], bytes(body)) in OK_CODES
