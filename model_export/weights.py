"""A trained network as plain arrays: what the trainer hands to the graph builder.

K is the width of the first layer, H the number of heads. All arrays are float32 unless stated. A value x of a column
is present unless it is NaN; what is absent contributes nothing to the first layer:

    h = bias + sum over groups, features that are present of that feature's row(s)          # [N, K]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.schema import Group

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Binned:
    """A discretised continuous or binary feature: contributes `weights[number of boundaries <= x]`.

    Attributes:
        column: Its column in the group's table.
        boundaries: [B], strictly increasing, finite.
        weights: [B + 1, K].
    """

    column: int
    boundaries: Floats
    weights: Floats


@dataclass(frozen=True)
class Categorical:
    """A categorical feature: contributes `weights[x]`.

    Attributes:
        column: Its column in the group's table; holds whole numbers in [0, V) or NaN.
        weights: [V, K].
    """

    column: int
    weights: Floats


@dataclass(frozen=True)
class Raw:
    """R columns that enter by value: each contributes `(clip(t(x) / scale, -1, 1) + bias) * weights`.

    t(x) is sign(x) * log(1 + |x|) where `log` is set and x elsewhere.

    Attributes:
        columns: [R] int64, their columns in the group's table.
        log: Whether the values go through the logarithm; one for all R.
        scale: [R], positive: the largest |t(x)| of training (1 where none was seen).
        bias: [R], the per-feature bias: added to the scaled value, so that a present zero differs from an absent one.
        weights: [R, K].
    """

    columns: NDArray[np.int64]
    log: bool
    scale: Floats
    bias: Floats
    weights: Floats


@dataclass(frozen=True)
class GroupWeights:
    """The first layer's part for one group's table."""

    binned: tuple[Binned, ...]
    categoricals: tuple[Categorical, ...]
    raws: tuple[Raw, ...]


@dataclass(frozen=True)
class VectorPair:
    """A vector of the Tweet and one of the viewer or the author, of the same width w.

    Attributes:
        tweet_columns: [w] int64, columns of the Tweet's table.
        group: The other's table, not the Tweet's.
        columns: [w] int64, columns of that table.
    """

    tweet_columns: NDArray[np.int64]
    group: Group
    columns: NDArray[np.int64]


@dataclass(frozen=True)
class Dots:
    """Inner products of D pairs, which enter by value for every Tweet; absent where either vector is.

    Attributes:
        pairs: D of them.
        raw: As for columns of a table [N, D] that holds the products: `raw.columns` count the pairs, no logarithm.
    """

    pairs: tuple[VectorPair, ...]
    raw: Raw


@dataclass(frozen=True)
class Dense:
    """y = x @ weights + bias, then max(y, 0) where `relu`; weights [in, out], bias [out]."""

    weights: Floats
    bias: Floats
    relu: bool


@dataclass(frozen=True)
class Cross:
    """A low-rank DCN-v2 layer: y = x0 * (x @ down @ up + bias) + x, x0 the input of the first of them.

    Attributes:
        down: [D, rank].
        up: [rank, D].
        bias: [D].
    """

    down: Floats
    up: Floats
    bias: Floats


@dataclass(frozen=True)
class Towers:
    """One tower per head: logit_j = max(x @ hidden.weights + hidden.bias, 0)[j-th slice of T] . out[j] + bias[j].

    Attributes:
        hidden: [D, H * T], relu; head j owns columns j*T to (j+1)*T.
        out: [H, T].
        bias: [H].
    """

    hidden: Dense
    out: Floats
    bias: Floats


@dataclass(frozen=True)
class NetWeights:
    """A whole network. raw probabilities = sigmoid(logits).

    Attributes:
        groups: The first layer, by group.
        bias: [K], of the first layer.
        crosses: Applied to h before anything else.
        relu: Whether max(h, 0) follows the crosses.
        trunk: Dense layers after it.
        towers: None for a `linear` model: then K = H and h are the logits, and there are no crosses, relu or trunk.
        dots: What products of vectors add to h; None: nothing.
        wide: Whether the last H units of h are a linear part: added to the logits, and seen by nothing between. The
            others are the D that crosses and trunk take. A net without towers has no such part.
    """

    groups: dict[Group, GroupWeights]
    bias: Floats
    crosses: tuple[Cross, ...]
    relu: bool
    trunk: tuple[Dense, ...]
    towers: Towers | None
    dots: Dots | None = None
    wide: bool = False


@dataclass(frozen=True)
class Knots:
    """Calibration of one head: raw to calibrated probability, rising, piecewise linear in the log odds of both.

    Below the first and above the last knot the log odds differ by what they do at that knot: so the best Tweets stay
    apart where the data no longer can tell them apart.

    Attributes:
        x: [B] raw log odds, strictly increasing; B >= 1.
        y: [B] calibrated log odds, strictly increasing.
    """

    x: Floats
    y: Floats
