"""Training: the loss, the schedule, resuming, and when it ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from model_export.datasets.records import Impressions
from model_export.encode import Encoding, make_encoding
from model_export.examples import Examples, ExampleSet, ExampleWriter, record_type
from model_export.network import Network, NetworkPlan
from model_export.plan import FeaturePlan
from model_export.steps.discretize import Parameters, fit
from model_export.train import Epoch, Training, TrainingPlan, learning_rate, loss_of, predict, validation_rce
from service.schema import Schema

PLAN = TrainingPlan(epochs=4, patience=4, batch_rows=64, learning_rate=0.01)


@pytest.fixture
def impressions(make_impressions: Callable[[int, int], Impressions]) -> Impressions:
    return make_impressions(2_000, 0)


@pytest.fixture
def encoding(small_schema: Schema, impressions: Impressions) -> Encoding:
    features = FeaturePlan(raw_log=("tweet.likes", "author.strength"))
    return make_encoding(small_schema, features, fit(small_schema, [impressions], Parameters(bins=8)))


@pytest.fixture
def examples(encoding: Encoding, impressions: Impressions, tmp_path: Path) -> ExampleSet:
    bins, raw = encoding.encode(impressions.tables)
    record = record_type(bins.shape[1], raw.shape[1], 2)
    with ExampleWriter(tmp_path / "examples", record) as writer:
        writer.write(Examples(bins, raw, impressions.labels, np.ones_like(impressions.labels)))
    return ExampleSet(tmp_path / "examples", record)


@pytest.fixture
def start(encoding: Encoding, examples: ExampleSet) -> Callable[..., Training]:
    def make(plan: TrainingPlan = PLAN) -> Training:
        torch.manual_seed(plan.seed)
        shape = NetworkPlan(units=16, hidden=(8,), tower_units=4, crosses=1, cross_rank=4, dropout=0.1)
        network = Network(shape, encoding, heads=2)
        network.set_base_logits(np.array([-1.0, -3.5], np.float32))
        return Training(network, plan, examples)

    return make


def train(training: Training, examples: ExampleSet, epochs: int) -> None:
    for _ in range(epochs):
        training.epoch(lambda network: validation_rce(network, examples, np.ones(2)), lambda _: None)


def test_training_learns(start: Callable[..., Training], examples: ExampleSet) -> None:
    """The loss falls and the fit is better than the constant; every example is counted."""
    training = start()
    counted: list[int] = []
    first = training.epoch(lambda network: validation_rce(network, examples, np.ones(2)), counted.append)
    train(training, examples, 3)

    assert sum(counted) == 2_000
    assert len(first.losses) == len(counted) > 3
    assert np.mean(first.losses) == pytest.approx(first.loss, rel=0.01)
    assert training.history[-1].loss < first.loss
    assert training.history[-1].rce[0] > 10
    assert training.ended


def test_a_resumed_training_is_the_uninterrupted_one(
    start: Callable[..., Training], examples: ExampleSet, tmp_path: Path
) -> None:
    """Bit for bit, dropout and order of examples included."""
    whole = start()
    train(whole, examples, 4)
    interrupted = start()
    train(interrupted, examples, 2)
    interrupted.checkpoint(tmp_path / "checkpoint.pt")
    torch.manual_seed(99)

    resumed = start(PLAN)
    resumed.resume(tmp_path / "checkpoint.pt")
    train(resumed, examples, 2)

    assert [epoch.rce for epoch in resumed.history] == [epoch.rce for epoch in whole.history]
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name])
    assert all(torch.equal(whole.best[name], resumed.best[name]) for name in whole.best)


def test_the_best_epoch_is_kept_and_patience_ends_training(start: Callable[..., Training]) -> None:
    """Scores 1 3 2 2: the second epoch's weights, and an end after two that were no better."""
    training = start(TrainingPlan(epochs=9, patience=2, batch_rows=512))
    states: list[Any] = []
    for score in (1.0, 3.0, 2.0, 2.0):
        assert not training.ended
        training.epoch(lambda _, score=score: [score, math.nan], lambda _: None)  # type: ignore[misc]  # bound now
        states.append({name: value.clone() for name, value in training.network.state_dict().items()})

    assert training.ended
    assert [epoch.score for epoch in training.history] == [1, 3, 2, 2]
    assert all(torch.equal(training.best[name], states[1][name]) for name in states[1])


def test_without_any_rce_the_loss_decides(start: Callable[..., Training]) -> None:
    """Validation days without positives say nothing."""
    training = start()

    epoch = training.epoch(lambda _: [math.nan, math.nan], lambda _: None)

    assert epoch.score == -epoch.loss


def test_loss_looks_at_used_examples_only() -> None:
    """Each head's log loss over its own rows, by row of the batch; scikit-learn's figure."""
    rng = np.random.default_rng(0)
    labels, used = (rng.integers(0, 2, (40, 2)).astype(np.uint8) for _ in range(2))
    logits = rng.normal(size=(40, 2)).astype(np.float32)
    empty = np.zeros((40, 0))

    loss = loss_of(
        torch.from_numpy(logits), Examples(empty.astype(np.uint16), empty.astype(np.float32), labels, used)
    ).item()

    expected = 0.0
    for head in range(2):
        rows = used[:, head] == 1
        probabilities = 1 / (1 + np.exp(-logits[rows, head].astype(np.float64)))
        expected += log_loss(labels[rows, head], probabilities, normalize=False)
    assert loss == pytest.approx(expected / 40, rel=1e-5)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    """Up to its peak where the warm-up ends, half of it midway through the rest, nothing at the end."""
    plan = TrainingPlan(learning_rate=1.0, warmup=0.2)
    rates = [learning_rate(plan, step, 1_000) for step in range(1_000)]

    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert int(np.argmax(rates)) == pytest.approx(199, abs=1)
    assert rates[99] == pytest.approx(0.5)
    assert rates[599] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert (np.diff(rates[:199]) > 0).all()
    assert (np.diff(rates[200:]) < 0).all()


def test_codes_take_longer_steps(start: Callable[..., Training]) -> None:
    """The first step of Adam is as long as the learning rate wherever there is a gradient."""

    def first_steps(plan: TrainingPlan) -> dict[str, float]:
        training = start(plan)
        before = {name: p.detach().clone() for name, p in training.network.named_parameters()}
        training.epoch(lambda _: [0.0], lambda _: None)
        return {name: float((p.detach() - before[name]).abs().max()) for name, p in training.network.named_parameters()}

    # Of its two steps the second has the rate 0.
    one_step = replace(PLAN, epochs=1, batch_rows=1_000, warmup=0.0, weight_decay=0.0, codes_decay=0.0)
    even, longer = first_steps(one_step), first_steps(replace(one_step, codes_rate=4.0))
    assert longer.pop("first.table.codes") == pytest.approx(4 * even.pop("first.table.codes"), rel=1e-3)
    assert longer == pytest.approx(even)


@pytest.mark.parametrize("decay", ["weight_decay", "codes_decay"])
def test_codes_have_a_decay_of_their_own(start: Callable[..., Training], decay: str) -> None:
    """A step of AdamW takes learning rate x decay of a weight away, beside what the gradient asks for."""

    def stepped(plan: TrainingPlan) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        training = start(plan)
        before = {name: p.detach().clone() for name, p in training.network.named_parameters()}
        training.epoch(lambda _: [0.0], lambda _: None)
        return before, {name: p.detach() for name, p in training.network.named_parameters()}

    one_step = replace(PLAN, epochs=1, batch_rows=1_000, warmup=0.0, weight_decay=0.0, codes_decay=0.0, codes_rate=4.0)
    before, without = stepped(one_step)
    with_decay: dict[str, Any] = {decay: 0.5}
    _, decayed = stepped(replace(one_step, **with_decay))
    first_rate = learning_rate(one_step, 0, 2)  # that of the second step is 0
    for name, value in before.items():
        if name == "first.table.codes":
            share = 4 * first_rate * 0.5 if decay == "codes_decay" else 0.0
        else:
            share = first_rate * 0.5 if decay == "weight_decay" and value.dim() > 1 else 0.0
        torch.testing.assert_close(decayed[name], without[name] - share * value)


def test_prediction_keeps_the_order_of_examples(start: Callable[..., Training], examples: ExampleSet) -> None:
    """And draws no dropout."""
    network = start().network
    whole, labels = predict(network, examples.in_order())
    again, _ = predict(network, examples.in_order())

    assert whole.shape == labels.shape == (2_000, 2)
    assert (whole == again).all()
    assert (labels == next(examples.in_order()).labels).all()


def test_validation_knows_of_the_sampling(start: Callable[..., Training], examples: ExampleSet) -> None:
    """A net that predicts the sampled world's base rate has RCE 0 once corrected."""
    network = start().network
    labels = next(examples.in_order()).labels
    base = labels.mean(axis=0)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    rates = np.array([0.1, 0.5])
    odds = base / (1 - base) / rates
    network.set_base_logits(np.log(odds).astype(np.float32))

    assert validation_rce(network, examples, rates) == [pytest.approx(0, abs=1e-4)] * 2


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"patience": 0},
        {"batch_rows": 0},
        {"warmup": 1.0},
        {"learning_rate": 0.0},
        {"codes_rate": 0.0},
        {"weight_decay": -1},
        {"codes_decay": -1},
    ],
)
def test_plans_out_of_range_are_refused(values: dict[str, Any]) -> None:
    """Named in the error."""
    with pytest.raises(ValueError, match=next(iter(values))):
        TrainingPlan(**values)


def test_history_is_plain_values() -> None:
    """What goes into checkpoints and JSON."""
    epoch = Epoch(0.5, [1.0], 1.0, 10.0)

    assert Epoch(**vars(epoch)) == epoch
