"""An ONNX file with foreign operators or data elsewhere is found out, wherever in the graph they hide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service import onnx_file
from tests import toy


def external(name: str) -> TensorProto:
    """A tensor whose data would be read from a file of its own."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def evil() -> onnx.NodeProto:
    """An operator that onnxruntime would look for in a library of somebody's."""
    return helper.make_node("Op", [], [], domain="evil")


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def inside_if(node: onnx.NodeProto) -> onnx.NodeProto:
    """A conditional with `node` in one of its branches."""
    branch = helper.make_graph([node], "branch", [], [])
    return helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)


def sparse(values: TensorProto) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0]), "where"), [2])


def add_external_to_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.append(sparse(numpy_helper.from_array(np.ones(1, np.float32), "ok")))
    model.graph.sparse_initializer[0].values.CopyFrom(external("hidden"))


def add_external_to_sparse_attribute(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.indices.CopyFrom(
        external("hidden")
    )
    model.graph.node.append(node)


def test_accepts_a_plain_model() -> None:
    """A model of ONNX's own operators with its weights inside has no faults."""
    assert onnx_file.faults(toy.model_bytes()) == []


def test_accepts_operators_of_onnxruntime() -> None:
    """com.microsoft operators come with onnxruntime itself."""
    model = onnx.load_model_from_string(toy.model_bytes())
    model.graph.node.append(helper.make_node("FusedMatMul", ["a", "b"], ["c"], domain="com.microsoft"))
    model.opset_import.add(domain="com.microsoft", version=1)

    assert onnx_file.faults(model.SerializeToString()) == []


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda m: m.opset_import.add(domain="evil", version=1), "operator set of domain 'evil'"),
        (
            lambda m: m.graph.node.append(helper.make_node("Op", [], [], domain="evil")),
            "operator 'Op' of domain 'evil'",
        ),
        (
            lambda m: m.graph.node.append(inside_if(inside_if(helper.make_node("Op", [], [], domain="evil")))),
            "operator 'Op' of domain 'evil'",
        ),
        (lambda m: m.functions.add(name="Mine", domain="mine"), "defines an operator of its own, 'Mine'"),
        (lambda m: m.training_info.add(), "carries training graphs"),
        (lambda m: m.graph.initializer.append(external("w")), "data of tensor 'w' outside the file"),
        (lambda m: m.graph.node.append(constant(external("w"))), "data of tensor 'w' outside the file"),
        (lambda m: m.graph.node.append(inside_if(constant(external("w")))), "data of tensor 'w' outside the file"),
        (add_external_to_sparse, "data of tensor 'hidden' outside the file"),
        (add_external_to_sparse_attribute, "data of tensor 'hidden' outside the file"),
        (
            lambda m: m.graph.initializer[0].external_data.add(key="location", value="w.bin"),
            "data of tensor 'zero' outside the file",
        ),
        (lambda m: m.ClearField("graph"), "is an ONNX file without a graph"),
    ],
)
def test_finds(spoil: Callable[[onnx.ModelProto], object], fault: str) -> None:
    """Each of these would let a model do more than compute."""
    model = onnx.load_model_from_string(toy.model_bytes())
    spoil(model)

    assert fault in onnx_file.faults(model.SerializeToString())


def test_other_bytes() -> None:
    """What does not parse is not an ONNX file."""
    assert onnx_file.faults(b"\x0a\xff") == ["is not an ONNX file"]


def test_lists_of_graphs_are_looked_into() -> None:
    """An attribute may hold many."""
    model = onnx.load_model_from_string(toy.model_bytes())
    branch = helper.make_graph([helper.make_node("Op", [], [], domain="com.example")], "branch", [], [])
    node = helper.make_node("Scan", [], [])
    node.attribute.add(name="bodies", type=onnx.AttributeProto.GRAPHS).graphs.append(branch)
    model.graph.node.append(node)

    assert onnx_file.faults(model.SerializeToString()) == ["operator 'Op' of domain 'com.example'"]
