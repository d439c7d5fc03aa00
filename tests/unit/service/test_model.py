"""Loading a bundle: verified, warm, and held against its golden file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.align import Tables
from service.bundle import BundleError, write_bundle
from service.generated.timelines.ranking.v1 import golden_pb2
from service.model import load_model
from service.schema import Head, Schema
from tests import toy


def test_loads_a_sound_bundle(toy_bundle: Path) -> None:
    """Version and floor are the bundle's."""
    model = load_model(toy_bundle, threads=1)

    files = json.loads((toy_bundle / "manifest.json").read_text())["files"]
    assert model.sha256 == files["model.onnx"]["sha256"]
    assert model.version == model.sha256[:12]
    assert model.icymi_relevance_min == toy.ICYMI_RELEVANCE_MIN
    assert model.schema == toy.SCHEMA


def test_no_tweets_need_no_session(toy_bundle: Path) -> None:
    """The graph wants at least one Tweet; the answer to none is none."""
    nothing = Tables(
        np.empty((1, 2), np.float32), np.empty((0, 2), np.float32), np.empty(0, np.int64), np.empty((0, 5), np.float32)
    )

    scores = load_model(toy_bundle, threads=1).score(nothing)

    assert scores.probabilities.shape == scores.raw.shape == (0, 3)


def test_files_that_are_no_bundle(tmp_path: Path) -> None:
    """The faults of the files come first."""
    with pytest.raises(BundleError) as caught:
        load_model(tmp_path, threads=1)

    assert len(caught.value.faults) == 3


def nudge(field: str, by: float) -> Callable[[golden_pb2.GoldenCase], None]:
    def change(case: golden_pb2.GoldenCase) -> None:
        values = getattr(case.response, field)
        values[0] += by

    return change


def drop_last(field: str) -> Callable[[golden_pb2.GoldenCase], None]:
    def change(case: golden_pb2.GoldenCase) -> None:
        getattr(case.response, field).pop()

    return change


def load_with(tmp_path: Path, change: Callable[[golden_pb2.GoldenCase], object]) -> tuple[str, ...]:
    golden = toy.golden_file()
    change(golden.cases[0])
    directory = tmp_path / "bundle"
    write_bundle(directory, toy.model_bytes(), toy.manifest_fields(), golden.SerializeToString())
    try:
        load_model(directory, threads=1)
    except BundleError as error:
        return error.faults
    return ()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (nudge("probabilities", 0.01), "probabilities are up to 0.01 away from the model's"),
        (nudge("raw_probabilities", -0.01), "raw_probabilities are up to 0.01 away from the model's"),
        (nudge("scores", 0.1), "scores are up to 0.1 away from the model's"),
        (nudge("probabilities", float("nan")), "probabilities are up to nan away from the model's"),
        (drop_last("probabilities"), "8 probabilities, the model gives 9"),
        (drop_last("raw_probabilities"), "8 raw_probabilities, the model gives 9"),
        (drop_last("scores"), "2 scores, the model gives 3"),
        (drop_last("heads"), "heads are ['like', 'reply'], the schema's ['like', 'reply', 'negative']"),
        (
            lambda case: case.request.candidates.tweet_ids.append(1),
            "the request is bad: candidates.created_at_ms: 3 values for 4 Tweets",
        ),
    ],
)
def test_golden_case_that_the_model_does_not_answer(
    tmp_path: Path, change: Callable[[golden_pb2.GoldenCase], object], fault: str
) -> None:
    """A model that answers otherwise than where it was made is not served."""
    assert load_with(tmp_path, change) == (f"golden.binpb: case 0: {fault}",)


@pytest.mark.parametrize("change", [nudge("probabilities", 5e-6), nudge("raw_probabilities", -5e-6)])
def test_golden_case_off_by_rounding(tmp_path: Path, change: Callable[[golden_pb2.GoldenCase], object]) -> None:
    """Another processor's rounding is no fault."""
    assert load_with(tmp_path, change) == ()


def test_weights_that_the_golden_scores_do_not_have(tmp_path: Path) -> None:
    """Head weights are outside the schema's hash: only the golden scores show that they changed."""
    heads = (Head("like", 5.0, 1), *toy.SCHEMA.heads[1:])
    stated = toy.manifest_fields(Schema(toy.SCHEMA.features, heads))
    write_bundle(tmp_path / "b", toy.model_bytes(), stated, toy.golden_file().SerializeToString())

    with pytest.raises(BundleError, match="scores are up to"):
        load_model(tmp_path / "b", threads=1)
