"""The sparse linear first layer in torch.

It is that of `nn.IndexLinear` (github.com/torch/nn, 2017) with a table of bins beside it. What that layer leaves open
is decided like this:

* The running max of a training batch is taken over the whole batch before any of its values is scaled, so a step does
  not depend on the order of its rows.
* A value beyond the running max scales to -1 or 1. Where nothing but 0 and denormal numbers was seen, the scale is 1: a
  graph multiplies by 1 / scale, which would be infinite.
* A bin, category or raw column that no training example had starts at zero and never moves: whatever was not seen
  contributes nothing.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.encode import Encoding, Slot
from model_export.sparse import SparseRows, sum_rows

Counts = NDArray[np.int64]


class FreeRows(nn.Module):
    """A row of weights of its own for every bin and category: `forward` gives [rows, K]."""

    def __init__(self, encoding: Encoding, units: int, counts: Counts):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(encoding.rows, units) / max(len(encoding.slots), 1) ** 0.5)
        with torch.no_grad():
            self.rows[torch.from_numpy(counts == 0)] = 0.0

    def forward(self) -> Tensor:
        """The table."""
        return self.rows


class SpannedRows(nn.Module):
    """Rows that lie, slot by slot, in a space of few directions: `forward` gives [rows, K].

    row of a bin = its code [d] @ the slot's directions [d, K]. A slot says d numbers instead of K to the net, so far
    less noise is learned from the same examples, and the table that is served is the same. Codes start as what is
    known of a bin before training: 1, and its normal score (the quantile of a normal distribution at the bin's
    mid-rank among the training examples, standardized), so that a net starts from a smooth function of the value and
    learns where it is not smooth. Further codes, and all of a category's, start at random.
    """

    def __init__(self, encoding: Encoding, units: int, counts: Counts, directions: int):
        super().__init__()
        slots = len(encoding.slots)
        size_max = max((slot.size for slot in encoding.slots), default=0)
        codes = torch.zeros(slots, size_max, directions)
        real = torch.zeros(slots, size_max, dtype=torch.bool)
        for i, (slot, start) in enumerate(zip(encoding.slots, encoding.offsets, strict=True)):
            slot_counts = counts[start : start + slot.size]
            real[i, : slot.size] = True
            codes[i, : slot.size] = _starting_codes(slot, slot_counts, directions)
        self.codes = nn.Parameter(codes)
        self.directions = nn.Parameter(torch.randn(slots, directions, units) / max(slots, 1) ** 0.5)
        self._real = real

    def forward(self) -> Tensor:
        """The table."""
        return (self.codes @ self.directions)[self._real]


def _starting_codes(slot: Slot, counts: Counts, directions: int) -> Tensor:
    """[bins, d]; zeros for what no example had."""
    codes = torch.randn(slot.size, directions)
    if slot.boundaries is not None:
        codes *= 0.3
        codes[:, 0] = torch.from_numpy(normal_scores(counts))
        codes[:, 1:2] = 1.0
    codes[torch.from_numpy(counts == 0)] = 0.0
    return codes


def normal_scores(counts: Counts) -> NDArray[np.float32]:
    """For bins in order with these counts, the normal quantile of each one's mid-rank, with mean 0 and variance 1.

    All 0 where there are fewer than two bins with a count.
    """
    total = counts.sum()
    if (counts > 0).sum() < 2:
        return np.zeros(len(counts), np.float32)
    middle = (np.cumsum(counts) - counts / 2) / total
    normal = NormalDist()
    scores = np.array([normal.inv_cdf(min(max(m, 1e-6), 1 - 1e-6)) for m in middle.tolist()])
    scores -= np.average(scores, weights=counts)
    scores /= np.sqrt(np.average(scores**2, weights=counts))
    return scores.astype(np.float32)


# What the layer can be trained without, to see what it gives: the online scaling of raw values, their biases.
Part = Literal["normalization", "feature_bias"]


class FirstLayer(nn.Module):
    """h = bias + sum of the rows of what is present: (bins, raw values [n, R], NaN = absent) -> [n, K]."""

    def __init__(
        self,
        encoding: Encoding,
        units: int,
        directions: int,
        row_counts: Counts,
        raw_counts: Counts,
        without: Part | None = None,
        standardized: bool = False,
    ):
        """Draws the starting weights.

        Args:
            encoding: What the layer reads.
            units: K.
            directions: Of each slot (`SpannedRows`); 0: every row is free.
            row_counts: [rows], training examples that have each bin or category.
            raw_counts: [R], training examples that have each raw value.
            without: What to train without.
            standardized: Whether scaled raw values are brought to what `standardize` was told; the layer computes what
                one without it could, but learns sooner from values that a few large ones make small.
        """
        super().__init__()
        self._normalized = without != "normalization"
        raws = len(encoding.raw_names)
        spanned = directions > 0
        self.table: SpannedRows | FreeRows = (
            SpannedRows(encoding, units, row_counts, directions) if spanned else FreeRows(encoding, units, row_counts)
        )
        self.raw_weights = nn.Parameter(torch.randn(raws, units) / max(raws, 1) ** 0.5)
        self.raw_bias = nn.Parameter(torch.zeros(raws), requires_grad=without != "feature_bias")
        self.bias = nn.Parameter(torch.zeros(units))
        self.running_max: Tensor
        self.register_buffer("running_max", torch.zeros(raws))
        self.raw_mean: Tensor
        self.raw_deviation: Tensor
        self._standardized = standardized
        if standardized:
            self.register_buffer("raw_mean", torch.zeros(raws))
            self.register_buffer("raw_deviation", torch.ones(raws))
        with torch.no_grad():
            self.raw_weights[torch.from_numpy(raw_counts == 0)] = 0.0

    def forward(self, bins: SparseRows, raw: Tensor) -> Tensor:
        """As the class says; while training, `raw` moves the running max first."""
        absent = raw.isnan()
        raw = raw.masked_fill(absent, 0.0)
        if self.training and len(raw):
            torch.maximum(self.running_max, raw.abs().amax(dim=0), out=self.running_max)
        scaled = (raw / self.scale()).clamp(-1.0, 1.0)
        if not self._normalized:
            scaled = scaled * self.scale()
        elif self._standardized:
            scaled = (scaled * self.scale() - self.raw_mean) / self.raw_deviation
        values = (scaled + self.raw_bias).masked_fill(absent, 0.0)
        return sum_rows(bins, self.table()) + torch.addmm(self.bias, values, self.raw_weights)

    def start_at_zero(self, unit: int) -> None:
        """Takes the starting weights of the units from this one on away: nothing there need break a symmetry."""
        of_units = self.table.directions if isinstance(self.table, SpannedRows) else self.table.rows
        with torch.no_grad():
            of_units[..., unit:] = 0.0
            self.raw_weights[:, unit:] = 0.0

    def standardize(self, mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> None:
        """Raw values that are present enter as (value - mean) / deviation, both [R], deviation positive."""
        self.raw_mean.copy_(torch.from_numpy(mean))
        self.raw_deviation.copy_(torch.from_numpy(deviation))

    def raw_form(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(scale [R], bias [R], weights [R, K]) of raw values as `model_export.weights.Raw` has them."""
        scale = self.scale().double().numpy()
        bias, weights = (parameter.detach().double().numpy() for parameter in (self.raw_bias, self.raw_weights))
        if self._standardized:
            mean, deviation = self.raw_mean.double().numpy(), self.raw_deviation.double().numpy()
            bias, weights = (bias * deviation - mean) / scale, weights * (scale / deviation)[:, np.newaxis]
        return scale, bias, weights

    def normalize(self) -> None:
        """Turns a layer that was trained without normalization into the normalized one that computes the same."""
        if not self._normalized:
            with torch.no_grad():
                self.raw_weights.mul_(self.scale().unsqueeze(1))
                self.raw_bias.div_(self.scale())
            self._normalized = True

    def scale(self) -> Tensor:
        """What raw values are divided by: [R], positive."""
        return torch.where(self.running_max >= torch.finfo(torch.float32).tiny, self.running_max, 1.0)
