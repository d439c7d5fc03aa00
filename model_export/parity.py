"""How far an exported graph is from the net that it was made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from model_export.calibrate import apply_knots
from model_export.datasets.records import Impressions
from model_export.examples import Examples
from model_export.graph import Precision
from model_export.network import Network
from model_export.score import score
from model_export.train import batch_tensors, predict
from model_export.weights import Knots

# Largest difference of a raw probability. That of int8 bears on sanity only: rounding moves some probabilities by
# this much, and what it costs is measured on all of them.
DIFFERENCE_MAX: dict[Precision, float] = {"float32": 1e-5, "int8": 0.1}
_ROUNDING = 1e-6  # of a calibrated probability, float32


class ParityError(ValueError):
    """The graph does not compute what the net does."""


def torch_probabilities(network: Network, impressions: Impressions) -> NDArray[np.float32]:
    """The net's raw probabilities [n, H], from the same tables that a graph gets."""
    bins, raw = network.encoding.encode(impressions.tables)
    examples = Examples(bins, raw, impressions.labels, impressions.labels)
    return predict(network, iter([examples]))[0]


def trunk_input_max(network: Network, impressions: Impressions) -> float | None:
    """The largest value that these impressions bring to the net's trunk; None for a linear net."""
    if network.towers is None:
        return None
    bins, raw = network.encoding.encode(impressions.tables)
    examples = Examples(bins, raw, impressions.labels, impressions.labels)
    with torch.inference_mode():
        return float(network.trunk_input(*batch_tensors(examples, network.encoding)).max())


def check_parity(
    network: Network,
    graph: onnxruntime.InferenceSession,
    precision: Precision,
    impressions: Impressions,
    calibration: Sequence[Knots],
) -> float:
    """Compares torch and onnxruntime on some impressions.

    Args:
        network: The trained net.
        graph: A session of its graph.
        precision: Of the graph.
        impressions: Held out.
        calibration: In the graph, by head.

    Returns:
        The largest difference of a raw probability.

    Raises:
        ParityError: It is beyond DIFFERENCE_MAX, a calibrated probability is none that a raw one so far off would give,
            or the graph answers NaN.
    """
    expected = torch_probabilities(network, impressions)
    raw, calibrated = score(graph, impressions)
    allowed = DIFFERENCE_MAX[precision]
    difference = float(np.abs(expected - raw).max())
    if not difference <= allowed:
        raise ParityError(f"raw probabilities are up to {difference:.3g} apart, {allowed:g} allowed")
    for head, knots in enumerate(calibration):
        least, most = (apply_knots(knots, np.clip(expected[:, head] + off, 0, 1)) for off in (-allowed, allowed))
        off = float(np.maximum(least - calibrated[:, head], calibrated[:, head] - most).max())
        if not off <= _ROUNDING:
            raise ParityError(f"calibrated probabilities of head {head} are up to {off:.3g} too far off")
    return difference
