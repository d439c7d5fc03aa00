"""From the caller's columns to the model's: by name, in any order, absent where not sent."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.align import Aligner, ColumnCounts, Counts, Tables
from service.decode import Decoder
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.limits import Limits
from service.schema import Feature, Head, Schema
from tests import toy

NAN = math.nan
NOTHING = ColumnCounts(0, 0, 0, 0)


def align(message: pb.Candidates, aligner: Aligner | None = None) -> tuple[Tables, Counts]:
    return (aligner or Aligner(toy.SCHEMA)).align(Decoder(Limits()).candidates(message))


def tweets(table: pb.FeatureTable, rows: int = 2) -> pb.Candidates:
    """Candidates that have this table of Tweets and no other features."""
    return pb.Candidates(
        tweet_ids=range(rows), created_at_ms=[0] * rows, author_index=[0] * rows, author_ids=[1], tweets=table
    )


def test_all_columns_in_the_models_order() -> None:
    """Scalars, categories by their strings, vectors: each lands in its column of the layout."""
    tables, counts = align(
        tweets(
            pb.FeatureTable(
                columns=["likes", "is_reply"],
                values=[5, NAN, NAN, 1],
                categorical=[pb.CategoricalColumn(name="language", vocabulary=["ja", "en"], indices=[0, 2])],
                vectors=[pb.VectorColumn(name="text", width=2, values=[0.5, 0.25, NAN, NAN])],
            )
        )
    )

    expected = np.array([[5, NAN, 1, 0.5, 0.25], [NAN, 1, NAN, NAN, NAN]], np.float32)
    np.testing.assert_array_equal(tables.tweets, expected)
    assert tables.tweets.dtype == np.float32
    assert counts == Counts(ColumnCounts(0, 2, 0, 0), ColumnCounts(0, 2, 0, 0), ColumnCounts(4, 0, 0, 0))


def test_a_subset_in_another_order_among_strangers() -> None:
    """What the model does not know is counted and ignored, what is not sent is absent."""
    tables, counts = align(
        tweets(
            pb.FeatureTable(
                columns=["mood", "is_reply", "weather", "likes"],
                values=[9, 1, 9, 7, 9, 0, 9, NAN],
                categorical=[pb.CategoricalColumn(name="colour", vocabulary=["red"], indices=[0, 0])],
            )
        )
    )

    np.testing.assert_array_equal(tables.tweets, np.array([[7, 1, NAN, NAN, NAN], [NAN, 0, NAN, NAN, NAN]], np.float32))
    assert counts.tweets == ColumnCounts(present=2, absent=2, unknown=3, unknown_categories=0)


def test_sparse_columns() -> None:
    """The sparse form fills the same columns; what it does not mention is absent."""
    tables, counts = align(
        tweets(
            pb.FeatureTable(
                columns=["mood", "is_reply", "likes"],
                sparse_row_lengths=[2, 2],
                sparse_column_indices=[2, 0, 1, 2],
                sparse_values=[7, 9, 1, NAN],
            )
        )
    )

    np.testing.assert_array_equal(
        tables.tweets, np.array([[7, NAN, NAN, NAN, NAN], [NAN, 1, NAN, NAN, NAN]], np.float32)
    )
    assert counts.tweets == ColumnCounts(2, 2, 1, 0)


def test_unknown_categories_are_absent_and_counted() -> None:
    """A category that the model never saw is not taken for another one."""
    tables, counts = align(
        tweets(
            pb.FeatureTable(
                categorical=[pb.CategoricalColumn(name="language", vocabulary=["tlh", "en", "qya"], indices=[0, 1])]
            )
        )
    )

    assert math.isnan(tables.tweets[0, 2])
    assert tables.tweets[1, 2] == 0
    assert counts.tweets == ColumnCounts(1, 3, 0, 2)


@pytest.mark.parametrize(
    "table",
    [
        pb.FeatureTable(columns=["language"], values=[1, 1]),
        pb.FeatureTable(categorical=[pb.CategoricalColumn(name="likes", vocabulary=["1"], indices=[0, 0])]),
        pb.FeatureTable(vectors=[pb.VectorColumn(name="text", width=3, values=[1] * 6)]),
        pb.FeatureTable(vectors=[pb.VectorColumn(name="likes", width=1, values=[1] * 2)]),
    ],
)
def test_a_column_of_another_kind_or_width_is_unknown(table: pb.FeatureTable) -> None:
    """A name alone does not make a feature."""
    tables, counts = align(tweets(table))

    assert np.isnan(tables.tweets).all()
    assert counts.tweets == ColumnCounts(0, 4, 1, 0)


def test_each_table_has_its_own_columns() -> None:
    """The same name in another table is another feature."""
    message = tweets(pb.FeatureTable(columns=["strength"], values=[1, 1]))
    message.authors.columns.append("strength")
    message.authors.values.append(3)
    message.viewer.columns.append("sessions")
    message.viewer.values.append(4)

    tables, counts = align(message)

    np.testing.assert_array_equal(tables.viewer, np.array([[4, NAN]], np.float32))
    np.testing.assert_array_equal(tables.authors, np.array([[3, NAN]], np.float32))
    assert counts == Counts(ColumnCounts(1, 1, 0, 0), ColumnCounts(1, 1, 0, 0), ColumnCounts(0, 4, 1, 0))


def test_a_second_request_with_the_same_header_is_aligned_alike() -> None:
    """What is remembered is the map, not the values: other values and other categories come out right."""
    aligner = Aligner(toy.SCHEMA)
    first = pb.FeatureTable(
        columns=["likes"],
        values=[1, 2],
        categorical=[pb.CategoricalColumn(name="language", vocabulary=["en"], indices=[0, 1])],
    )
    second = pb.FeatureTable(
        columns=["likes"],
        values=[3, NAN],
        categorical=[pb.CategoricalColumn(name="language", vocabulary=["ja"], indices=[1, 0])],
    )
    align(tweets(first), aligner)

    tables, _ = align(tweets(second), aligner)

    expected = np.array([[3, NAN, NAN, NAN, NAN], [NAN, NAN, 1, NAN, NAN]], np.float32)
    np.testing.assert_array_equal(tables.tweets, expected)


def test_the_same_categories_under_another_header_are_aligned_anew() -> None:
    """Neither the columns nor what became of them are those of the table before."""
    aligner = Aligner(toy.SCHEMA)
    language = pb.CategoricalColumn(name="language", vocabulary=["ja"], indices=[1, 0])
    align(tweets(pb.FeatureTable(columns=["likes"], values=[3, NAN], categorical=[language])), aligner)

    tables, counts = align(
        tweets(pb.FeatureTable(columns=["is_reply", "mood"], values=[0, 9, 1, 9], categorical=[language])), aligner
    )

    expected = np.array([[NAN, 0, NAN, NAN, NAN], [NAN, 1, 1, NAN, NAN]], np.float32)
    np.testing.assert_array_equal(tables.tweets, expected)
    assert counts.tweets == ColumnCounts(present=2, absent=2, unknown=1, unknown_categories=0)


def test_a_group_without_features() -> None:
    """A model may have nothing to ask about the viewer; what is sent is unknown then."""
    schema = Schema((Feature("likes", "tweet", "continuous"),), (Head("like", 1.0, 1),))
    message = tweets(pb.FeatureTable(columns=["likes"], values=[1, 2]))
    message.viewer.columns.append("sessions")
    message.viewer.values.append(4)

    tables, counts = align(message, Aligner(schema))

    assert tables.viewer.shape == (1, 0)
    np.testing.assert_array_equal(tables.tweets, np.array([[1], [2]], np.float32))
    assert counts == Counts(ColumnCounts(0, 0, 1, 0), NOTHING, ColumnCounts(1, 0, 0, 0))


def test_take() -> None:
    """A choice of Tweets keeps the tables of viewer and authors as they are."""
    tables, _ = align(tweets(pb.FeatureTable(columns=["likes"], values=[1, 2, 3]), rows=3))

    chosen = tables.take(np.array([2, 0]))

    assert chosen.tweets[:, 0].tolist() == [3, 1]
    assert chosen.author_index.tolist() == [0, 0]
    assert chosen.authors is tables.authors


SPARSE = {"sparse_row_lengths": [2, 1], "sparse_column_indices": [2, 0, 1], "sparse_values": [7, 1, NAN]}


@pytest.mark.parametrize("form", [{"values": [1, NAN, 7, NAN, NAN, NAN]}, SPARSE], ids=["dense", "sparse"])
def test_a_model_that_takes_entries_gets_the_same_from_either_form(form: dict[str, list[float]]) -> None:
    """Present values by the model's columns; categories and vectors in a table without the scalars' columns."""
    message = tweets(
        pb.FeatureTable(
            columns=["is_reply", "likes", "mood"],
            categorical=[pb.CategoricalColumn(name="language", vocabulary=["ja", "xx"], indices=[0, 1])],
            vectors=[pb.VectorColumn(name="text", width=2, values=[0.5, 0.25, NAN, NAN])],
            **form,  # type: ignore[arg-type]  # fields of numbers
        )
    )

    tables, counts = align(message, Aligner(toy.SCHEMA, sparse_tweets=True))

    assert tables.tweet_scalars is not None
    assert [part.tolist() for part in tables.tweet_scalars] == [[0], [1], [1]]
    np.testing.assert_array_equal(tables.tweets, np.array([[1, 0.5, 0.25], [NAN, NAN, NAN]], np.float32))
    assert counts == align(message)[1]
    assert counts.tweets == ColumnCounts(4, 0, 1, 1)


@pytest.mark.parametrize("sparse_tweets", [False, True])
def test_tables_without_one_group(sparse_tweets: bool) -> None:
    """All of it is absent, the others are as they were."""
    message = tweets(pb.FeatureTable(columns=["likes"], values=[1, 2]))
    message.viewer.columns.append("sessions")
    message.viewer.values.append(4)
    tables, _ = align(message, Aligner(toy.SCHEMA, sparse_tweets))

    without = tables.without("tweets")

    assert np.isnan(without.tweets).all()
    assert without.tweets.shape == tables.tweets.shape
    assert without.tweet_scalars is None or not len(without.tweet_scalars.values)
    assert without.viewer[0, 0] == 4
    np.testing.assert_array_equal(tables.without("viewer").viewer, [[NAN, NAN]])
    assert tables.without("viewer").tweet_scalars == tables.tweet_scalars
