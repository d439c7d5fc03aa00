"""Puts together what a bundle holds beside the graph: golden cases and the default floor of the ICYMI module."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model_export.datasets.records import Impressions
from model_export.requests import candidates
from model_export.score import same_viewer, score
from service.bundle import GOLDEN_TWEETS_MAX
from service.generated.timelines.ranking.v1 import golden_pb2
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.relevance import relevance
from service.schema import Group, Schema


def golden_file(
    graph: onnxruntime.InferenceSession, schema: Schema, impressions: Impressions, cases: int, version: str
) -> golden_pb2.GoldenFile:
    """Views of these impressions as requests, with what the graph answers.

    Ids count from 1 within each request: they have no part in scores. A request carries each different author row
    once, so that the path over shared authors is in the proof.

    Args:
        graph: A session of the graph to ship.
        schema: Its schema.
        impressions: Views out of it are taken in turn, up to GOLDEN_TWEETS_MAX Tweets of each.
        cases: How many, at most.
        version: Of the model, for the answers.
    """
    golden = golden_pb2.GoldenFile()
    for number, view in zip(range(cases), _views(impressions), strict=False):
        raw, probabilities = score(graph, view)
        request = pb.ScoreTweetsRequest(
            request_id=f"golden-{number}", viewer_id=1, raw=True, candidates=_candidates(schema, view)
        )
        response = pb.ScoreTweetsResponse(
            request_id=request.request_id,
            tweet_ids=request.candidates.tweet_ids,
            heads=schema.head_names,
            probabilities=probabilities.ravel(),
            raw_probabilities=raw.ravel(),
            scores=relevance(probabilities, signed_weights(schema)),
            model_version=version,
        )
        golden.cases.append(golden_pb2.GoldenCase(request=request, response=response))
    return golden


def signed_weights(schema: Schema) -> NDArray[np.float64]:
    """Sign x weight of each head [H]."""
    return np.array([head.sign * head.weight for head in schema.heads])


def _views(impressions: Impressions) -> Iterator[Impressions]:
    for rows in same_viewer(impressions.tables["viewer"]):
        yield impressions.take(np.arange(rows.start, min(rows.stop, rows.start + GOLDEN_TWEETS_MAX)))


def _candidates(schema: Schema, view: Impressions) -> pb.Candidates:
    # Rows are told apart by their bits, so that absent equals absent.
    bits = np.ascontiguousarray(view.tables["author"]).view(np.int32)
    _, first, author_index = np.unique(bits, axis=0, return_index=True, return_inverse=True)
    tables: dict[Group, NDArray[np.float32]] = {
        "viewer": view.tables["viewer"][:1],
        "author": view.tables["author"][first],
        "tweet": view.tables["tweet"],
    }
    return candidates(
        schema,
        tables,
        tweet_ids=np.arange(1, len(view) + 1),
        created_at_ms=view.ids["time_ms"],
        author_index=author_index.ravel(),
        author_ids=np.arange(1, len(first) + 1),
    )
