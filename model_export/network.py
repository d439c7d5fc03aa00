"""The network in torch: sparse linear first layer, trunk, one tower per head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.encode import Encoding
from model_export.first_layer import Counts, FirstLayer, Part
from model_export.sparse import SparseRows
from model_export.weights import Binned, Categorical, Cross, Dense, Dots, GroupWeights, NetWeights, Raw, Towers
from service.schema import GROUPS, Group

Floats = NDArray[np.float32]

# The name of a net's codes of bins among its parameters, where it has any.
CODES = "first.table.codes"


@dataclass(frozen=True)
class NetworkPlan:
    """The shape of the net.

    Attributes:
        trunk: `linear`: the first layer's units are the logits. `mlp`: dense layers, then a tower per head.
            `dcn`: the same behind low-rank crosses of the first layer's units.
        units: Of the first layer; `linear` has one per head instead.
        directions: Of each slot of the first layer (`model_export.first_layer.SpannedRows`); 0: all rows are free, as
            they always are in a `linear` net.
        hidden: Units of the dense layers.
        tower_units: Of each head's hidden layer.
        crosses: Cross layers; `dcn` only.
        cross_rank: Of each cross layer.
        dropout: Share of units dropped behind the first layer and each dense layer while training.
        wide: Whether a linear net of the same features is added to the logits and trained with the rest (Cheng et al.
            2016, "Wide & Deep"); a `linear` net is one already.
        standardize: Whether raw values enter training with mean 0 and variance 1 over the examples that have them; in
            the graph their weights and biases do that.
    """

    trunk: Literal["linear", "mlp", "dcn"] = "dcn"
    units: int = 256
    directions: int = 2
    hidden: tuple[int, ...] = (128, 64)
    tower_units: int = 16
    crosses: int = 2
    cross_rank: int = 32
    dropout: float = 0.0
    wide: bool = False
    standardize: bool = False


class CrossLayer(nn.Module):
    """A low-rank DCN-v2 layer (Wang et al. 2021): y = x0 * (x @ down @ up + bias) + x."""

    def __init__(self, width: int, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.randn(width, rank) / width**0.5)
        # Small, so that the layer starts near y = x.
        self.up = nn.Parameter(torch.randn(rank, width) * 0.3 / rank**0.5)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """x0 and x, both [n, D] -> y [n, D]."""
        return first * (x @ self.down @ self.up + self.bias) + x


class TowerLayer(nn.Module):
    """One hidden layer and one logit per head, all heads side by side: [n, D] -> [n, H]."""

    def __init__(self, width: int, heads: int, units: int):
        super().__init__()
        self.hidden = nn.Linear(width, heads * units)
        self.out = nn.Parameter(torch.randn(heads, units) / units**0.5)
        self.bias = nn.Parameter(torch.zeros(heads))

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        hidden = self.hidden(x).relu().unflatten(1, self.out.shape)  # [n, H, T]
        logits: Tensor = (hidden * self.out).sum(dim=2) + self.bias
        return logits


class Network(nn.Module):
    """The whole net; `forward` gives logits [n, H] in the sampled world."""

    def __init__(
        self,
        plan: NetworkPlan,
        encoding: Encoding,
        heads: int,
        row_counts: Counts | None = None,
        raw_counts: Counts | None = None,
        without: Part | None = None,
    ):
        """Draws the starting weights from torch's generator.

        Args:
            plan: The shape.
            encoding: What the net reads.
            heads: Logits.
            row_counts: As `FirstLayer` takes them; None: all alike.
            raw_counts: Likewise.
            without: As `FirstLayer` takes it.
        """
        super().__init__()
        self.plan = plan
        self.encoding = encoding
        linear = plan.trunk == "linear"
        units = heads if linear else plan.units
        self.wide = plan.wide and not linear
        row_counts = np.ones(encoding.rows, np.int64) if row_counts is None else row_counts
        raw_counts = np.ones(len(encoding.raw_names), np.int64) if raw_counts is None else raw_counts
        # The linear part's logits are the first layer's last units.
        sums, directions = units + heads if self.wide else units, 0 if linear else plan.directions
        self.first = FirstLayer(encoding, sums, directions, row_counts, raw_counts, without, plan.standardize)
        if linear:  # Nothing breaks a symmetry here: what is drawn would only be noise in the logits.
            self.first.start_at_zero(0)
        elif self.wide:
            self.first.start_at_zero(units)
        self.dropout = nn.Dropout(plan.dropout)
        widths = (units, *plan.hidden)
        crosses = plan.crosses if plan.trunk == "dcn" else 0
        self.crosses = nn.ModuleList(CrossLayer(units, plan.cross_rank) for _ in range(crosses))
        self.norm = None if linear else nn.BatchNorm1d(units)
        self.dense = nn.ModuleList([] if linear else [nn.Linear(width, units) for width, units in pairwise(widths)])
        self.towers = None if linear else TowerLayer(widths[-1], heads, plan.tower_units)

    def forward(self, bins: SparseRows, raw: Tensor) -> Tensor:
        """What the first layer takes -> logits."""
        sums: Tensor = self.first(bins, raw)
        if self.towers is None:
            return sums
        x = self._trunk_input(sums)
        for dense in self.dense:
            x = self.dropout(dense(x).relu())
        logits: Tensor = self.towers(x)
        return logits + sums[:, self.plan.units :] if self.wide else logits

    def trunk_input(self, bins: SparseRows, raw: Tensor) -> Tensor:
        """What the dense layers take, [n, K], none below zero; of a net that has them.

        Raises:
            ValueError: The net is linear.
        """
        return self._trunk_input(self.first(bins, raw))

    def _trunk_input(self, sums: Tensor) -> Tensor:
        if self.norm is None:
            raise ValueError("a linear net has no trunk")
        first = x = self.norm(sums[:, : self.plan.units])
        for cross in self.crosses:
            x = cross(first, x)
        taken: Tensor = self.dropout(x.relu())
        return taken

    def set_base_logits(self, logits: Floats) -> None:
        """Starts the heads [H] at what they would predict without features."""
        bias = self.first.bias if self.towers is None else self.towers.bias
        with torch.no_grad():
            bias.copy_(torch.from_numpy(logits))

    def to_weights(self) -> NetWeights:
        """The net as plain arrays, batch normalization folded into the first layer in double precision."""
        state = {name: value.detach().double().numpy() for name, value in self.state_dict().items()}
        factor, bias = self._folded_norm(state)
        rows = _float32(self.first.table().detach().double().numpy() * factor)
        scale, raw_bias, raw_weights = self.first.raw_form()
        values = Raw(
            np.arange(len(scale)),
            log=False,
            scale=_float32(scale),
            bias=_float32(raw_bias),
            weights=_float32(raw_weights * factor),
        )
        dots = _chosen(values, range(len(self.encoding.raws), len(scale)))
        return NetWeights(
            groups={group: self._group_weights(group, rows, values) for group in GROUPS},
            bias=_float32(bias),
            crosses=tuple(
                Cross(*(_float32(state[f"crosses.{i}.{name}"]) for name in ("down", "up", "bias")))
                for i in range(len(self.crosses))
            ),
            relu=self.towers is not None,
            trunk=tuple(_dense(state, f"dense.{i}") for i in range(len(self.dense))),
            towers=None
            if self.towers is None
            else Towers(_dense(state, "towers.hidden"), _float32(state["towers.out"]), _float32(state["towers.bias"])),
            dots=Dots(tuple(dot.pair for dot in self.encoding.dots), dots) if self.encoding.dots else None,
            wide=self.wide,
        )

    def _folded_norm(self, state: dict[str, NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(what the first layer's weights are multiplied by, its bias after that), one of each for every sum."""
        factor, bias = np.ones(len(state["first.bias"])), state["first.bias"].copy()
        if self.norm is not None:
            units = self.plan.units
            factor[:units] = state["norm.weight"] / np.sqrt(state["norm.running_var"] + self.norm.eps)
            bias[:units] = (bias[:units] - state["norm.running_mean"]) * factor[:units] + state["norm.bias"]
        return factor, bias

    def _group_weights(self, group: Group, rows: Floats, values: Raw) -> GroupWeights:
        binned: list[Binned] = []
        categoricals: list[Categorical] = []
        for slot, offset in zip(self.encoding.slots, self.encoding.offsets, strict=True):
            weights = rows[offset : offset + slot.size]
            if slot.group != group:
                continue
            if slot.boundaries is None:
                categoricals.append(Categorical(slot.column, weights))
            else:
                binned.append(Binned(slot.column, slot.boundaries, weights))
        raws: list[Raw] = []
        for log in (False, True):
            chosen = [i for i, raw in enumerate(self.encoding.raws) if raw.group == group and raw.log == log]
            if chosen:
                columns = np.array([self.encoding.raws[i].column for i in chosen], np.int64)
                raws.append(replace(_chosen(values, chosen), columns=columns, log=log))
        return GroupWeights(tuple(binned), tuple(categoricals), tuple(raws))


def _chosen(values: Raw, chosen: Sequence[int]) -> Raw:
    """These raw values, by number; columns count them."""
    index = np.array(chosen, np.int64)
    scale, bias, weights = values.scale[index], values.bias[index], values.weights[index]
    return Raw(np.arange(len(index)), log=False, scale=scale, bias=bias, weights=weights)


def _dense(state: dict[str, NDArray[np.float64]], name: str) -> Dense:
    """A linear layer of torch, which keeps its matrix as [out, in], and the relu behind it."""
    return Dense(_float32(state[f"{name}.weight"].T), _float32(state[f"{name}.bias"]), relu=True)


def _float32(array: NDArray[np.float64]) -> Floats:
    return np.ascontiguousarray(array, np.float32)
