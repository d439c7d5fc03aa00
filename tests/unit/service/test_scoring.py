"""One session: what it answers, and what it refuses to load."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.align import Tables
from service.bundle import BundleError
from service.schema import Feature, Schema
from service.scoring import Scorer
from tests import toy

NAN = math.nan


def scorer(model: bytes | None = None, schema: Schema = toy.SCHEMA, **stated: Any) -> Scorer:
    graph = toy.manifest_fields()["graph"]
    return Scorer(toy.model_bytes() if model is None else model, schema, {**graph, **stated}, threads=1)


def edited(edit: Callable[[onnx.ModelProto], object]) -> bytes:
    model = onnx.load_model_from_string(toy.model_bytes())
    edit(model)
    return bytes(model.SerializeToString())


def replace_node(model: onnx.ModelProto, output: str, node: onnx.NodeProto) -> None:
    place = next(i for i, n in enumerate(model.graph.node) if n.output[0] == output)
    model.graph.node[place].CopyFrom(node)


def test_scores_by_hand() -> None:
    """like: 0.001 x 10 + 0.1 x 3 + 0.01 x 2 = 0.33; reply: 0.01 x 3 = 0.03. Calibrated is half of it."""
    tables = Tables(
        viewer=np.array([[1, NAN]], np.float32),
        authors=np.array([[NAN, NAN], [2, NAN]], np.float32),
        author_index=np.array([1]),
        tweets=np.array([[9, NAN, NAN, NAN, NAN]], np.float32),
    )

    scores = scorer().score(tables)

    np.testing.assert_allclose(scores.raw, [[0.33, 0.03, 0]], rtol=1e-6)
    np.testing.assert_allclose(scores.probabilities, [[0.165, 0.015, 0]], rtol=1e-6)
    assert scores.probabilities.dtype == np.float32


def test_bytes_are_read_as_what_they_were_checked_as(tmp_path: Path) -> None:
    """onnxruntime's own format, which it would know by its first bytes, is none for a bundle."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(toy.model_bytes(), options, providers=["CPUExecutionProvider"])
    content = (tmp_path / "model.ort").read_bytes()
    assert onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).get_inputs()

    with pytest.raises(BundleError, match=r"model\.onnx: onnxruntime refuses it"):
        scorer(content)


def test_a_graph_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold up whoever loads models for good."""
    monkeypatch.setattr("service.scoring.TRY_S_MAX", 0.5)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["go_on_out"]), helper.make_node("Neg", ["x"], ["x_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_out", TensorProto.FLOAT, []),
        ],
    )

    def edit(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "start"))
        model.graph.node.insert(0, helper.make_node("Loop", ["", "yes", "start"], ["end"], body=body))
        where = next(node for node in model.graph.node if node.output[0] == "probabilities")
        where.input[1] = "end"

    with pytest.raises(BundleError, match=r"model\.onnx: a run for 1 Tweets takes more than 0\.5 s"):
        scorer(edited(edit)).warm_up()


def test_agrees_with_the_slow_way() -> None:
    """Random tables, a third absent, against sums in Python."""
    rng = np.random.default_rng(3)
    shapes = {"viewer": (1, 2), "authors": (4, 2), "tweets": (30, 5)}
    tables = {name: rng.integers(0, 2, shape).astype(np.float32) for name, shape in shapes.items()}
    for table in tables.values():
        table[rng.random(table.shape) < 1 / 3] = NAN
    author_index = rng.integers(0, 4, 30)

    scores = scorer().score(Tables(tables["viewer"], tables["authors"], author_index, tables["tweets"]))

    expected = toy.raw_probabilities(tables["viewer"], tables["authors"], author_index, tables["tweets"])
    np.testing.assert_allclose(scores.raw, expected, atol=1e-6)
    np.testing.assert_allclose(scores.probabilities, expected / 2, atol=1e-6)


def test_warm_up_of_a_sound_model() -> None:
    """It says nothing."""
    sound = scorer()
    sound.warm_up()
    assert [rows for rows, _ in sound.cost_points] == [1, 100, 500, 1_500]
    assert all(ns > 0 for _, ns in sound.cost_points)


def test_graph_that_gives_nan() -> None:
    """NaN compares with nothing: it must not slip through."""

    def spoil(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(NAN, np.float32), "nan"))
        replace_node(model, "probabilities", helper.make_node("Mul", ["raw_probabilities", "nan"], ["probabilities"]))

    with pytest.raises(BundleError, match=r"probabilities outside of \[0, 1\]"):
        scorer(edited(spoil)).warm_up()


@pytest.mark.parametrize(
    ("node", "fault"),
    [
        (helper.make_node("Sub", ["raw_probabilities", "one"], ["probabilities"]), "probabilities outside of [0, 1]"),
        (helper.make_node("Log", ["shifted"], ["probabilities"]), "onnxruntime refuses it: "),
    ],
)
def test_graph_that_gives_no_probabilities(node: onnx.NodeProto, fault: str) -> None:
    """Negative numbers and nonsense are found before anybody is served."""
    model = edited(lambda m: replace_node(m, "probabilities", node))

    with pytest.raises(BundleError) as caught:
        scorer(model).warm_up()

    assert caught.value.faults[0].startswith(f"model.onnx: {fault}")


def test_graph_of_another_row_count() -> None:
    """One row for each Tweet, no more."""

    def double(model: onnx.ModelProto) -> None:
        node = helper.make_node("Concat", ["raw_probabilities", "raw_probabilities"], ["probabilities"], axis=0)
        replace_node(model, "probabilities", node)

    with pytest.raises(BundleError, match=r"probabilities of 1 Tweets have shape \(2, 3\)"):
        scorer(edited(double)).warm_up()


def test_bytes_that_onnxruntime_refuses() -> None:
    """One line, whatever onnxruntime says."""
    with pytest.raises(BundleError) as caught:
        scorer(b"no model")

    (fault,) = caught.value.faults
    assert fault.startswith("model.onnx: onnxruntime refuses it: ")
    assert "\n" not in fault


def test_schema_of_another_width() -> None:
    """A graph for other features is refused with what it has and what it should have."""
    schema = Schema((*toy.SCHEMA.features, Feature("age", "tweet", "continuous")), toy.SCHEMA.heads)

    with pytest.raises(BundleError) as caught:
        scorer(schema=schema)

    assert caught.value.faults == (
        "model.onnx: inputs are author_index int64 ['*'], authors float32 ['*', 2], tweets float32 ['*', 5], "
        "viewer float32 [1, 2], the schema wants author_index int64 ['*'], authors float32 ['*', 2], "
        "tweets float32 ['*', 6], viewer float32 [1, 2]",
    )


def test_schema_of_other_heads() -> None:
    """As many outputs as heads."""
    with pytest.raises(BundleError, match="outputs are probabilities float32"):
        scorer(schema=Schema(toy.SCHEMA.features, toy.SCHEMA.heads[:2]))


def test_graph_with_a_further_input() -> None:
    """Nobody would fill it."""
    further = helper.make_tensor_value_info("mood", TensorProto.FLOAT, [1])

    with pytest.raises(BundleError, match=r"inputs are author_index .* mood float32 \[1\]"):
        scorer(edited(lambda m: m.graph.input.append(further)))


@pytest.mark.parametrize("inputs", [[], None, [{}], 5, toy.manifest_fields()["graph"]["inputs"][:3]])
def test_manifest_that_describes_another_graph(inputs: Any) -> None:
    """What it states is what the graph has."""
    with pytest.raises(BundleError, match=r"manifest\.json: graph inputs are not those of model\.onnx"):
        scorer(inputs=inputs)


def test_a_group_without_features_has_no_input() -> None:
    """The graph has no input for it, and its empty table is not offered."""

    def drop_viewer(model: onnx.ModelProto) -> None:
        place = next(i for i, value in enumerate(model.graph.input) if value.name == "viewer")
        del model.graph.input[place]
        keep = [n for n in model.graph.node if not n.output[0].startswith("viewer_")]
        del model.graph.node[:]
        model.graph.node.extend(keep)
        replace_node(model, "sum", helper.make_node("Identity", ["two_sums"], ["sum"]))

    schema = Schema(tuple(f for f in toy.SCHEMA.features if f.group != "viewer"), toy.SCHEMA.heads)
    inputs = [i for i in toy.manifest_fields()["graph"]["inputs"] if i["name"] != "viewer"]
    loaded = scorer(edited(drop_viewer), schema, inputs=inputs)
    loaded.warm_up()

    scores = loaded.score(
        Tables(
            viewer=np.empty((1, 0), np.float32),
            authors=np.array([[0, NAN]], np.float32),
            author_index=np.array([0]),
            tweets=np.full((1, 5), NAN, np.float32),
        )
    )

    np.testing.assert_allclose(scores.raw, [[0.1, 0.01, 0]], rtol=1e-6)
