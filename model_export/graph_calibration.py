"""The probabilities of all heads, and their calibration, as graph nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_export.graph_writer import GraphWriter
from model_export.weights import Floats, Knots

_BEYOND = 128.0


def add_sigmoid(graph: GraphWriter, logits: str, output: str) -> None:
    """Adds `output` = 1 / (1 + exp(-logits)), good to the last digits at any x.

    onnxruntime's Sigmoid is off by 1e-3 of a probability of 2e-4, and falls in places where x rises: it would tie and
    swap Tweets by what rare heads say.
    """
    odds_against = graph.node("Exp", [graph.node("Neg", [logits], f"{output}/negated")], f"{output}/odds_against")
    one = graph.constant(f"{output}/one", np.ones((), np.float32))
    graph.node("Reciprocal", [graph.node("Add", [odds_against, one], f"{output}/plus_one")], output)


def add_calibration(graph: GraphWriter, logits: str, calibration: Sequence[Knots]) -> str:
    """Adds the calibrated form of logits [N, H]; returns it, [N, H].

    The map of a head is its value at the first knot and a term for each segment: how much of the segment lies below
    the logit, from none to all of it, times the segment's rise. Each term rises with the logit to the last bit, and so
    does their sum. The segments beyond the ends are `_BEYOND` long: there no probability is told from 0 or 1.
    """
    factor, offset, rise, first = _segments(calibration)
    # A column for each segment of each head: the head's logit times the factor, others times zero.
    constants = [graph.constant("calibration/factors", factor), graph.constant("calibration/offsets", offset)]
    away = graph.node("Gemm", [logits, *constants], "calibration/away")
    ends = [graph.constant(f"calibration/{name}", np.array(x, np.float32)) for name, x in (("none", 0), ("all", 1))]
    shares = graph.node("Clip", [away, *ends], "calibration/shares")
    constants = [graph.constant("calibration/rises", rise), graph.constant("calibration/first", first)]
    return graph.node("Gemm", [shares, *constants], "calibration/logits")


def _segments(calibration: Sequence[Knots]) -> tuple[Floats, Floats, Floats, Floats]:
    """The S segments of H heads.

    Returns:
        Factors [H, S] and offsets [S] that make a head's logit the share of the segment that lies below it, not yet
        clipped; for the segment below the first knot the share that lies above. Rises [S, H], and where these start:
        values at the first knots [H].
    """
    heads = len(calibration)
    # Powers of two as factors leave what is beyond the ends as exact as the logit is.
    factors = [np.concatenate([[-1 / _BEYOND], 1 / np.diff(_wide(k.x)), [1 / _BEYOND]]) for k in calibration]
    starts = [np.concatenate([knots.x[:1], knots.x]) for knots in calibration]
    rises = [np.concatenate([[-_BEYOND], np.diff(_wide(k.y)), [_BEYOND]]) for k in calibration]
    of_head = np.equal.outer(np.arange(heads), np.repeat(np.arange(heads), [len(f) for f in factors]))
    factor = np.concatenate(factors)
    return (
        (of_head * factor).astype(np.float32),
        (-factor * np.concatenate(starts)).astype(np.float32),
        (of_head * np.concatenate(rises)).T.astype(np.float32),
        np.array([knots.y[0] for knots in calibration], np.float32),
    )


def _wide(values: Floats) -> NDArray[np.float64]:
    return values.astype(np.float64)
