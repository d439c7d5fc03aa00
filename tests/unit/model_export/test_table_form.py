"""Which graphs take Tweets as entries, and that a whole plan goes through with such a graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model_export.discretize import Discretizer, FeatureBins
from model_export.plan import Plan
from model_export.run import run_plan
from model_export.steps.verify import BUNDLE
from model_export.table_form import sparse_pays, takes_entries
from model_export.weights import Binned, GroupWeights, Raw
from service.bundle import read_bundle
from service.decode import Decoder
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.limits import Limits
from service.model import load_model
from service.schema import Feature, Head, Schema

BOUNDARIES = np.arange(15, dtype=np.float32)


def free(features: int, raws: tuple[Raw, ...] = ()) -> GroupWeights:
    """Discretised features whose rows of 16 bins span all directions."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (features, 16, 256)).astype(np.float32)
    return GroupWeights(tuple(Binned(i, BOUNDARIES, rows[i]) for i in range(features)), (), raws)


def spanned(features: int) -> GroupWeights:
    """The same in two directions."""
    rng = np.random.default_rng(0)
    codes, directions = rng.normal(0, 1, (features, 16, 2)), rng.normal(0, 1, (features, 2, 256))
    rows = (codes @ directions).astype(np.float32)
    return GroupWeights(tuple(Binned(i, BOUNDARIES, rows[i]) for i in range(features)), (), ())


def test_the_form_follows_from_how_much_is_present() -> None:
    """A tenth of 512 features: entries; two thirds: a table. Where bins cost less, entries pay later."""
    assert sparse_pays(free(512), 512, 51, "int8")
    assert sparse_pays(free(512), 512, 150, "int8")
    assert not sparse_pays(free(512), 512, 341, "int8")
    assert sparse_pays(spanned(512), 512, 30, "int8")
    assert not sparse_pays(spanned(512), 512, 150, "int8")
    assert not sparse_pays(free(20), 20, 2, "int8")
    assert not sparse_pays(GroupWeights((), (), ()), 0, 0, "int8")


@pytest.mark.parametrize(("column", "expected"), [(0, False), (512, True)])
def test_scalars_that_enter_by_value_cost_their_layout(column: int, expected: bool) -> None:
    """Near the crossover that decides; columns after the scalars cost nothing more."""
    one = np.ones(1, np.float32)
    raw = Raw(np.array([column]), False, one, one, np.ones((1, 256), np.float32))
    assert sparse_pays(free(512, (raw,)), 512, 200, "int8") == expected


def seen(missing_rate: float) -> FeatureBins:
    return FeatureBins(tuple(BOUNDARIES.tolist()), (1.0,) * 16, missing_rate, 0.1, 0.0, 1.0)


@pytest.mark.parametrize(("form", "missing_rate", "expected"), [
    ("auto", 0.9, True), ("auto", 0.3, False), ("dense", 0.9, False), ("sparse", 0.3, True),
])  # fmt: skip
def test_the_plan_decides_or_the_missing_rates_do(form: str, missing_rate: float, expected: bool) -> None:
    """Those of the scalars of Tweets alone: authors do not count."""
    names = [f"f{i}" for i in range(300)]
    schema = Schema(
        (*(Feature(name, "tweet", "continuous") for name in names), Feature("f0", "author", "continuous")),
        (Head("like", 1.0, 1),),
    )
    discretizer = Discretizer({f"tweet.{name}": seen(missing_rate) for name in names} | {"author.f0": seen(0.5)})
    found = takes_entries(form, free(300), schema, discretizer, "int8")  # type: ignore[arg-type]  # one of three words
    assert found == expected


def make_sparse(table: pb.FeatureTable) -> None:
    """The same table in its other form."""
    values = np.array(table.values).reshape(-1, len(table.columns))
    present = ~np.isnan(values)
    table.sparse_row_lengths.extend(present.sum(axis=1).tolist())
    table.sparse_column_indices.extend(np.nonzero(present)[1].tolist())
    table.sparse_values.extend(values[present].tolist())
    table.ClearField("values")


def test_a_plan_makes_a_sparse_bundle_that_serves(small_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """Exported, calibrated, tested, verified. Loading checks the golden answers; sparse requests get the same."""
    plan = small_plan(export="precision = 'int8'\nform = 'sparse'")
    artifacts = run_plan(plan, tmp_path / "run")

    bundle = artifacts["verify"] / BUNDLE
    read = read_bundle(bundle)
    names = [stated["name"] for stated in read.manifest["graph"]["inputs"]]
    assert {"tweets", "tweets_values", "tweets_columns", "tweets_rows", "tweets_ends"} < set(names)
    model = load_model(bundle, threads=1)
    assert model.scorer.sparse_tweets
    golden = read.golden.cases[0]
    make_sparse(golden.request.candidates.tweets)
    tables, _ = model.aligner.align(Decoder(Limits()).candidates(golden.request.candidates))
    np.testing.assert_allclose(model.score(tables).probabilities.ravel(), golden.response.probabilities, rtol=1e-5)
    metrics = json.loads((artifacts["test"] / "metrics.json").read_text())
    assert metrics["like"]["share"] > 0.3
