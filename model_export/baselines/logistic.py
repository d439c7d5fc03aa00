"""Logistic regression on discretized features, and on those and their crosses.

Every scalar stands by its bin (the plan's discretizer), every component of a vector by one of equally filled bins,
every category by itself; absent features contribute nothing. With crosses, each pair of the most telling features adds
a weight per pair of bins (absent being one more bin); pairs with too many of these are hashed. Which features are most
telling: mutual information of bin and label, as a share of the label's entropy, averaged over heads.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from model_export.baselines.rows import Floats
from model_export.discretize import fit_feature
from model_export.encode import Encoding, Slot, Tables
from model_export.evaluate import cross_entropy
from model_export.sampling import prior_corrected
from model_export.weights import Binned, Categorical, GroupWeights, NetWeights
from service.schema import GROUPS, Schema

Bins = NDArray[np.uint16]

# Multiplier of Knuth's hash; odd.
HASH = 0x9E3779B1


@dataclass(frozen=True)
class LogisticPlan:
    """How logistic regressions are fitted.

    Attributes:
        inverse_penalties: scikit-learn's C; each is tried and the best on the validation days kept.
        rows_max: Training rows: evenly spread ones of those that trees learn from, where these are more. A regression
            goes over its rows hundreds of times, and gains least from more of them.
        iterations: Of L-BFGS, at most.
        crossed_features: Features whose pairs are crossed.
        cells_max: Weights of a pair; a pair with more combinations is hashed into as many.
        vector_bins: Bins of each component of a vector.
        product_bins: Bins of an inner product, more than of other numbers: the net has it by value.
    """

    inverse_penalties: tuple[float, ...] = (0.003, 0.03, 0.3)
    rows_max: int = 300_000
    iterations: int = 100
    crossed_features: int = 12
    cells_max: int = 4_096
    vector_bins: int = 16
    product_bins: int = 64

    def __post_init__(self) -> None:
        if not self.inverse_penalties or min(self.inverse_penalties) <= 0:
            raise ValueError("inverse_penalties must name at least one positive number")
        counts = (self.rows_max, self.iterations, self.cells_max, self.vector_bins, self.product_bins)
        if min(counts) < 1 or self.crossed_features < 2:
            raise ValueError("rows_max, iterations, cells_max and bins must be at least 1, crossed_features at least 2")


@dataclass(frozen=True)
class Cross:
    """Two slots that are crossed into `cells` weights."""

    first: int
    second: int
    cells: int


@dataclass(frozen=True)
class Design:
    """Which weights a row picks.

    Attributes:
        slots: Of bins that count from 1, 0 = absent.
        crosses: Of those.
    """

    slots: tuple[Slot, ...]
    crosses: tuple[Cross, ...] = ()

    @cached_property
    def encoding(self) -> Encoding:
        """What makes bins of tables."""
        return Encoding(self.slots, ())

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where the weights of each slot and then of each cross begin, and at last how many weights there are."""
        return np.cumsum([0, *(slot.size for slot in self.slots), *(cross.cells for cross in self.crosses)])

    def matrix(self, bins: Bins) -> scipy.sparse.csr_array:
        """Bins [n, S] -> ones at the weights that each row picks, [n, weights]."""
        columns = np.empty((len(bins), len(self.slots) + len(self.crosses)), np.int64)
        columns[:, : len(self.slots)] = np.where(bins > 0, bins - 1 + self.offsets[: len(self.slots)], -1)
        for i, cross in enumerate(self.crosses, start=len(self.slots)):
            columns[:, i] = self.offsets[i] + cross_cells(self.slots, cross, bins)
        present = columns >= 0
        ends = np.cumsum(np.concatenate([[0], present.sum(axis=1)]))
        picked = columns[present].astype(np.int32)
        shape = (len(bins), int(self.offsets[-1]))
        return scipy.sparse.csr_array((np.ones(len(picked), np.float32), picked, ends.astype(np.int32)), shape=shape)


def cross_cells(slots: Sequence[Slot], cross: Cross, bins: Bins) -> NDArray[np.int64]:
    """Which weight of a cross each row picks: bins [n, S] -> [n] in [0, cells)."""
    width = slots[cross.second].size + 1
    code = bins[:, cross.first].astype(np.int64) * width + bins[:, cross.second]
    exact = (slots[cross.first].size + 1) * width <= cross.cells
    return code if exact else code * HASH % (1 << 32) * cross.cells // (1 << 32)


@dataclass(frozen=True)
class Logistic:
    """Regressions of all heads over one design: logits = matrix(bins) @ weights + bias.

    Attributes:
        design: W weights.
        weights: float32 [W, H].
        bias: float32 [H].
    """

    design: Design
    weights: Floats
    bias: Floats

    def to_net(self) -> NetWeights:
        """A design without crosses as the linear net that it is."""
        if self.design.crosses:
            raise ValueError("a linear net has no crosses")
        groups = {}
        for group in GROUPS:
            slots = [
                (slot, self.weights[start : start + slot.size])
                for slot, start in zip(self.design.slots, self.design.offsets, strict=False)
                if slot.group == group
            ]
            binned = [Binned(s.column, s.boundaries, w) for s, w in slots if s.boundaries is not None]
            categoricals = [Categorical(s.column, w) for s, w in slots if s.boundaries is None]
            groups[group] = GroupWeights(tuple(binned), tuple(categoricals), ())
        return NetWeights(groups, self.bias, (), relu=False, trunk=(), towers=None)


def vector_slots(schema: Schema, tables: Tables, bins: int) -> tuple[Slot, ...]:
    """A slot for each component of each vector, its bins fitted on these tables; none for one that is never present."""
    slots = []
    for group in GROUPS:
        layout = schema.layouts[group]
        for feature in layout.vectors:
            for i in range(feature.width):
                column = layout.offsets[feature.name] + i
                values = tables[group][:, column]
                boundaries = fit_feature(values, np.ones(len(values)), bins).boundaries
                if boundaries is not None:
                    name = f"{group}.{feature.name}[{i}]"
                    slots.append(Slot(name, group, column, len(boundaries) + 1, np.array(boundaries, np.float32)))
    return tuple(slots)


def most_telling(slots: Sequence[Slot], bins: Bins, labels: NDArray[np.uint8], used: NDArray[np.bool_]) -> list[int]:
    """Slots in falling order of what their bins say about the labels: bins [n, S], labels and used [n, H]."""
    told = np.zeros(len(slots))
    for head in range(labels.shape[1]):
        y = labels[used[:, head], head]
        entropy = _entropy(np.bincount(y, minlength=2))
        for i, slot in enumerate(slots):
            cells = np.bincount(bins[used[:, head], i].astype(np.int64) * 2 + y, minlength=2 * (slot.size + 1))
            table = cells.reshape(-1, 2)
            mutual = entropy + _entropy(table.sum(axis=1)) - _entropy(cells)
            told[i] += mutual / max(entropy, 1e-12)
    order: list[int] = np.argsort(-told, kind="stable").tolist()
    return order


def _entropy(counts: NDArray[np.int64]) -> float:
    """In nat, of the distribution that these counts are."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def make_crosses(slots: Sequence[Slot], chosen: Sequence[int], cells_max: int) -> tuple[Cross, ...]:
    """All pairs of the chosen slots."""
    pairs = combinations(sorted(chosen), 2)
    return tuple(Cross(a, b, min(cells_max, (slots[a].size + 1) * (slots[b].size + 1))) for a, b in pairs)


def fit_head(
    train: tuple[scipy.sparse.csr_array, NDArray[np.uint8]],
    validation: tuple[scipy.sparse.csr_array, NDArray[np.uint8]],
    rate: float,
    plan: LogisticPlan,
) -> tuple[NDArray[np.float64], float, float]:
    """Fits one head by L-BFGS for each penalty, the strongest first, each from where the one before ended.

    Args:
        train: (matrix [n, W], labels [n]), negatives sampled; both classes are there.
        validation: Likewise, at the natural rate, of later days: the penalty is chosen by its cross-entropy.
        rate: Share of the negatives in `train`.
        plan: How.

    Returns:
        (weights [W], bias, the chosen inverse penalty).
    """
    model = LogisticRegression(max_iter=plan.iterations, tol=1e-5, warm_start=True)
    best = np.zeros(train[0].shape[1]), 0.0, 0.0
    best_score = np.inf
    for inverse_penalty in sorted(plan.inverse_penalties):
        model.set_params(C=inverse_penalty)
        with warnings.catch_warnings():
            # The iterations are bounded on purpose: the validation days say whether they were enough.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(*train)
        predicted = prior_corrected(model.predict_proba(validation[0])[:, 1].astype(np.float64), rate)
        score = cross_entropy(validation[1], predicted)
        if score < best_score:
            best, best_score = (model.coef_[0].copy(), float(model.intercept_[0]), inverse_penalty), score
    return best
