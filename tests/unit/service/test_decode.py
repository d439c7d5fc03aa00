"""From protobuf to arrays: what is legal comes through unchanged, what is not names its field."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from service.decode import Decoder, Header, Sparse, check_forced_arms, check_header, check_times, parse
from service.errors import InvalidRequest
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.limits import Limits
from tests import toy

NAN, INF = math.nan, math.inf
SMALL = Limits(
    rows_max=4, authors_max=3, columns_max=6, vocabulary_max=3, string_bytes_max=8, message_bytes_max=1 << 20
)


def full_table() -> pb.FeatureTable:
    """Two rows of everything that a dense table can hold."""
    return pb.FeatureTable(
        columns=["likes", "is_reply"],
        values=[1.5, NAN, 0.0, 1.0],
        categorical=[pb.CategoricalColumn(name="language", vocabulary=["ja", "en"], indices=[2, 0])],
        vectors=[pb.VectorColumn(name="text", width=2, values=[NAN, NAN, 0.25, -0.5])],
    )


def sparse_table() -> pb.FeatureTable:
    """Three rows with 2, 0 and 1 values."""
    return pb.FeatureTable(
        columns=["a", "b", "c"],
        sparse_row_lengths=[2, 0, 1],
        sparse_column_indices=[2, 0, 1],
        sparse_values=[1.0, 2.0, NAN],
    )


def decode_error(message: pb.Candidates, limits: Limits = SMALL) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        Decoder(limits).candidates(message)
    return caught.value.field, caught.value.description


def test_candidates_come_through() -> None:
    """Ids, times and author indices become int64 arrays."""
    message = toy.candidates([1, 2, 3], author_index=[1, 0, 1], strength=[0.5, NAN], created_at_ms=[-5, 1 << 62, 0])

    decoded = Decoder(SMALL).candidates(message)

    assert len(decoded) == 3
    assert decoded.tweet_ids.tolist() == [1, 2, 3]
    assert decoded.created_at_ms.tolist() == [-5, 1 << 62, 0]
    assert decoded.author_index.tolist() == [1, 0, 1]
    assert {a.dtype for a in (decoded.tweet_ids, decoded.created_at_ms, decoded.author_index)} == {np.dtype(np.int64)}
    assert [t.rows for t in (decoded.viewer, decoded.authors, decoded.tweets)] == [1, 2, 3]


def test_dense_table() -> None:
    """Values are row-major, NaN is kept, categories stay strings, vectors are rows."""
    table = Decoder(SMALL).table(full_table(), 2, "t")

    assert table.header == Header(("likes", "is_reply"), ("language",), (("text", 2),))
    np.testing.assert_array_equal(table.values, np.array([[1.5, NAN], [0, 1]], np.float32))
    assert table.categorical[0].vocabulary == ("ja", "en")
    assert table.categorical[0].indices.tolist() == [2, 0]
    np.testing.assert_array_equal(table.vectors[0], np.array([[NAN, NAN], [0.25, -0.5]], np.float32))


def test_sparse_table() -> None:
    """Row lengths become row numbers."""
    table = Decoder(SMALL).table(sparse_table(), 3, "t")

    assert isinstance(table.values, Sparse)
    assert table.values.rows.tolist() == [0, 0, 2]
    assert table.values.columns.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(table.values.values, np.array([1, 2, NAN], np.float32))


@pytest.mark.parametrize(
    ("message", "rows"),
    [
        (pb.FeatureTable(), 3),
        (pb.FeatureTable(columns=["a", "b"]), 0),
        (pb.FeatureTable(columns=["a"], sparse_row_lengths=[0, 0]), 2),
        (pb.FeatureTable(sparse_row_lengths=[0, 0]), 2),
        (pb.FeatureTable(categorical=[pb.CategoricalColumn(name="c", indices=[0, 0])]), 2),
        (pb.FeatureTable(columns=[""], values=[1]), 1),
    ],
)
def test_legal_oddities(message: pb.FeatureTable, rows: int) -> None:
    """No columns, no rows, nothing but absent values, a vocabulary without categories: all legal."""
    assert Decoder(SMALL).table(message, rows, "t").rows == rows


def test_no_candidates() -> None:
    """A request without candidates, or with authors alone, is legal."""
    assert len(Decoder(SMALL).candidates(pb.Candidates())) == 0
    assert len(Decoder(SMALL).candidates(pb.Candidates(author_ids=[1, 2]))) == 0


def test_the_same_header_is_one_object() -> None:
    """A header that was seen before is not checked again, and is found by identity."""
    decoder = Decoder(SMALL)

    first, second = (decoder.table(full_table(), 2, "t") for _ in range(2))

    assert first.header is second.header
    assert first.categorical[0].vocabulary is second.categorical[0].vocabulary


def test_at_the_limits() -> None:
    """What is just within every limit passes."""
    message = toy.candidates([1, 2, 3, 4], author_index=[0] * 4, strength=[1, 2, 3])
    message.tweets.Clear()
    message.tweets.columns.extend(["12345678", "ééé"])
    message.tweets.values.extend([0] * 8)
    message.tweets.categorical.add(name="c", vocabulary=["x", "y", "z"], indices=[0, 1, 2, 3])
    message.tweets.vectors.add(name="v", width=3, values=[0] * 12)

    assert len(Decoder(SMALL).candidates(message)) == 4


@pytest.mark.parametrize(
    ("spoil", "field", "description"),
    [
        (lambda m: m.tweet_ids.extend([8, 9]), "candidates.tweet_ids", "5 Tweets, more than 4"),
        (lambda m: m.author_ids.extend([8, 9]), "candidates.author_ids", "4 authors, more than 3"),
        (lambda m: m.created_at_ms.append(1), "candidates.created_at_ms", "4 values for 3 Tweets"),
        (lambda m: m.author_index.append(1), "candidates.author_index", "4 values for 3 Tweets"),
        (lambda m: m.tweet_ids.__setitem__(0, 3), "candidates.tweet_ids", "3 twice"),
        (lambda m: m.author_ids.__setitem__(0, 102), "candidates.author_ids", "102 twice"),
        (
            lambda m: m.author_index.__setitem__(1, 2),
            "candidates.author_index",
            "2 is out of range: there are 2 authors",
        ),
        (lambda m: m.author_index.__setitem__(1, (1 << 32) - 1), "candidates.author_index", "4294967295 is out of"),
        (lambda m: m.tweets.values.append(1), "candidates.tweets.values", "4 values for 3 rows x 1 columns"),
        (lambda m: m.authors.values.pop(), "candidates.authors.values", "1 values for 2 rows x 1 columns"),
        (lambda m: m.viewer.values.append(1), "candidates.viewer.values", "1 values for 1 rows x 0 columns"),
        (lambda m: m.tweets.columns.append("likes"), "candidates.tweets.columns", "'likes' twice"),
        (lambda m: m.tweets.columns.append("123456789"), "candidates.tweets.columns", "a string of 9 bytes"),
        (lambda m: m.tweets.columns.append("ééééé"), "candidates.tweets.columns", "a string of 10 bytes"),
        (lambda m: m.tweets.columns.extend("abcdef"), "candidates.tweets", "7 columns, more than 6"),
        (lambda m: m.tweets.vectors.add(name="v", width=6), "candidates.tweets", "7 columns, more than 6"),
        (lambda m: m.tweets.values.__setitem__(2, INF), "candidates.tweets.values", "an infinity"),
        (lambda m: m.authors.values.__setitem__(0, -INF), "candidates.authors.values", "an infinity"),
        (lambda m: m.tweets.sparse_values.append(1), "candidates.tweets.values", "filled, and the sparse form as well"),
        (lambda m: m.tweets.sparse_row_lengths.append(1), "candidates.tweets.values", "filled, and the sparse form"),
    ],
)
def test_bad_candidates(spoil: Callable[[pb.Candidates], object], field: str, description: str) -> None:
    """Each error names the field at fault and says what is wrong with it."""
    message = toy.candidates([1, 2, 3], author_index=[1, 0, 1], strength=[0.5, 1.0])
    spoil(message)

    found_field, found = decode_error(message)

    assert found_field == field
    assert found.startswith(description)


@pytest.mark.parametrize(
    ("spoil", "field", "description"),
    [
        (lambda t: t.categorical.add(name="likes", indices=[0, 0]), "categorical", "'likes' twice"),
        (lambda t: t.vectors.add(name="language", width=1, values=[0, 0]), "vectors", "'language' twice"),
        (lambda t: t.categorical[0].vocabulary.append("en"), "categorical[0].vocabulary", "'en' twice"),
        (lambda t: t.categorical[0].vocabulary.extend("xy"), "categorical[0].vocabulary", "4 categories, more than 3"),
        (lambda t: t.categorical[0].vocabulary.append("x" * 9), "categorical[0].vocabulary", "a string of 9 bytes"),
        (lambda t: setattr(t.categorical[0], "name", "x" * 9), "categorical", "a string of 9 bytes"),
        (lambda t: t.categorical[0].indices.append(0), "categorical[0].indices", "3 indices for 2 rows"),
        (lambda t: t.categorical[0].indices.__setitem__(0, 3), "categorical[0].indices", "3 is out of range"),
        (lambda t: setattr(t.vectors[0], "width", 0), "vectors[0].width", "must not be 0"),
        (lambda t: setattr(t.vectors[0], "name", "x" * 9), "vectors", "a string of 9 bytes"),
        (lambda t: t.vectors[0].values.append(0), "vectors[0].values", "5 values for 2 rows of width 2"),
        (lambda t: t.vectors[0].values.__setitem__(0, 1.0), "vectors[0].values", "a row that is partly NaN"),
        (lambda t: t.vectors[0].values.__setitem__(3, NAN), "vectors[0].values", "a row that is partly NaN"),
        (lambda t: t.vectors[0].values.__setitem__(3, INF), "vectors[0].values", "an infinity"),
    ],
)
def test_bad_columns(spoil: Callable[[pb.FeatureTable], object], field: str, description: str) -> None:
    """Categorical and vector columns are named by their place."""
    message = full_table()
    spoil(message)

    with pytest.raises(InvalidRequest) as caught:
        Decoder(SMALL).table(message, 2, "t")

    assert caught.value.field == f"t.{field}"
    assert caught.value.description.startswith(description)


@pytest.mark.parametrize(
    ("spoil", "field", "description"),
    [
        (lambda t: t.sparse_row_lengths.append(0), "sparse_row_lengths", "4 lengths for 3 rows"),
        (lambda t: t.sparse_row_lengths.__setitem__(1, 1), "sparse_column_indices", "3 indices, but the row lengths"),
        (lambda t: t.sparse_column_indices.append(0), "sparse_column_indices", "4 indices, but the row lengths"),
        (lambda t: t.sparse_values.pop(), "sparse_values", "2 values, but the row lengths add up to 3"),
        (lambda t: t.sparse_column_indices.__setitem__(0, 3), "sparse_column_indices", "3 is out of range"),
        (lambda t: t.sparse_column_indices.__setitem__(0, 0), "sparse_column_indices", "a column twice in one row"),
        (lambda t: t.sparse_values.__setitem__(0, -INF), "sparse_values", "an infinity"),
        (lambda t: t.sparse_row_lengths.__setitem__(0, (1 << 32) - 1), "sparse_column_indices", "3 indices, but the"),
    ],
)
def test_bad_sparse_table(spoil: Callable[[pb.FeatureTable], object], field: str, description: str) -> None:
    """The sparse form must add up before anything is made of it."""
    message = sparse_table()
    spoil(message)

    with pytest.raises(InvalidRequest) as caught:
        Decoder(SMALL).table(message, 3, "t")

    assert caught.value.field == f"t.{field}"
    assert caught.value.description.startswith(description)


def test_a_bad_header_is_refused_every_time() -> None:
    """Only good headers and vocabularies are remembered."""
    decoder = Decoder(SMALL)
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="'a' twice"):
            decoder.table(pb.FeatureTable(columns=["a", "a"]), 0, "t")
        with pytest.raises(InvalidRequest, match="'en' twice"):
            decoder.table(
                pb.FeatureTable(categorical=[pb.CategoricalColumn(name="c", vocabulary=["en", "en"])]), 0, "t"
            )


@pytest.mark.parametrize(
    ("field", "tag", "fault"),
    [
        ("candidates.tweets", b"\x32\x00", "500000 columns, more than 2048"),  # nameless categorical columns
        ("candidates.tweets", b"\x3a\x00", "500000 columns, more than 2048"),  # vectors
        ("candidates.tweets", b"\x0a\x00", "500000 columns, more than 2048"),
        ("candidates.tweets.categorical[0].vocabulary", b"", "500000 categories, more than 10000"),
    ],
)
def test_nothing_is_made_of_columns_beyond_the_limit(field: str, tag: bytes, fault: str) -> None:
    """Each is two bytes on the wire; an object for each would take tens of megabytes, and seconds of the GIL."""
    message = toy.candidates([1])
    message.tweets.Clear()
    if tag:
        message.tweets.MergeFromString(tag * 500_000)
    else:
        message.tweets.categorical.add().MergeFromString(b"\x12\x00" * 500_000)
    tracemalloc.start()
    try:
        found = decode_error(message, Limits())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert found[0] == field
    assert found[1].startswith(fault)
    assert peak_bytes < 1 << 20


def test_body_that_does_not_parse() -> None:
    """It is the whole body that is at fault."""
    with pytest.raises(InvalidRequest, match=r"^the body is not a timelines\.ranking\.v1\.RankTimelineRequest$"):
        parse(pb.RankTimelineRequest, b"\xff")


def test_header_of_a_request() -> None:
    """A viewer is needed; ids and model names have a limit."""
    check_header(pb.RankTimelineRequest(viewer_id=-1, request_id="12345678"), SMALL)
    for request, field in (
        (pb.ScoreTweetsRequest(), "viewer_id"),
        (pb.RankTimelineRequest(viewer_id=1, request_id="123456789"), "request_id"),
        (pb.RankTimelineRequest(viewer_id=1, model="123456789"), "model"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            check_header(request, SMALL)
        assert caught.value.field == field


def test_times() -> None:
    """A last visit may be now, or the first, but not to come."""
    check_times(0, 0)
    check_times(5, 5)
    with pytest.raises(InvalidRequest, match="last_visit_ms: 6 is after the request's time, 5"):
        check_times(6, 5)


def test_forced_arms() -> None:
    """Names of experiments and arms are strings like all others."""
    check_forced_arms({"e" * 256: "a" * 256}, Limits())
    for arms in ({"e" * 257: "a"}, {"e": "a" * 257}):
        with pytest.raises(InvalidRequest, match=r"^forced_arms: "):
            check_forced_arms(arms, Limits())
    check_forced_arms({str(i): "a" for i in range(100)}, Limits())
    with pytest.raises(InvalidRequest, match="forced_arms: 101 arms, more than 100"):
        check_forced_arms({str(i): "a" for i in range(101)}, Limits())
