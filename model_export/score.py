"""Runs an exported graph over impressions, as the server runs it over requests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model_export.datasets.records import Impressions

INPUT_OF_GROUP = {"viewer": "viewer", "author": "authors", "tweet": "tweets"}


def open_graph(model: bytes, threads: int = 2) -> onnxruntime.InferenceSession:
    """An onnxruntime session of a graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def score(
    graph: onnxruntime.InferenceSession, impressions: Impressions
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(raw probabilities, calibrated probabilities), float32 [n, H] each.

    A run of the graph has one viewer row, so it takes as many consecutive impressions as share one. Each impression
    brings an author row of its own: the answer is the same as with shared ones.
    """
    inputs = {node.name for node in graph.get_inputs()}
    raw, calibrated = [], []
    for rows in same_viewer(impressions.tables["viewer"]):
        feeds: dict[str, NDArray[np.generic]] = {"author_index": np.arange(rows.stop - rows.start)}
        for group, name in INPUT_OF_GROUP.items():
            if name in inputs:
                one = slice(rows.start, rows.start + 1) if name == "viewer" else rows
                feeds[name] = impressions.tables[group][one]  # type: ignore[index]  # its keys are the groups
        answer = graph.run(["raw_probabilities", "probabilities"], feeds)
        raw.append(answer[0])
        calibrated.append(answer[1])
    return np.concatenate(raw), np.concatenate(calibrated)


def same_viewer(viewer: NDArray[np.float32]) -> Iterator[slice]:
    """Runs of equal rows of a viewer table [n, Fv]; bits are compared, so absent equals absent."""
    bits = np.ascontiguousarray(viewer).view(np.int32)
    changes = np.flatnonzero((bits[1:] != bits[:-1]).any(axis=1)) + 1
    for start, stop in zip([0, *changes], [*changes, len(viewer)], strict=True):
        yield slice(int(start), int(stop))
