"""Whether a graph takes the scalars of Tweets as a table or as what is present of them: the form that costs less."""

from __future__ import annotations

from typing import Literal

from model_export.discretize import Discretizer
from model_export.graph_codes import FLOAT32_COST, THRESHOLD_COST, plan_codes
from model_export.graph_thermometer import Precision, plan_thermometer
from model_export.weights import GroupWeights
from service.schema import Schema
from service.sparse_table import CHUNK

TableForm = Literal["auto", "dense", "sparse"]

# Measured, as the costs of codes are, in int8 multiply-adds of the dense form: finding an entry's row, adding up a unit
# of it, and laying out a scalar for those that enter by value; see docs/decisions/0046-sparse-tables.md.
_ENTRY_COST = 5_000
_UNIT_COST: dict[Precision, int] = {"int8": 16, "float32": 58}
_LAYOUT_COST = 400


def takes_entries(
    form: TableForm, tweet: GroupWeights, schema: Schema, discretizer: Discretizer, precision: Precision
) -> bool:
    """Whether the Tweets of a graph are sparse.

    Args:
        form: As the plan says; `auto`: by what costs less for rows with as many scalars as the discretizer saw.
        tweet: What the net does with the features of Tweets.
        schema: The net's.
        discretizer: Of the training data.
        precision: Of the graph.
    """
    if form != "auto":
        return form == "sparse"
    scalars = schema.layouts["tweet"].scalars
    features = [discretizer.features.get(f"tweet.{scalar.name}") for scalar in scalars]
    present = sum(1 - seen.missing_rate for seen in features if seen is not None)
    return sparse_pays(tweet, len(scalars), present, precision)


def sparse_pays(tweet: GroupWeights, scalars: int, present: float, precision: Precision) -> bool:
    """Whether entries cost less than a table of so many scalars, by how many are `present` in a row on average.

    Half a chunk of each row holds no entry, and adding up its chunks costs as much again.
    """
    if not tweet.binned:
        return False
    units = tweet.binned[0].weights.shape[1]
    as_entries = (present + CHUNK) * (_ENTRY_COST + units * _UNIT_COST[precision])
    if any(int(raw.columns.min()) < scalars for raw in tweet.raws):
        as_entries += scalars * _LAYOUT_COST
    return bool(as_entries < _dense_cost(GroupWeights(tweet.binned, (), ()), precision))


def _dense_cost(weights: GroupWeights, precision: Precision) -> float:
    """Of its discretised features, in the form that `build` gives them."""
    codes = plan_codes(weights, precision)
    if codes:
        return sum(part.directions.size * FLOAT32_COST + part.thresholds.size * THRESHOLD_COST for part in codes)
    thermometer = plan_thermometer(weights, precision)
    bits = 0 if thermometer is None else thermometer.differences.size
    return bits * (FLOAT32_COST if precision == "float32" else 1)
