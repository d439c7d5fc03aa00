"""Step `sample`: the training examples, negatives sampled, and the validation examples at the natural rate, encoded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model_export.datasets.records import Impressions, RecordSet
from model_export.encode import Encoding, make_encoding, select_features
from model_export.examples import Examples, ExampleSet, ExampleWriter, record_type
from model_export.plan import Context, Plan, Step
from model_export.plan_table import PlanError, unknown
from model_export.sampling import negative_rates, row_uniform, used_by_head
from model_export.steps.discretize import load_discretizer
from service.schema import Schema


@dataclass(frozen=True)
class Parameters:
    """How many negatives are kept.

    Attributes:
        negatives_per_positive: Wanted for each head.
        rates: Share of its negatives that a head keeps, where that is said instead; by head, in (0, 1].
        validation_rows: Impressions of the validation days that training is watched on, or a few more.
        seed: Draws rows.
    """

    negatives_per_positive: float = 20.0
    rates: dict[str, float] = field(default_factory=dict)
    validation_rows: int = 200_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.negatives_per_positive > 0 or not all(0 < rate <= 1 for rate in self.rates.values()):
            raise ValueError("negatives_per_positive must be positive, rates in (0, 1]")
        if self.validation_rows < 1:
            raise ValueError("validation_rows must be at least 1")


@dataclass(frozen=True)
class SampleInfo:
    """What was sampled.

    Attributes:
        encoding: Hash of the encoding that the examples are in.
        rows: Impressions of the training days.
        examples: Of those, how many train any head.
        positives: By head, of all of them.
        rates: By head, the share of its negatives that trains it.
        used: By head, how many examples train it.
        row_counts: For each row of the encoding, how many training examples have that bin or category.
        raw_counts: Likewise for each raw value.
        days: First and last day that each part was taken from; empty where an older sample does not say.
    """

    encoding: str
    rows: int
    examples: int
    positives: dict[str, int]
    rates: dict[str, float]
    used: dict[str, int]
    row_counts: list[int]
    raw_counts: list[int]
    days: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """An artifact of this step."""

    info: SampleInfo
    train: ExampleSet
    validation: ExampleSet


def load_sample(artifact: Path, encoding: Encoding, heads: tuple[str, ...]) -> Sample:
    """Opens an artifact of this step; raises PlanError unless it was made with this encoding and these heads."""
    record = record_type(len(encoding.slots), len(encoding.raw_names), len(heads))
    info = load_info(artifact)
    if info.encoding != encoding.hash or tuple(info.positives) != heads:
        raise PlanError("sample: was made with another discretizer, other features or other heads")
    return Sample(info, ExampleSet(artifact / "train", record), ExampleSet(artifact / "validation", record))


def load_info(artifact: Path) -> SampleInfo:
    """What an artifact of this step says of itself."""
    return SampleInfo(**json.loads((artifact / "sample.json").read_text()))


def open_records(plan: Plan, data: Path) -> RecordSet:
    """The plan's data, with the schema of what the plan's model reads and predicts."""
    records = RecordSet.open(data)
    return replace(records, schema=plan.with_heads(select_features(records.schema, plan.features)))


def _run(context: Context) -> str:
    parameters: Parameters = context.parameters
    records = open_records(context.plan, context.inputs["data"])
    days = context.plan.split.days(records)
    names = records.schema.head_names
    encoding = make_encoding(records.schema, context.plan.features, load_discretizer(context.inputs["discretize"]))
    record = record_type(len(encoding.slots), len(encoding.raw_names), len(names))

    positives, rows = _count(records, days["train"])
    rates = _rates(names, positives, rows, parameters)
    counts = _Counts(encoding, len(names))
    with ExampleWriter(context.out / "train", record) as writer:
        for impressions in tqdm(records.batches(days["train"]), desc="sample", unit="batch", leave=False):
            used = used_by_head(impressions.labels, row_uniform(impressions.ids, parameters.seed), rates)
            examples = _encoded(impressions, used, encoding)
            writer.write(examples)
            counts.add(examples)
    validation_share = parameters.validation_rows / records.rows(days["validate"])
    with ExampleWriter(context.out / "validation", record) as writer:
        for impressions in records.batches(days["validate"]):
            drawn = row_uniform(impressions.ids, parameters.seed) < validation_share
            writer.write(_encoded(impressions, np.repeat(drawn[:, np.newaxis], len(names), axis=1), encoding))

    info = SampleInfo(
        encoding=encoding.hash,
        rows=rows,
        examples=counts.examples,
        positives=dict(zip(names, positives.tolist(), strict=True)),
        rates=dict(zip(names, rates.tolist(), strict=True)),
        used=dict(zip(names, counts.used.tolist(), strict=True)),
        row_counts=counts.rows.tolist(),
        raw_counts=counts.raws.tolist(),
        days={part: [days[part][0], days[part][-1]] for part in ("train", "validate")},
    )
    (context.out / "sample.json").write_text(json.dumps(asdict(info), indent=1))
    kept = ", ".join(f"{name} {rate:.2%}" for name, rate in info.rates.items())
    return f"{info.examples:,} of {rows:,} impressions; negatives kept: {kept}"


def _count(records: RecordSet, days: tuple[int, ...]) -> tuple[NDArray[np.int64], int]:
    """(positives by head [H], impressions), from the label columns alone."""
    labels_only = replace(records, schema=Schema((), records.schema.heads))
    positives, rows = np.zeros(len(records.schema.heads), np.int64), 0
    for impressions in labels_only.batches(days):
        positives += impressions.labels.sum(axis=0, dtype=np.int64)
        rows += len(impressions)
    return positives, rows


def _rates(
    names: tuple[str, ...], positives: NDArray[np.int64], rows: int, parameters: Parameters
) -> NDArray[np.float64]:
    rates = negative_rates(positives, rows, parameters.negatives_per_positive)
    for name, rate in parameters.rates.items():
        if name not in names:
            raise PlanError(f"sample.rates: {unknown(name, names)}")
        rates[names.index(name)] = rate
    return rates


def _encoded(impressions: Impressions, used: NDArray[np.bool_], encoding: Encoding) -> Examples:
    """The impressions that any head uses."""
    kept = np.asarray(used.any(axis=1))
    impressions, used = impressions.take(kept), used[kept]
    bins, raw = encoding.encode(impressions.tables)
    return Examples(bins, raw, impressions.labels, used.astype(np.uint8))


class _Counts:
    """Sums over examples: how many there are, by head that uses them, by encoding row, by raw column."""

    def __init__(self, encoding: Encoding, heads: int) -> None:
        self._offsets = encoding.offsets
        self.examples = 0
        self.used = np.zeros(heads, np.int64)
        self.rows = np.zeros(encoding.rows, np.int64)
        self.raws = np.zeros(len(encoding.raw_names), np.int64)

    def add(self, examples: Examples) -> None:
        self.examples += len(examples)
        self.used += examples.used.sum(axis=0, dtype=np.int64)
        rows = (examples.bins + (self._offsets - 1))[examples.bins > 0]
        self.rows += np.bincount(rows, minlength=len(self.rows))
        self.raws += (~np.isnan(examples.raw)).sum(axis=0)


STEP = Step(
    version=1, parameters=Parameters, inputs=("data", "discretize"), parts=("split", "features", "heads"), run=_run
)
