"""Requests as a timeline backend sends them, made up for a model from its schema.

The values are drawn column by column from a sample request where it has the column, so that they look like real ones,
and from a distribution that fits the unit where it has not. Cost does not depend on whether columns go together;
which values are absent does not either, so a third of them is, at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray

import service
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.schema import Feature, Group, Head, Schema

AUTHORS = 100
ABSENT_SHARE = 1 / 3
REQUESTS = 64  # the inputs that a measurement rotates over

# Candidates per timeline view -> share of the views; as the visits of the simulated world have them, whose quantiles
# are 9 (10 %), 32 (25 %), 100 (50 %), 346 (75 %), 903 (90 %) and 2,435 (99 %).
CANDIDATES_MIX = {10: 0.15, 30: 0.15, 70: 0.20, 150: 0.15, 350: 0.15, 800: 0.12, 1_500: 0.06, 2_500: 0.02}

# A timeline view of the embedded model's world, for realistic values.
SAMPLE_REQUEST = Path(service.__file__).with_name("sample") / "request.json"

REQUEST_TIME_MS = 1_750_000_000_000
AWAY_MS = 14 * 3_600_000  # long enough for the ICYMI module

Table = Mapping[str, NDArray[np.float32]]

_BOUNDED_UNITS = ("ratio", "probability", "cosine", "score")


@dataclass(frozen=True)
class Sample:
    """Values to draw from: group -> column -> the values that were present in it, float32 [any]."""

    columns: Mapping[Group, Table]

    @staticmethod
    def of(request: pb.RankTimelineRequest) -> Sample:
        """The scalar columns of a request, sent in the dense form."""
        candidates = request.candidates
        tables: dict[Group, pb.FeatureTable] = {
            "viewer": candidates.viewer,
            "author": candidates.authors,
            "tweet": candidates.tweets,
        }
        return Sample({group: _present_values(table) for group, table in tables.items()})


NO_SAMPLE = Sample({"viewer": {}, "author": {}, "tweet": {}})


def schema_of(description: pb.DescribeModelResponse) -> Schema:
    """The schema of a served model."""
    features = [
        Feature(f.name, f.group, f.kind, f.unit, tuple(f.vocabulary), f.width)  # type: ignore[arg-type]  # strings that Feature checks
        for f in description.features
    ]
    return Schema(tuple(features), tuple(Head(h.name, h.weight, h.sign) for h in description.heads))


def requests(
    schema: Schema, tweet_counts: Sequence[int], seed: int, authors: int = AUTHORS, sample: Sample = NO_SAMPLE
) -> list[pb.RankTimelineRequest]:
    """One request for each of `tweet_counts`, each for another viewer; the same seed makes the same requests.

    All name their columns in the schema's order. Last visit AWAY_MS ago; Tweets spread evenly since then.
    """
    rng = np.random.default_rng(seed)
    return [_request(schema, f"load-{seed}-{i}", n, authors, sample, rng) for i, n in enumerate(tweet_counts)]


def standard_load(schema: Schema, tweets: int) -> list[pb.RankTimelineRequest]:
    """The requests that costs are measured on: REQUESTS of the same size, always the same ones."""
    sample = Sample.of(json_format.Parse(SAMPLE_REQUEST.read_bytes(), pb.RankTimelineRequest()))
    return requests(schema, [tweets] * REQUESTS, seed=0, sample=sample)


def mixed_counts(count: int, seed: int) -> list[int]:
    """Candidate counts of `count` timeline views, by CANDIDATES_MIX."""
    rng = np.random.default_rng(seed)
    return [int(n) for n in rng.choice(list(CANDIDATES_MIX), size=count, p=list(CANDIDATES_MIX.values()))]


def check_tweets(request: pb.RankTimelineRequest, response: pb.RankTimelineResponse) -> None:
    """Raises ValueError unless the answer's sections hold exactly the request's Tweets, each once."""
    shown = [*response.icymi.tweet_ids, *response.ranked.tweet_ids, *response.remainder.tweet_ids]
    if sorted(shown) != sorted(request.candidates.tweet_ids):
        raise ValueError(f"{request.request_id}: the answer's Tweets are not the request's")


def _request(
    schema: Schema, request_id: str, tweets: int, authors: int, sample: Sample, rng: np.random.Generator
) -> pb.RankTimelineRequest:
    def table(group: Group, rows: int) -> pb.FeatureTable:
        return _table(schema, group, rows, sample.columns[group], rng)

    # Squared: a few authors write much of what there is to see.
    author_index = (rng.random(tweets) ** 2 * authors).astype(np.uint32)
    return pb.RankTimelineRequest(
        request_id=request_id,
        viewer_id=int(rng.integers(1, 1 << 60)),
        last_visit_ms=REQUEST_TIME_MS - AWAY_MS,
        request_time_ms=REQUEST_TIME_MS,
        candidates=pb.Candidates(
            tweet_ids=_ids(tweets, rng),
            created_at_ms=REQUEST_TIME_MS - rng.integers(0, AWAY_MS, tweets),
            author_index=author_index,
            author_ids=_ids(authors, rng),
            viewer=table("viewer", 1),
            authors=table("author", authors),
            tweets=table("tweet", tweets),
        ),
    )


def _ids(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Different ids as wide as real ones: their size on the wire is that of real ids."""
    return (1 << 60) + np.cumsum(rng.integers(1, 1 << 20, count))


def _table(schema: Schema, group: Group, rows: int, sample: Table, rng: np.random.Generator) -> pb.FeatureTable:
    layout = schema.layouts[group]
    values = np.stack([_scalars(f, rows, sample, rng) for f in layout.scalars], axis=1) if layout.scalars else None
    table = pb.FeatureTable(columns=[f.name for f in layout.scalars])
    if values is not None:
        values[rng.random(values.shape) < ABSENT_SHARE] = np.nan
        table.values.extend(values.ravel().tolist())  # an array would be boxed element by element
    for feature in layout.categoricals:
        known = len(feature.vocabulary)
        indices = np.where(rng.random(rows) < ABSENT_SHARE, known, rng.integers(0, known, rows)).astype(np.uint32)
        table.categorical.add(name=feature.name, vocabulary=feature.vocabulary, indices=indices)
    for feature in layout.vectors:
        vectors = rng.normal(0, feature.width**-0.5, (rows, feature.width)).astype(np.float32)
        vectors[rng.random(rows) < ABSENT_SHARE] = np.nan
        table.vectors.add(name=feature.name, width=feature.width, values=vectors.ravel())
    return table


def _scalars(feature: Feature, rows: int, sample: Table, rng: np.random.Generator) -> NDArray[np.float32]:
    values: NDArray[Any]
    if len(sample.get(feature.name, ())):
        values = rng.choice(sample[feature.name], rows)
    elif feature.kind == "binary":
        values = rng.random(rows) < 0.2
    elif feature.unit.startswith(_BOUNDED_UNITS):
        values = rng.random(rows)
    elif feature.unit == "count":
        values = np.floor(rng.lognormal(2, 2.5, rows))
    else:
        values = rng.lognormal(2, 1.5, rows)
    return values.astype(np.float32)


def _present_values(table: pb.FeatureTable) -> Table:
    values = np.asarray(table.values, np.float32).reshape(-1, max(len(table.columns), 1))
    return {name: values[:, j][~np.isnan(values[:, j])] for j, name in enumerate(table.columns)}
