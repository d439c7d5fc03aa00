"""Step `fit_baselines`: logistic regression without and with crosses, and trees, on what the net learns from.

They learn from the training days with negatives sampled as for the net, and are tuned on the validation days. The
inner products that the plan gives the net are a column of theirs. The net itself has no part in this.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.baselines.logistic import LogisticPlan
from model_export.baselines.models import Lesson, fit_all, save_all
from model_export.baselines.rows import Products, Rows, collect, tables_of
from model_export.baselines.trees import TreePlan
from model_export.datasets.records import Impressions, RecordSet
from model_export.discretize import Discretizer, fit_feature
from model_export.encode import make_encoding
from model_export.plan import Context, FeaturePlan, Step
from model_export.sampling import row_uniform, used_by_head
from model_export.steps.discretize import load_discretizer
from model_export.steps.sample import load_info, open_records

_ROWS = "rows.json"


@dataclass(frozen=True)
class Parameters:
    """How baselines are fitted.

    Attributes:
        rows_max: Training rows, or a few more: a uniform part of what the net trains on where that is more. Memory
            grows with these and with validation_rows: two million rows of the default schema took 4.1 GB.
        validation_rows: Impressions of the validation days that tuning looks at, or a few more.
        logistic: Of the logistic regressions.
        trees: Of the trees.
        seed: Draws rows.
    """

    rows_max: int = 300_000
    validation_rows: int = 100_000
    logistic: LogisticPlan = field(default_factory=LogisticPlan)
    trees: TreePlan = field(default_factory=TreePlan)
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rows_max, self.validation_rows) < 1:
            raise ValueError("rows_max and validation_rows must be at least 1")


def train_rows(artifact: Path) -> dict[str, int]:
    """How many rows trees (`trees`) and regressions (`logistic`) of an artifact of this step learned from."""
    rows: dict[str, int] = json.loads((artifact / _ROWS).read_text())
    # An artifact of version 1 has the same for both.
    return {"trees": rows["train"], "logistic": rows.get("logistic", rows["train"])}


def make_products(records: RecordSet, features: FeaturePlan) -> Products:
    """The plan's inner products of these records, whose schema is what the net reads."""
    nothing_binned = replace(features, binned=(), raw=(), raw_log=())
    return Products(records.schema, make_encoding(records.schema, nothing_binned, Discretizer({})).dots)


def _run(context: Context) -> str:
    records = open_records(context.plan, context.inputs["data"])
    lesson = draw_lesson(context, records)
    baselines = fit_all(lesson, context.parameters.logistic, context.parameters.trees)
    save_all(baselines, context.out)
    rows = len(lesson.train.x)
    logistic = min(rows, context.parameters.logistic.rows_max)
    document = {"train": rows, "logistic": logistic, "validation": len(lesson.validation.x)}
    (context.out / _ROWS).write_text(json.dumps(document))
    times = ", ".join(f"{baseline.name} {baseline.train_cpu_s:.0f} s" for baseline in baselines)
    return f"{rows:,} rows: {times} of CPU"


def draw_lesson(context: Context, records: RecordSet) -> Lesson:
    """Draws what the baselines learn from, as the context's `Parameters` say."""
    parameters: Parameters = context.parameters
    days = context.plan.split.days(records)
    info = load_info(context.inputs["sample"])
    rates = np.array([info.rates[name] for name in records.schema.head_names])
    validation_share = parameters.validation_rows / records.rows(days["validate"])
    train_share = parameters.rows_max / max(info.examples, 1)

    def sampled(impressions: Impressions) -> NDArray[np.bool_]:
        # Which part is taken must not hang on which negatives are: two seeds.
        used = used_by_head(impressions.labels, row_uniform(impressions.ids, 2 * parameters.seed), rates)
        part = row_uniform(impressions.ids, 2 * parameters.seed + 1) < train_share
        return np.asarray(used & part[:, np.newaxis])

    def drawn(impressions: Impressions) -> NDArray[np.bool_]:
        part = row_uniform(impressions.ids, parameters.seed) < validation_share
        return np.repeat(part[:, np.newaxis], len(rates), axis=1)

    products = make_products(records, context.plan.features)
    train = collect(records, days["train"], sampled, products)
    validation = collect(records, days["validate"], drawn, products)
    schema = products.with_them
    discretizer = _with_products(load_discretizer(context.inputs["discretize"]), products, train, parameters.logistic)
    binned = replace(context.plan.features, binned=("*",), raw=(), raw_log=(), dots=())
    return Lesson(schema, make_encoding(schema, binned, discretizer).slots, train, validation, rates)


def _with_products(discretizer: Discretizer, products: Products, train: Rows, plan: LogisticPlan) -> Discretizer:
    """The plan's discretizer with the bins of products beside, fitted on the training rows."""
    tweets = tables_of(products.with_them, train.x)["tweet"]
    columns = products.with_them.layouts["tweet"].offsets
    every = np.ones(len(tweets))
    fitted = {
        f"tweet.{name}": fit_feature(tweets[:, columns[name]], every, plan.product_bins) for name in products.names
    }
    return Discretizer({**discretizer.features, **fitted})


STEP = Step(
    version=2,
    parameters=Parameters,
    inputs=("data", "discretize", "sample"),
    parts=("split", "features", "heads"),
    run=_run,
)
