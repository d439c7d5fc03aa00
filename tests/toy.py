"""A model small enough to work out by hand, and builders of requests for it.

Every present number x of a column counts (x + 1) times the column's weights, an absent one nothing. Their sum is
clipped to [0, 1] and called the raw probability; half of it is the calibrated one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.bundle import write_bundle
from service.generated.timelines.ranking.v1 import golden_pb2, ranking_pb2
from service.schema import Feature, Group, Head, Schema

SCHEMA = Schema(
    features=(
        Feature("sessions", "viewer", "continuous", "count"),
        Feature("device", "viewer", "categorical", vocabulary=("phone", "tablet")),
        Feature("strength", "author", "continuous"),
        Feature("origin", "author", "categorical", vocabulary=("search", "contacts", "suggested")),
        Feature("likes", "tweet", "continuous", "count"),
        Feature("is_reply", "tweet", "binary"),
        Feature("language", "tweet", "categorical", vocabulary=("en", "ja")),
        Feature("text", "tweet", "vector", width=2),
    ),
    heads=(Head("like", 1.0, 1), Head("reply", 2.0, 1), Head("negative", 3.0, -1)),
)

# Group -> [columns of its table, heads].
WEIGHTS: dict[Group, NDArray[np.float32]] = {
    "viewer": np.array([[0.010, 0.000, 0.000], [0.020, 0.010, 0.000]], np.float32),
    "author": np.array([[0.100, 0.010, 0.000], [0.000, 0.020, 0.010]], np.float32),
    "tweet": np.array(
        [[0.001, 0.000, 0.000], [0.000, 0.050, 0.000], [0.010, 0.000, 0.000], [0.010, 0.0, 0.002], [0.0, 0.01, 0.0]],
        np.float32,
    ),
}
ICYMI_RELEVANCE_MIN = 0.2


def model_bytes(schema: Schema = SCHEMA, weights: Mapping[Group, NDArray[np.float32]] = WEIGHTS) -> bytes:
    """The ONNX graph."""
    widths = {group: layout.width for group, layout in schema.layouts.items()}
    heads = len(schema.heads)
    constants: dict[str, Any] = {"zero": np.float32(0), "one": np.float32(1), "half": np.float32(0.5)}
    constants |= {f"{group}_weights": weights[group] for group in weights}
    inputs = [
        helper.make_tensor_value_info("viewer", TensorProto.FLOAT, [1, widths["viewer"]]),
        helper.make_tensor_value_info("authors", TensorProto.FLOAT, ["A", widths["author"]]),
        helper.make_tensor_value_info("author_index", TensorProto.INT64, ["N"]),
        helper.make_tensor_value_info("tweets", TensorProto.FLOAT, ["N", widths["tweet"]]),
    ]
    nodes = []
    for group, table in (("viewer", "viewer"), ("author", "authors"), ("tweet", "tweets")):
        nodes += [
            helper.make_node("IsNaN", [table], [f"{group}_absent"]),
            helper.make_node("Add", [table, "one"], [f"{group}_shifted"]),
            helper.make_node("Where", [f"{group}_absent", "zero", f"{group}_shifted"], [f"{group}_values"]),
            helper.make_node("MatMul", [f"{group}_values", f"{group}_weights"], [f"{group}_sum"]),
        ]
    nodes += [
        helper.make_node("Gather", ["author_sum", "author_index"], ["author_rows"], axis=0),
        helper.make_node("Add", ["tweet_sum", "author_rows"], ["two_sums"]),
        helper.make_node("Add", ["two_sums", "viewer_sum"], ["sum"]),
        helper.make_node("Clip", ["sum", "zero", "one"], ["raw_probabilities"]),
        helper.make_node("Mul", ["raw_probabilities", "half"], ["probabilities"]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", heads])
        for name in ("probabilities", "raw_probabilities")
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def raw_probabilities(
    viewer: NDArray[Any],
    authors: NDArray[Any],
    author_index: NDArray[Any],
    tweets: NDArray[Any],
    weights: Mapping[Group, NDArray[np.float32]] = WEIGHTS,
) -> NDArray[np.float64]:
    """What the graph answers, the slow way: [N, heads] from tables in the schema's layout."""
    rows: list[list[float]] = []
    for tweet, author in zip(tweets, author_index, strict=True):
        total = [0.0] * weights["tweet"].shape[1]
        by_group: dict[Group, NDArray[Any]] = {"viewer": viewer[0], "author": authors[author], "tweet": tweet}
        for group, values in by_group.items():
            for x, by_head in zip(values, weights[group], strict=True):
                if not math.isnan(x):
                    total = [t + (float(x) + 1) * float(w) for t, w in zip(total, by_head, strict=True)]
        rows.append([min(max(t, 0.0), 1.0) for t in total])
    return np.array(rows, np.float64).reshape(len(rows), weights["tweet"].shape[1])


def manifest_fields(schema: Schema = SCHEMA) -> dict[str, Any]:
    """What the maker of the toy bundle states."""
    widths = {group: layout.width for group, layout in schema.layouts.items()}
    heads = len(schema.heads)
    return {
        "schema": schema.to_json(),
        "graph": {
            "precision": "float32",
            "inputs": [
                {"name": "viewer", "dtype": "float32", "shape": [1, widths["viewer"]]},
                {"name": "authors", "dtype": "float32", "shape": ["A", widths["author"]]},
                {"name": "author_index", "dtype": "int64", "shape": ["N"]},
                {"name": "tweets", "dtype": "float32", "shape": ["N", widths["tweet"]]},
            ],
            "outputs": [
                {"name": "probabilities", "dtype": "float32", "shape": ["N", heads]},
                {"name": "raw_probabilities", "dtype": "float32", "shape": ["N", heads]},
            ],
        },
        "law": None,
        "plan": {"name": "toy"},
        "metrics": {},
        "calibration": {h.name: {"method": "isotonic", "positives": 1, "knots": 2} for h in schema.heads},
        "icymi_relevance_min": ICYMI_RELEVANCE_MIN,
    }


def candidates(
    likes: Sequence[float],
    author_index: Sequence[int] | None = None,
    strength: Sequence[float] = (1.0,),
    created_at_ms: Sequence[int] | None = None,
) -> ranking_pb2.Candidates:
    """Tweets 1, 2, ... (by default of author 101) that differ in likes; all the toy's other features are absent."""
    n = len(likes)
    return ranking_pb2.Candidates(
        tweet_ids=range(1, n + 1),
        created_at_ms=range(1_000, 1_000 + n) if created_at_ms is None else created_at_ms,
        author_index=[0] * n if author_index is None else author_index,
        author_ids=range(101, 101 + len(strength)),
        authors=ranking_pb2.FeatureTable(columns=["strength"], values=strength),
        tweets=ranking_pb2.FeatureTable(columns=["likes"], values=likes),
    )


def golden_file(weights: Mapping[Group, NDArray[np.float32]] = WEIGHTS) -> golden_pb2.GoldenFile:
    """Three Tweets by two authors, with answers worked out by `raw_probabilities`."""
    asked = candidates([0.0, 10.0, 99.0], author_index=[0, 1, 1], strength=[0.0, 2.0])
    nan = math.nan
    raw = raw_probabilities(
        viewer=np.array([[nan, nan]]),
        authors=np.array([[0.0, nan], [2.0, nan]]),
        author_index=np.array([0, 1, 1]),
        tweets=np.array([[likes, nan, nan, nan, nan] for likes in (0.0, 10.0, 99.0)]),
        weights=weights,
    )
    signed = [h.sign * h.weight for h in SCHEMA.heads]
    response = ranking_pb2.ScoreTweetsResponse(
        tweet_ids=asked.tweet_ids,
        heads=SCHEMA.head_names,
        probabilities=(raw / 2).ravel(),
        raw_probabilities=raw.ravel(),
        scores=(raw / 2) @ signed,
    )
    request = ranking_pb2.ScoreTweetsRequest(viewer_id=7, candidates=asked, raw=True)
    return golden_pb2.GoldenFile(cases=[golden_pb2.GoldenCase(request=request, response=response)])


def write(directory: Path, weights: Mapping[Group, NDArray[np.float32]] = WEIGHTS, **stated: Any) -> Path:
    """Writes the toy bundle, or one of other weights, to `directory`; keywords replace what its manifest states."""
    golden = golden_file(weights).SerializeToString()
    write_bundle(directory, model_bytes(weights=weights), manifest_fields() | stated, golden)
    return directory
