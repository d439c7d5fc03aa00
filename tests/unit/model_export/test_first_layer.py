"""The sparse first layer in training: against its definition taken literally, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.preprocessing import MaxAbsScaler, OneHotEncoder

from model_export.encode import Encoding, RawColumn, Slot
from model_export.first_layer import FirstLayer
from model_export.sparse import sparse_rows

NAN = float("nan")
TINY = 1.1754943508222875e-38  # the smallest float32 that is not denormal
SIZES = (3, 1, 2)
RAWS = 3
UNITS = 2

Doubles = NDArray[np.float64]
# Absent, zero, ordinary, the largest and the smallest there are, and denormal numbers.
values = st.sampled_from([NAN, 0.0, -0.0, 1.0, -2.5, 7.0, 3.4e38, -3.4e38, TINY, 1e-45, -1e-40])


def make_encoding() -> Encoding:
    slots = tuple(
        Slot(f"tweet.s{i}", "tweet", i, size, np.arange(size - 1, dtype=np.float32)) for i, size in enumerate(SIZES)
    )
    return Encoding(slots, tuple(RawColumn(f"tweet.r{i}", "tweet", len(SIZES) + i, log=False) for i in range(RAWS)))


def make_layer() -> FirstLayer:
    torch.manual_seed(0)
    layer = FirstLayer(make_encoding(), UNITS, 0, np.ones(sum(SIZES), np.int64), np.ones(RAWS, np.int64))
    torch.nn.init.normal_(layer.raw_bias)
    torch.nn.init.normal_(layer.bias)
    return layer.train()


class SlowLayer:
    """The definition, one feature of one row at a time, and its derivatives, in float64."""

    def __init__(self, layer: FirstLayer) -> None:
        state = {name: value.double().numpy().copy() for name, value in layer.state_dict().items()}
        self.rows: Doubles = state["table.rows"]
        self.weights: Doubles = state["raw_weights"]
        self.raw_bias: Doubles = state["raw_bias"]
        self.bias: Doubles = state["bias"]
        self.max = [0.0] * RAWS

    def step(
        self, bins: NDArray[np.uint16], raw: NDArray[np.float32], gradient: Doubles
    ) -> tuple[Doubles, dict[str, Doubles]]:
        """h [n, K] of a training batch, and the gradient by each parameter when that by h is `gradient`."""
        for row in raw.tolist():
            for i, x in enumerate(row):
                if x == x and abs(x) > self.max[i]:
                    self.max[i] = abs(x)
        h = np.zeros((len(bins), UNITS))
        by = {name: np.zeros_like(getattr(self, name)) for name in ("rows", "weights", "raw_bias", "bias")}
        for n in range(len(bins)):
            h[n] = self.bias
            by["bias"] += gradient[n]
            start = 0
            for size, chosen in zip(SIZES, bins[n].tolist(), strict=True):
                if chosen > 0:
                    h[n] += self.rows[start + chosen - 1]
                    by["rows"][start + chosen - 1] += gradient[n]
                start += size
            for i, x in enumerate(raw[n].tolist()):
                if x == x:
                    scale = self.max[i] if self.max[i] >= TINY else 1.0
                    y = x / scale + self.raw_bias[i]
                    h[n] += y * self.weights[i]
                    by["weights"][i] += y * gradient[n]
                    by["raw_bias"][i] += self.weights[i] @ gradient[n]
        return h, by


batches = st.lists(
    st.lists(
        st.tuples(st.tuples(*(st.integers(0, size) for size in SIZES)), st.tuples(*[values] * RAWS)),
        min_size=1,
        max_size=5,
    ),
    min_size=1,
    max_size=3,
)


@given(batches)
@settings(max_examples=150)
def test_batches_one_after_the_other_are_those_of_the_slow_reference(
    stream: list[list[tuple[tuple[int, ...], tuple[float, ...]]]],
) -> None:
    """Sums, gradients and running max, whatever is absent, zero, huge or denormal."""
    layer = make_layer()
    slow = SlowLayer(layer)
    offsets = make_encoding().offsets
    for rows in stream:
        bins = np.array([row[0] for row in rows], np.uint16)
        raw = np.array([row[1] for row in rows], np.float32)
        gradient = np.random.default_rng(len(rows)).normal(size=(len(rows), UNITS))

        h = layer(sparse_rows(bins, offsets, sum(SIZES)), torch.from_numpy(raw))
        layer.zero_grad()
        h.backward(torch.from_numpy(gradient).float())
        expected, by = slow.step(bins, raw, gradient)

        np.testing.assert_allclose(h.detach(), expected, rtol=1e-5, atol=1e-5)
        for name, parameter in (
            ("rows", layer.table.get_parameter("rows")),
            ("weights", layer.raw_weights),
            ("raw_bias", layer.raw_bias),
            ("bias", layer.bias),
        ):
            assert parameter.grad is not None
            np.testing.assert_allclose(parameter.grad, by[name], rtol=1e-5, atol=1e-5)
        assert layer.running_max.tolist() == slow.max


def test_agrees_with_scikit_learn_over_many_batches() -> None:
    """Scaled by an online MaxAbsScaler, one-hot by an encoder, through a matrix product."""
    layer, encoding = make_layer(), make_encoding()
    scaler = MaxAbsScaler()
    encoder = OneHotEncoder(
        categories=[np.arange(1, size + 1) for size in SIZES], handle_unknown="ignore", sparse_output=False
    )
    rng = np.random.default_rng(0)
    table, weights, raw_bias, bias = (
        p.detach().double().numpy()
        for p in (layer.table.get_parameter("rows"), layer.raw_weights, layer.raw_bias, layer.bias)
    )
    for _ in range(5):
        raw = rng.normal(0, 3, (50, RAWS)).astype(np.float32)
        raw[rng.random(raw.shape) < 0.3] = NAN
        bins = np.stack([rng.integers(0, size + 1, 50) for size in SIZES], axis=1).astype(np.uint16)

        h = layer(sparse_rows(bins, encoding.offsets, sum(SIZES)), torch.from_numpy(raw))

        scaled = scaler.partial_fit(raw).transform(raw) + raw_bias
        one_hot = encoder.fit_transform(bins)
        expected = one_hot @ table + np.nan_to_num(scaled, nan=0.0) @ weights + bias
        np.testing.assert_allclose(h.detach(), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.running_max, scaler.max_abs_)


@pytest.mark.parametrize("seen", [0.0, 1e-45, 1e-40])
def test_a_column_of_denormal_numbers_has_a_scale_that_can_be_divided_by(seen: float) -> None:
    """1 / scale is finite in float32, so a graph that multiplies by it answers numbers."""
    layer = make_layer()
    bins = sparse_rows(np.zeros((1, 3), np.uint16), make_encoding().offsets, sum(SIZES))

    layer(bins, torch.full((1, RAWS), seen))

    assert layer.scale().tolist() == [1.0] * RAWS
    with np.errstate(all="raise"):
        assert np.isfinite(1 / np.full(1, TINY, np.float32)).all()
