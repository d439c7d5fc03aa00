"""Turns tables in the model's columns into requests, as a timeline backend would send them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_export.datasets.world import Session
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.schema import Feature, Group, GroupLayout, Schema


def rank_timeline_request(session: Session, schema: Schema) -> pb.RankTimelineRequest:
    """The request for one visit of the simulated world, whose tables are in the columns of `schema`."""
    return pb.RankTimelineRequest(
        viewer_id=session.viewer_id,
        last_visit_ms=session.last_visit_ms,
        request_time_ms=session.request_time_ms,
        candidates=candidates(
            schema,
            session.tables,
            tweet_ids=session.tweet_ids,
            created_at_ms=session.created_at_ms,
            author_index=session.author_index,
            author_ids=session.author_ids,
        ),
    )


def candidates(
    schema: Schema,
    tables: dict[Group, NDArray[np.float32]],
    *,
    tweet_ids: NDArray[np.int64],
    created_at_ms: NDArray[np.int64],
    author_index: NDArray[np.int64],
    author_ids: NDArray[np.int64],
) -> pb.Candidates:
    """Candidates with their features.

    Args:
        schema: Whose layouts the tables are in.
        tables: `viewer` [1, Fv], `author` [A, Fa], `tweet` [N, Ft], NaN = absent.
        tweet_ids: [N].
        created_at_ms: [N], Unix ms.
        author_index: [N], rows of the author table.
        author_ids: [A].
    """
    return pb.Candidates(
        tweet_ids=tweet_ids,
        created_at_ms=created_at_ms,
        author_index=author_index.astype(np.uint32),
        author_ids=author_ids,
        viewer=feature_table(schema.layouts["viewer"], tables["viewer"]),
        authors=feature_table(schema.layouts["author"], tables["author"]),
        tweets=feature_table(schema.layouts["tweet"], tables["tweet"]),
    )


def feature_table(layout: GroupLayout, table: NDArray[np.float32]) -> pb.FeatureTable:
    """One group's table float32 [rows, layout.width] as a message: dense scalars, categoricals, vectors."""
    scalars = len(layout.scalars)
    return pb.FeatureTable(
        columns=[feature.name for feature in layout.scalars],
        values=np.ascontiguousarray(table[:, :scalars]).ravel(),
        categorical=[_categorical(feature, table[:, layout.offsets[feature.name]]) for feature in layout.categoricals],
        vectors=[
            pb.VectorColumn(
                name=feature.name,
                width=feature.width,
                values=np.ascontiguousarray(table[:, start : start + feature.width]).ravel(),
            )
            for feature in layout.vectors
            for start in (layout.offsets[feature.name],)
        ],
    )


def _categorical(feature: Feature, column: NDArray[np.float32]) -> pb.CategoricalColumn:
    """With a dictionary of the categories that occur, and no others."""
    present = ~np.isnan(column)
    used, codes = np.unique(column[present].astype(np.int64), return_inverse=True)
    indices = np.full(len(column), len(used), np.uint32)
    indices[present] = codes
    return pb.CategoricalColumn(name=feature.name, vocabulary=[feature.vocabulary[i] for i in used], indices=indices)
