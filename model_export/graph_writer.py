"""Writes ONNX models node by node, under names that stay the same from one build to the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

OPSET = 21
IR_VERSION = 10
_DTYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}


class GraphWriter:
    """A graph under construction. Every value bears the name of the node or constant that makes it."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Adds `array`, in its own dtype and shape, as a constant; returns `name`."""
        if name in self._initializers:
            raise ValueError(f"constant {name} twice")
        self._initializers[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def node(self, operator: str, inputs: Sequence[str], name: str, domain: str = "", **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name, which is the node's `name`."""
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def cast(self, value: str, to: int, name: str) -> str:
        """Adds a Cast to a `TensorProto` data type."""
        return self.node("Cast", [value], name, to=to)

    def to_graph(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """The nodes as a graph inside of another's node; what it reads besides its inputs is the other's."""
        return helper.make_graph(self._nodes, name, list(inputs), list(outputs))

    def to_bytes(
        self, name: str, doc: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> bytes:
        """The checked model; the same calls give the same bytes. Constants that no node reads are left out."""
        used = _values_read(self._nodes)
        initializers = [tensor for key, tensor in self._initializers.items() if key in used]
        graph = helper.make_graph(self._nodes, name, list(inputs), list(outputs), initializers, doc_string=doc)
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain == "com.microsoft" for node in self._nodes):
            opsets.append(helper.make_opsetid("com.microsoft", 1))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="timeline-ranker")
        checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


def _values_read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """What nodes and the graphs inside of them read."""
    read: set[str] = set()
    for node in nodes:
        read.update(node.input)
        for attribute in node.attribute:
            read |= _values_read(attribute.g.node)
    return read


def tensor_info(name: str, dtype: str, shape: Sequence[str | int]) -> onnx.ValueInfoProto:
    """An input or output of a graph; a str in `shape` names a size that is known only when it runs."""
    return helper.make_tensor_value_info(name, _DTYPES[dtype], list(shape))


def signature(model: bytes) -> dict[str, list[dict[str, Any]]]:
    """Inputs and outputs of a serialized model, for the manifest.

    Returns:
        {"inputs": [{"name", "dtype", "shape"}, ...], "outputs": [...]}; a size in `shape` is an int, or a str that
        names a size known only when the graph runs.
    """
    graph = onnx.load_model_from_string(model).graph
    return {"inputs": [_describe(i) for i in graph.input], "outputs": [_describe(o) for o in graph.output]}


def _describe(info: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = info.type.tensor_type
    shape = [d.dim_param if d.HasField("dim_param") else d.dim_value for d in tensor.shape.dim]
    return {"name": info.name, "dtype": str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), "shape": shape}
