"""Training of the network on encoded examples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from model_export.distributed import ALONE, Peers
from model_export.encode import Encoding
from model_export.evaluate import relative_cross_entropy
from model_export.examples import Examples, ExampleSet
from model_export.network import CODES, Network
from model_export.sampling import prior_corrected
from model_export.sparse import SparseRows, sparse_rows

State = dict[str, Tensor]

# Points of an epoch's training curve.
_LOSS_PARTS = 50


@dataclass(frozen=True)
class TrainingPlan:
    """How the net is trained.

    Attributes:
        epochs: Passes over the examples, at most.
        patience: Epochs without a better validation score before training ends.
        batch_rows: Examples of a step, of all processes together.
        learning_rate: Its peak; it rises over the first `warmup` share of all steps and falls to 0 along a cosine.
        codes_rate: Learning rate of the codes of bins (`model_export.first_layer.SpannedRows`), as a multiple of that
            of all else. A step of Adam is about as long as the learning rate, and from the smooth function that codes
            start as to a threshold it is a long way.
        weight_decay: Of AdamW, on matrices but the codes; not on biases.
        codes_decay: The same on the codes of bins; a step takes away its product with their learning rate.
        warmup: Share of all steps.
        seed: Of starting weights, order of examples, dropout.
    """

    epochs: int = 4
    patience: int = 2
    batch_rows: int = 2_048
    learning_rate: float = 2e-3
    codes_rate: float = 1.0
    weight_decay: float = 0.01
    codes_decay: float = 0.01
    warmup: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.patience, self.batch_rows) < 1 or not 0 <= self.warmup < 1:
            raise ValueError("epochs, patience and batch_rows must be at least 1, warmup in [0, 1)")
        if min(self.learning_rate, self.codes_rate) <= 0 or min(self.weight_decay, self.codes_decay) < 0:
            raise ValueError("learning_rate and codes_rate must be positive, weight_decay and codes_decay not negative")


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to.

    Attributes:
        loss: Mean over its steps of the summed cross-entropies of the heads.
        rce: By head, on the validation examples at the natural rate, prior-corrected; NaN where one class is missing.
        score: Mean of the RCE that are there: what the best epoch is chosen by.
        examples_per_s: Trained, validation left out.
        losses: Means over equal parts of the steps, in order, of the first process's examples.
    """

    loss: float
    rce: list[float]
    score: float
    examples_per_s: float
    losses: list[float] = field(default_factory=list)


def batch_tensors(examples: Examples, encoding: Encoding) -> tuple[SparseRows, Tensor]:
    """What the network takes, of some examples."""
    return sparse_rows(examples.bins, encoding.offsets, encoding.rows), torch.from_numpy(examples.raw)


def predict(network: Network, batches: Iterator[Examples]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """(probabilities in the sampled world, labels), both [n, H], of all examples of `batches`."""
    network.eval()
    probabilities, labels = [], []
    with torch.inference_mode():
        for examples in batches:
            logits = network(*batch_tensors(examples, network.encoding))
            probabilities.append(logits.sigmoid().numpy())
            labels.append(examples.labels)
    return np.concatenate(probabilities), np.concatenate(labels)


def loss_of(logits: Tensor, examples: Examples) -> Tensor:
    """Cross-entropy of each head over the examples that it uses, summed over heads, by example of the batch."""
    labels, used = torch.from_numpy(examples.labels).float(), torch.from_numpy(examples.used).float()
    return binary_cross_entropy_with_logits(logits, labels, weight=used, reduction="sum") / len(examples)


def learning_rate(plan: TrainingPlan, step: int, steps: int) -> float:
    """Of step `step`, from 0, out of `steps`."""
    done = (step + 1) / steps
    if done < plan.warmup:
        return plan.learning_rate * done / plan.warmup
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - plan.warmup) / (1 - plan.warmup)))


class Training:
    """A net in training; `checkpoint` and `resume` make it as if it had not been interrupted.

    Of several processes all make one, with the same arguments but for `peers`, and go through the same calls.
    """

    def __init__(self, network: Network, plan: TrainingPlan, train: ExampleSet, peers: Peers = ALONE):
        if plan.batch_rows % peers.count:
            raise ValueError(f"batch_rows: {plan.batch_rows} is no multiple of {peers.count} processes")
        self.network = network
        self.history: list[Epoch] = []
        self.best: State = {}
        self._plan = plan
        self._train = train
        self._peers = peers
        self._batch_rows = plan.batch_rows // peers.count
        self._steps_per_epoch = -(-train.rows_each(peers.count) // self._batch_rows)
        self._shared = peers.shared(network)
        matrices = {name: p for name, p in network.named_parameters() if p.dim() > 1}
        codes = [matrices.pop(name) for name in list(matrices) if name == CODES]
        biases = [p for p in network.parameters() if p.dim() == 1]
        groups = [
            {"params": list(matrices.values()), "weight_decay": plan.weight_decay, "rate": 1.0},
            {"params": codes, "weight_decay": plan.codes_decay, "rate": plan.codes_rate},
            {"params": biases, "weight_decay": 0.0, "rate": 1.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, fused=True)

    @property
    def ended(self) -> bool:
        """Whether all epochs are done or none of the last `patience` was better than one before."""
        scores = [epoch.score for epoch in self.history]
        patience = self._plan.patience
        stale = len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])
        return len(scores) >= self._plan.epochs or stale

    def epoch(self, validate: Callable[[Network], list[float]], on_step: Callable[[int], object]) -> Epoch:
        """Trains for one epoch. `validate` gives the RCE by head; `on_step` is told how many examples were taken."""
        number = len(self.history)
        # Each epoch has generators of its own: a resumed training draws what an uninterrupted one does.
        torch.manual_seed(self._plan.seed + number + (self._peers.rank << 32))
        order = np.random.default_rng((self._plan.seed, number))
        begin, losses, rows = time.perf_counter(), list[float](), 0
        self.network.train()
        batches = self._train.shuffled(self._batch_rows, order, self._peers.rank, self._peers.count)
        for step, examples in enumerate(batches):
            taken, all_steps = number * self._steps_per_epoch + step, self._plan.epochs * self._steps_per_epoch
            rate = learning_rate(self._plan, taken, all_steps)
            for group in self._optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            losses.append(self._step(examples))
            rows += len(examples) * self._peers.count
            on_step(len(examples) * self._peers.count)
        seconds = time.perf_counter() - begin
        loss = self._peers.mean(sum(losses) / self._steps_per_epoch)
        rce = self._peers.from_first(lambda: validate(self.network))
        score = float(np.nanmean(rce)) if np.isfinite(rce).any() else -loss
        parts = [float(part.mean()) for part in np.array_split(losses, min(_LOSS_PARTS, len(losses)))]
        done = Epoch(loss, rce, score, rows / seconds, parts)
        if all(score > earlier.score for earlier in self.history):
            self.best = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.history.append(done)
        return done

    def _step(self, examples: Examples) -> float:
        loss = loss_of(self._shared(*batch_tensors(examples, self.network.encoding)), examples)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        self._optimizer.step()
        return loss.item()

    def checkpoint(self, path: Path) -> None:
        """Writes all that `resume` needs; the file appears whole or not at all."""
        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": self.best,
            "history": [vars(epoch) for epoch in self.history],
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(path)

    def resume(self, path: Path) -> None:
        """Goes back to where the checkpoint was written."""
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]
        self.history = [Epoch(**epoch) for epoch in state["history"]]


def validation_rce(network: Network, validation: ExampleSet, rates: NDArray[np.float64]) -> list[float]:
    """RCE by head on examples at the natural rate, of predictions that know of the rates of sampling."""
    sampled, labels = predict(network, validation.in_order())
    corrected = prior_corrected(sampled.astype(np.float64), rates)
    return [relative_cross_entropy(labels[:, head], corrected[:, head]) for head in range(labels.shape[1])]
