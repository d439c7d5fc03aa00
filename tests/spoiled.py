"""Bundles that must not serve, each spoiled in one way, with what is said about it.

Whoever spoils a file here also makes the manifest fit it, as somebody with bad intentions would, unless that is the
point.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.schema import Schema
from tests import toy


def edit_manifest(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest in place, its hash of itself included."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    rest = {key: value for key, value in manifest.items() if key not in ("files", "manifest_hash")}
    manifest["manifest_hash"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))


def replace_model(directory: Path, model: bytes) -> None:
    """Replaces the model and has the manifest say so."""
    (directory / "model.onnx").write_bytes(model)
    stated = {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model)}
    edit_manifest(directory, lambda manifest: manifest["files"].update({"model.onnx": stated}))


def remove(directory: Path) -> None:
    """There is nothing of that version."""
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def leave_half_written(directory: Path) -> None:
    """The manifest is not there yet."""
    (directory / "manifest.json").unlink()


def flip_byte(directory: Path) -> None:
    """One bit of the model is another."""
    model = bytearray((directory / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (directory / "model.onnx").write_bytes(model)


def flip_byte_of_manifest(directory: Path) -> None:
    """One bit of a number that nothing else in the bundle depends on is another."""
    path = directory / "manifest.json"
    manifest = path.read_bytes()
    number = b'"icymi_relevance_min": 0.2'
    assert number in manifest
    path.write_bytes(manifest.replace(number, number[:-1] + bytes([number[-1] ^ 1])))


def fail_when_run(directory: Path) -> None:
    """A graph that loads, and looks for a row that there is not."""
    model = onnx.load_from_string(toy.model_bytes())
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([10**9]), "far"))
    model.graph.node.append(helper.make_node("Gather", ["viewer_weights", "far"], ["nothing"], axis=0))
    model.graph.node[-2].output[0] = "would_be"
    model.graph.node.append(helper.make_node("Mul", ["nothing", "zero"], ["zeros"]))
    model.graph.node.append(helper.make_node("Add", ["would_be", "zeros"], ["probabilities"]))
    replace_model(directory, model.SerializeToString())


def link_in_a_circle(directory: Path) -> None:
    """A link to itself."""
    (directory / "golden.binpb").unlink()
    (directory / "golden.binpb").symlink_to("golden.binpb")


def widen(directory: Path) -> None:
    """A vector that no server could make a table of."""
    feature = {"name": "vast", "group": "tweet", "kind": "vector", "unit": "", "vocabulary": [], "width": 10_000_000}

    def edit(manifest: dict[str, Any]) -> None:
        manifest["schema"]["features"].append(feature)
        manifest["schema_hash"] = ""

    edit_manifest(directory, edit)


def link_outside(directory: Path) -> None:
    """The model stands elsewhere."""
    elsewhere = directory.parent / f"elsewhere-{directory.name}"
    (directory / "model.onnx").rename(elsewhere)
    (directory / "model.onnx").symlink_to(elsewhere)


def link_version(directory: Path) -> None:
    """The whole version stands elsewhere."""
    elsewhere = directory.parent / f"elsewhere-{directory.name}"
    directory.rename(elsewhere)
    directory.symlink_to(elsewhere)


def inflate(directory: Path) -> None:
    """A model of 2 GiB, holes for the most part."""
    os.truncate(directory / "model.onnx", 2 << 30)


def lie_about_inputs(directory: Path) -> None:
    """The manifest states another graph than there is."""
    edit_manifest(directory, lambda manifest: manifest["graph"]["inputs"][0].update(shape=[1, 99]))


def change_schema(directory: Path) -> None:
    """The manifest's schema is not what the graph was made for, though its hash is right."""
    schema = Schema(toy.SCHEMA.features[:-1], toy.SCHEMA.heads)
    edit_manifest(directory, lambda m: m.update(schema=schema.to_json(), schema_hash=schema.hash))


def answer(value: float) -> Callable[[Path], None]:
    """Every probability is `value`."""

    def spoil(directory: Path) -> None:
        model = onnx.load_from_string(toy.model_bytes())
        for name, number in (("value", value), ("nothing", 0.0)):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(np.float32(number)), name))
        model.graph.node[-1].output[0] = "would_be"
        model.graph.node.append(helper.make_node("Mul", ["would_be", "nothing"], ["zeros"]))
        model.graph.node.append(helper.make_node("Add", ["zeros", "value"], ["probabilities"]))
        replace_model(directory, model.SerializeToString())

    return spoil


def slow_down(directory: Path) -> None:
    """The same answers after a detour that takes its time and adds nothing."""
    model = onnx.load_from_string(toy.model_bytes())
    there = np.zeros((toy.SCHEMA.layouts["tweet"].width, 4096), np.float32)
    back = np.zeros((4096, len(toy.SCHEMA.heads)), np.float32)
    model.graph.initializer.extend([numpy_helper.from_array(there, "there"), numpy_helper.from_array(back, "back")])
    nodes = list(model.graph.node)
    where = next(i for i, node in enumerate(nodes) if node.output[0] == "sum")
    nodes[where].input[0] = "two_sums_again"
    del model.graph.node[:]
    detour = [
        helper.make_node("MatMul", ["tweet_values", "there"], ["far"]),
        helper.make_node("Erf", ["far"], ["farther"]),
        helper.make_node("MatMul", ["farther", "back"], ["nothing"]),
        helper.make_node("Add", ["two_sums", "nothing"], ["two_sums_again"]),
    ]
    model.graph.node.extend([*nodes[:where], *detour, *nodes[where:]])
    replace_model(directory, model.SerializeToString())


def use_foreign_operator(directory: Path) -> None:
    """An operator out of somebody's library."""
    model = onnx.load_from_string(toy.model_bytes())
    model.graph.node[0].domain = "com.example"
    replace_model(directory, model.SerializeToString())


def read_external_data(directory: Path) -> None:
    """Weights that stand in another file."""
    model = onnx.load_from_string(toy.model_bytes())
    tensor = model.graph.initializer[-1]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="../../labels.json")
    replace_model(directory, model.SerializeToString())


# What is done to a bundle -> what the one line about it says.
SPOILERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (remove, "is not a directory"),
    "half-written": (leave_half_written, "manifest.json: is missing"),
    "flipped byte": (flip_byte, "model.onnx: sha256 is"),
    "flipped byte of the manifest": (flip_byte_of_manifest, "manifest.json: manifest_hash is not"),
    "link in a circle": (link_in_a_circle, "golden.binpb: is not a regular file"),
    "link leading outside": (link_outside, "model.onnx: is a link that leads out of the bundle"),
    "version a link": (link_version, "is a link"),
    "absurd size": (inflate, "model.onnx: has 2147483648 bytes, more than"),
    "absurd width": (widen, "manifest.json: schema: the tweet's features take 10000005 columns, more than 16384"),
    "lying manifest": (lie_about_inputs, "manifest.json: graph inputs are not those of model.onnx"),
    "wrong schema": (change_schema, "model.onnx: inputs are"),
    "NaN": (answer(float("nan")), "model.onnx: probabilities outside of [0, 1]"),
    "not as golden": (answer(0.5), "golden.binpb: case 0: probabilities are up to"),
    "failing when run": (fail_when_run, "model.onnx: a run for 1 Tweets fails: "),
    "slow": (slow_down, "times as long as version 1; 3 times is the most"),
    "foreign operator": (use_foreign_operator, "model.onnx: operator 'IsNaN' of domain 'com.example'"),
    "external data": (read_external_data, "model.onnx: data of tensor 'tweet_weights' outside the file"),
}
