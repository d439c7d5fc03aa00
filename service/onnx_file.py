"""What an ONNX file may not contain, found without the onnx package (serving does not depend on it)."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import DecodeError

from service.generated.timelines.onnx.v1 import model_pb2

# ONNX's own operators and those that onnxruntime carries itself; any other would be code from elsewhere.
DOMAINS = ("", "com.microsoft")


def faults(content: bytes) -> list[str]:
    """Why this file is not a self-contained model of known operators; empty where it is one.

    Looks into nested graphs too. That operators exist and types fit is for onnxruntime to say.
    """
    try:
        model = model_pb2.Model.FromString(content)
    except DecodeError:
        return ["is not an ONNX file"]
    if not model.graph.node:
        return ["is an ONNX file without a graph"]
    found = [f"operator set of domain {o.domain!r}" for o in model.opset_import if o.domain not in DOMAINS]
    found += [f"defines an operator of its own, {function.name!r}" for function in model.functions]
    if model.training_info:
        found.append("carries training graphs")
    for graph in _graphs(model.graph):
        found += [f"operator {n.op_type!r} of domain {n.domain!r}" for n in graph.node if n.domain not in DOMAINS]
        found += [f"data of tensor {t.name!r} outside the file" for t in _tensors(graph) if _is_external(t)]
    return found


def _graphs(root: model_pb2.Graph) -> Iterator[model_pb2.Graph]:
    waiting = [root]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [*attribute.graphs, attribute.g] if attribute.HasField("g") else attribute.graphs


def _tensors(graph: model_pb2.Graph) -> Iterator[model_pb2.Tensor]:
    """The graph's own constants; those of nested graphs come with them."""
    yield from graph.initializer
    sparse = list(graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    for tensor in sparse:
        yield tensor.values
        yield tensor.indices


def _is_external(tensor: model_pb2.Tensor) -> bool:
    return tensor.data_location != 0 or len(tensor.external_data) > 0
