"""The steps of a plan, one after the other, on small random data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss

from model_export.datasets.records import RecordSet, write_day
from model_export.encode import make_encoding
from model_export.plan import Plan
from model_export.plan_table import PlanError
from model_export.run import run_plan
from model_export.score import open_graph, score
from model_export.steps.calibrate import load_knots
from model_export.steps.discretize import load_discretizer
from model_export.steps.sample import load_sample, open_records
from model_export.steps.verify import BUNDLE
from service.bundle import read_bundle
from service.model import load_model

MakePlan = Callable[..., Plan]


@pytest.mark.parametrize(
    ("trunk", "more"), [("linear", ""), ("mlp", ""), ("dcn", ""), ("dcn", "wide = true\nstandardize = true")]
)
def test_every_trunk_goes_through_the_whole_plan(small_plan: MakePlan, tmp_path: Path, trunk: str, more: str) -> None:
    """To a bundle that the server loads, and that learned something."""
    network = f"{more}\ntrunk = '{trunk}'\nunits = 16\nhidden = [8]\ntower_units = 4\ncross_rank = 4\ncrosses = 1"
    train = "epochs = 6\nbatch_rows = 128\nthreads = 1\nlearning_rate = 0.01"
    artifacts = run_plan(small_plan(**{"train.network": network, "train": train}), tmp_path / "out")

    bundle = read_bundle(artifacts["verify"] / BUNDLE)
    load_model(artifacts["verify"] / BUNDLE, threads=1)
    metrics = bundle.manifest["metrics"]
    assert bundle.manifest["law"] is None
    assert bundle.manifest["plan"]["train"]["network"]["trunk"] == trunk
    assert metrics["test"]["like"]["share"] > 0.5
    assert metrics["training"]["impressions"] == 6_000
    assert set(bundle.manifest["calibration"]["like"]) == {"method", "positives", "knots"}
    assert len(bundle.golden.cases) == 4


def test_int8_goes_through_the_whole_plan(small_plan: MakePlan, tmp_path: Path) -> None:
    """The manifest says which form the graph has."""
    artifacts = run_plan(small_plan(export="precision = 'int8'"), tmp_path / "out")

    assert read_bundle(artifacts["verify"] / BUNDLE).manifest["graph"]["precision"] == "int8"


def test_the_same_plan_gives_the_same_bytes(small_plan: MakePlan, tmp_path: Path) -> None:
    """Discretizer, graph and metrics."""
    one, two = (run_plan(small_plan(), tmp_path / out) for out in ("one", "two"))

    for step, file in (("discretize", "discretizer.json"), ("calibrate", "model.onnx"), ("test", "metrics.json")):
        assert (one[step] / file).read_bytes() == (two[step] / file).read_bytes()


def test_recalibration_trains_nothing(small_plan: MakePlan, tmp_path: Path) -> None:
    """Everything up to the exported graph is kept."""
    before = run_plan(small_plan(), tmp_path / "out")
    after = run_plan(small_plan(calibrate="blocks_max = 1\npositives_min = 30"), tmp_path / "out")

    changed = {step for step in before if before[step] != after[step]}
    assert changed == {"calibrate", "test", "verify"}
    for knots_before, knots_after in zip(*(load_knots(run["calibrate"]) for run in (before, after)), strict=True):
        assert knots_before.y.tolist() != knots_after.y.tolist()


def test_calibration_states_what_counting_scores_may_lose(small_plan: MakePlan, tmp_path: Path) -> None:
    """A share of each head's positives, the method and its knots."""
    artifacts = run_plan(small_plan(), tmp_path / "out")

    calibration = json.loads((artifacts["calibrate"] / "calibration.json").read_text())
    labels = next(RecordSet.open(artifacts["data"]).batches([5])).labels
    assert [head["positives"] for head in calibration.values()] == labels.sum(axis=0).tolist()
    assert all(0 <= head["cumulative_error"] < 0.1 for head in calibration.values())
    assert calibration["like"]["method"] == "isotonic"


def test_a_head_weight_changes_the_bundle_alone(small_plan: MakePlan, tmp_path: Path) -> None:
    """Weights are policy: no probability depends on them."""
    heads = "like = {{ weight = {} }}\nreply = {{ weight = 1 }}"
    before = run_plan(small_plan(heads=heads.format(1)), tmp_path / "out")
    after = run_plan(small_plan(heads=heads.format(7)), tmp_path / "out")

    assert {step for step in before if before[step] != after[step]} == {"verify"}
    assert read_bundle(after["verify"] / BUNDLE).schema.heads[0].weight == 7


def test_a_new_head_is_one_line_of_a_plan(small_plan: MakePlan, tmp_path: Path) -> None:
    """One head of the data, then both."""
    one = run_plan(small_plan(heads="like = { weight = 1 }"), tmp_path / "out")
    two = run_plan(small_plan(heads="like = { weight = 1 }\nreply = { weight = 2 }"), tmp_path / "out")

    assert [read_bundle(run["verify"] / BUNDLE).schema.head_names for run in (one, two)] == [
        ("like",),
        ("like", "reply"),
    ]
    with pytest.raises(PlanError, match=r"heads: 'likes' is not known; did you mean 'like'"):
        run_plan(small_plan(heads="likes = { weight = 1 }"), tmp_path / "out")


def test_a_feature_left_out_is_not_in_the_schema(small_plan: MakePlan, tmp_path: Path) -> None:
    """Whole groups can go: then the graph has no such input."""
    artifacts = run_plan(small_plan(features="leave_out = ['author.*', 'tweet.text']"), tmp_path / "out")

    bundle = read_bundle(artifacts["verify"] / BUNDLE)
    assert {feature.group for feature in bundle.schema.features} == {"viewer", "tweet"}
    assert [i["name"] for i in bundle.manifest["graph"]["inputs"]] == ["viewer", "tweets", "author_index"]


def test_sampled_examples_are_the_data_with_fewer_negatives(small_plan: MakePlan, tmp_path: Path) -> None:
    """All positives of each head, its share of negatives, in the data's order; validation at the natural rate."""
    plan = small_plan(sample="negatives_per_positive = 2\nrates = { reply = 0.25 }")
    artifacts = run_plan(plan, tmp_path / "out")
    records = open_records(plan, artifacts["data"])
    encoding = make_encoding(records.schema, plan.features, load_discretizer(artifacts["discretize"]))
    labels = np.concatenate([impressions.labels for impressions in records.batches(range(4))])

    sample = load_sample(artifacts["sample"], encoding, ("like", "reply"))
    examples = list(sample.train.in_order())
    sampled, used = (np.concatenate([getattr(e, name) for e in examples]) for name in ("labels", "used"))

    positives = labels.sum(axis=0)
    assert sample.info.rows == 6_000
    assert sample.info.examples == len(sampled) < 6_000
    assert list(sample.info.positives.values()) == positives.tolist() == sampled.sum(axis=0).tolist()
    assert (used[sampled == 1] == 1).all()
    assert list(sample.info.used.values()) == used.sum(axis=0).tolist()
    assert sample.info.rates["reply"] == 0.25
    negatives = used.sum(axis=0) - positives
    wanted = np.array([2 * positives[0], 0.25 * (6_000 - positives[1])])
    assert (np.abs(negatives - wanted) < 5 * np.sqrt(wanted)).all()
    assert sum(sample.info.row_counts) == sum(int((e.bins > 0).sum()) for e in examples)
    validation = list(sample.validation.in_order())
    assert sum(len(e) for e in validation) == 1_500
    assert all((e.used == 1).all() for e in validation)


def test_discretizer_sample_is_bounded(small_plan: MakePlan, tmp_path: Path) -> None:
    """About as many rows as asked for, and the error that comes with it is stated."""
    artifacts = run_plan(small_plan(discretize="bins = 4\nsample_rows = 500"), tmp_path / "out")

    features = load_discretizer(artifacts["discretize"]).features
    likes = features["tweet.likes"]
    assert 400 < sum(likes.histogram) / (1 - likes.missing_rate) < 600
    assert 0.05 < likes.rank_error < 0.15
    assert features["author.never"].boundaries is None


def test_positive_weight_draws_the_bins_to_where_engagement_is(small_plan: MakePlan, tmp_path: Path) -> None:
    """Authors of strong ties get liked: with heavier positives the boundaries move up."""
    medians = []
    for weight in (1, 50):
        artifacts = run_plan(small_plan(discretize=f"bins = 2\npositive_weight = {weight}"), tmp_path / "out")
        boundaries = load_discretizer(artifacts["discretize"]).features["author.strength"].boundaries
        assert boundaries is not None
        medians.append(boundaries[0])

    assert medians[1] > medians[0]


def test_an_infinite_value_in_the_data_is_named(small_plan: MakePlan, tmp_path: Path) -> None:
    """With its feature."""
    plan = small_plan()
    records = RecordSet.open(tmp_path / "records")
    impressions = next(records.batches([0]))
    impressions.tables["author"][3, 0] = np.inf
    write_day(records.root, records.schema, 0, impressions)

    with pytest.raises(ValueError, match=r"author\.strength: infinite"):
        run_plan(plan, tmp_path / "out")


@pytest.mark.parametrize("label", [0, 1])
def test_a_head_of_one_class_and_features_that_say_nothing_go_through(
    small_plan: MakePlan, tmp_path: Path, label: int
) -> None:
    """A constant feature and one of denormal numbers: a bundle that serves, and the other head learns."""
    plan = small_plan()
    records = RecordSet.open(tmp_path / "records")
    for day in records.days:
        impressions = next(records.batches([day]))
        tweets = impressions.tables["tweet"]
        tweets[:, 0] = np.where(np.isnan(tweets[:, 0]), np.nan, 7.0)
        hours = impressions.tables["viewer"]
        hours[:, 0] = np.where(np.isnan(hours[:, 0]), np.nan, 1e-40)
        impressions.labels[:, 1] = label
        write_day(records.root, records.schema, day, impressions)

    artifacts = run_plan(plan, tmp_path / "out")

    bundle = read_bundle(artifacts["verify"] / BUNDLE)
    load_model(artifacts["verify"] / BUNDLE, threads=1)
    features = load_discretizer(artifacts["discretize"]).features
    assert features["tweet.likes"].boundaries == features["viewer.hours_away"].boundaries == ()
    assert bundle.manifest["calibration"]["reply"]["method"] == "prior_correction"
    graph = open_graph((artifacts["calibrate"] / "model.onnx").read_bytes())
    probabilities = score(graph, next(open_records(plan, artifacts["data"]).batches([7])))[1]
    assert np.isfinite(probabilities).all()
    assert np.abs(probabilities[:, 1] - label).max() < 0.05
    assert bundle.manifest["metrics"]["test"]["like"]["rce"] > 5


def test_a_head_with_few_positives_has_its_sampling_undone(small_plan: MakePlan, tmp_path: Path) -> None:
    """The manifest says so."""
    artifacts = run_plan(small_plan(calibrate="positives_min = 100_000"), tmp_path / "out")

    calibration = read_bundle(artifacts["verify"] / BUNDLE).manifest["calibration"]
    assert {head["method"] for head in calibration.values()} == {"prior_correction"}
    records = open_records(small_plan(), artifacts["data"])
    graph = open_graph((artifacts["calibrate"] / "model.onnx").read_bytes())
    impressions = next(records.batches([7]))
    raw, probabilities = score(graph, impressions)
    rates = json.loads((artifacts["sample"] / "sample.json").read_text())["rates"]
    expected = rates["like"] * raw[:, 0] / (1 - raw[:, 0] + rates["like"] * raw[:, 0])
    np.testing.assert_allclose(probabilities[:, 0], expected, rtol=0.01)
    metrics = json.loads((artifacts["test"] / "metrics.json").read_text())
    # Knots are lines between points of the formula.
    assert max(abs(head["calibration_gain"]) for head in metrics.values()) < 0.05


def test_what_calibration_gives_is_measured(small_plan: MakePlan, tmp_path: Path) -> None:
    """By scikit-learn's cross-entropies of the calibrated probabilities and of raw ones with their odds put right."""
    artifacts = run_plan(small_plan(), tmp_path / "out")

    records = open_records(small_plan(), artifacts["data"])
    graph = open_graph((artifacts["calibrate"] / "model.onnx").read_bytes())
    rates = json.loads((artifacts["sample"] / "sample.json").read_text())["rates"]
    metrics = json.loads((artifacts["test"] / "metrics.json").read_text())
    days = small_plan().split.days(records)["test"]
    batches = [(score(graph, impressions), impressions.reachable) for impressions in records.batches(days)]
    raw, calibrated = (np.concatenate([answer[i][:, 0] for answer, _ in batches]).astype(float) for i in (0, 1))
    p = np.concatenate([reachable[:, 0] for _, reachable in batches if reachable is not None]).astype(float)
    undone = rates["like"] * raw / (1 - raw + rates["like"] * raw)

    def loss(q: Any) -> float:
        return float(log_loss([1] * len(p) + [0] * len(p), np.tile(q, 2), sample_weight=np.concatenate([p, 1 - p])))

    expected = 100 * (loss(undone) - loss(calibrated)) / loss(np.full(len(p), p.mean()))
    assert metrics["like"]["calibration_gain"] == pytest.approx(expected, abs=1e-3)
    assert expected != 0


def test_shipped_raw_probabilities_are_those_that_were_calibrated(small_plan: MakePlan, tmp_path: Path) -> None:
    """The graph with calibration is the exported one and nothing else."""
    artifacts = run_plan(small_plan(), tmp_path / "out")
    impressions = next(open_records(small_plan(), artifacts["data"]).batches([7]))

    exported, shipped = (
        score(open_graph((artifacts[step] / "model.onnx").read_bytes()), impressions)[0]
        for step in ("export", "calibrate")
    )

    assert exported.shape == (len(impressions), 2)
    assert (exported == shipped).all()


def test_steps_of_different_models_do_not_mix(small_plan: MakePlan, tmp_path: Path) -> None:
    """A sample taken from a run with other features is refused where it is used."""
    run_plan(small_plan(features="leave_out = ['tweet.text']"), tmp_path / "other")

    with pytest.raises(PlanError, match="made with another discretizer, other features"):
        run_plan(small_plan(sample=f"from = '{tmp_path / 'other'}'"), tmp_path / "out")
    with pytest.raises(PlanError, match="train: was done with other features or heads"):
        run_plan(small_plan(train=f"from = '{tmp_path / 'other'}'"), tmp_path / "out")
