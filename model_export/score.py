"""Runs an exported graph over impressions, as the server runs it over requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model_export.datasets.records import Impressions
from service.schema import Group
from service.sparse_table import sparse_feeds, split

# Tweets of a run of the graph: what it holds in between grows with them.
_ROWS_MAX = 2_048

INPUT_OF_GROUP: dict[Group, str] = {"viewer": "viewer", "author": "authors", "tweet": "tweets"}


def open_graph(model: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """An onnxruntime session of a graph; a view is so small that a second thread costs more than it gives."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def score(
    graph: onnxruntime.InferenceSession, impressions: Impressions
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(raw probabilities, calibrated probabilities), float32 [n, H] each.

    A run of the graph has one viewer row, so it takes consecutive impressions that share one. Each impression brings
    an author row of its own: the answer is the same as with shared ones.
    """
    raw, calibrated = [], []
    for rows in _runs(impressions.tables["viewer"]):
        tables = {group: table[rows] for group, table in impressions.tables.items()}
        tables["viewer"] = tables["viewer"][:1]
        feeds = make_feeds(graph, tables, np.arange(rows.stop - rows.start))
        answer = graph.run(["raw_probabilities", "probabilities"], feeds)
        raw.append(answer[0])
        calibrated.append(answer[1])
    return np.concatenate(raw), np.concatenate(calibrated)


def _runs(viewer: NDArray[np.float32]) -> Iterator[slice]:
    """Those of one viewer, at most _ROWS_MAX rows each."""
    for rows in same_viewer(viewer):
        for start in range(rows.start, rows.stop, _ROWS_MAX):
            yield slice(start, min(start + _ROWS_MAX, rows.stop))


def make_feeds(
    graph: onnxruntime.InferenceSession, tables: Mapping[Group, NDArray[np.float32]], author_index: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """A graph's inputs, dense or sparse as it takes them, of whole tables: one viewer row, A authors, N Tweets."""
    widths = {node.name: node.shape[-1] for node in graph.get_inputs()}
    feeds: dict[str, NDArray[Any]] = {"author_index": author_index}
    for group, name in INPUT_OF_GROUP.items():
        table = tables[group]
        if f"{name}_values" in widths:
            scalars = table.shape[1] - widths.get(name, 0)
            table, entries = split(table, scalars)
            feeds |= sparse_feeds(name, entries, len(table), scalars)
        if name in widths:
            feeds[name] = table
    return feeds


def same_viewer(viewer: NDArray[np.float32]) -> Iterator[slice]:
    """Runs of equal rows of a viewer table [n, Fv]; bits are compared, so absent equals absent."""
    bits = np.ascontiguousarray(viewer).view(np.int32)
    changes = np.flatnonzero((bits[1:] != bits[:-1]).any(axis=1)) + 1
    for start, stop in zip([0, *changes], [*changes, len(viewer)], strict=True):
        yield slice(int(start), int(stop))
