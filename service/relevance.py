"""From the heads to one number per Tweet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.decode import Floats


def relevance(probabilities: Floats, signed_weights: NDArray[np.float64]) -> Floats:
    """Sum over the heads of sign x weight x probability.

    A row's sum does not depend on the other rows: each is a dot product of its own (a matrix product would choose
    the order of additions by the number of rows).

    Args:
        probabilities: [N, heads], in [0, 1].
        signed_weights: [heads], sign x weight.

    Returns:
        float32 [N], summed in float64.
    """
    sums: NDArray[np.float64] = np.vecdot(probabilities.astype(np.float64), signed_weights)
    return sums.astype(np.float32)
