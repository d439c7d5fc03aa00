"""The bundle: a directory that holds one model and all that is known about it.

    model.onnx      the graph, self-contained
    manifest.json   MANIFEST_KEYS; sha256 and size of the two other files
    golden.binpb    GoldenFile: requests with the answers that the model gave when it was made

A bundle is read from disk only, each file once: what was checked is what is loaded. Whether the model also answers
as its golden file says is seen where it is loaded, in service/model.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from service import __version__, onnx_file
from service.generated.timelines.ranking.v1 import golden_pb2
from service.schema import Schema, SchemaError, is_finite

FORMAT = 1
MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.binpb"

# Far above any sound bundle, far below what would hurt a server that reads one: an ONNX file ends at 2 GiB anyway.
BYTES_MAX = {MODEL_FILE: 1 << 30, MANIFEST_FILE: 8 << 20, GOLDEN_FILE: 64 << 20}
GOLDEN_TWEETS_MAX = 20
FAULTS_MAX = 20
FAULT_CHARACTERS_MAX = 300

# What the maker of a bundle states. schema: Schema.to_json(). graph: {precision, inputs, outputs}, the latter two
# lists of {name, dtype, shape}. law: name of the simulated law that it was trained for, or null. plan: the resolved
# training plan. calibration: by head {method, positives, knots}. icymi_relevance_min: the default floor of the ICYMI
# module, from held-out scores of this model.
STATED_KEYS: dict[str, tuple[type, ...]] = {
    "schema": (dict,),
    "graph": (dict,),
    "law": (str, type(None)),
    "plan": (dict,),
    "metrics": (dict,),
    "calibration": (dict,),
    "icymi_relevance_min": (float, int),
}
# What follows from the rest: format number, {file: {sha256, bytes}}, hashes of schema and plan, version of the writer;
# manifest_hash: of all but `files`, which the files themselves speak for; older bundles have none.
DERIVED_KEYS: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "files": (dict,),
    "schema_hash": (str,),
    "plan_hash": (str,),
    "created_by": (str,),
    "manifest_hash": (str,),
}
MANIFEST_KEYS = STATED_KEYS | DERIVED_KEYS


class BundleError(ValueError):
    """A bundle is not to be served.

    Attributes:
        faults: One line for each thing wrong with it; at least one. What a bundle has in it may be in them: long ones
            are cut, of very many the first are there with the number of the others, and nothing in them is a control
            character, for they go into logs, to terminals and to callers.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        lines = [_one_line(fault) for fault in faults[:FAULTS_MAX]]
        if len(faults) > FAULTS_MAX:
            lines.append(f"and {len(faults) - FAULTS_MAX} more")
        super().__init__("; ".join(lines))
        self.faults = tuple(lines)


class UnreadableBundleError(BundleError):
    """Whether the bundle is sound can not be told: the system does not let us read it, which may pass."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and is sound as far as its files go.

    Attributes:
        manifest: manifest.json as JSON values.
        schema: The manifest's schema.
        model: The content of model.onnx.
        sha256: Of `model`, in hex.
        golden: At least one case, each of 1 to GOLDEN_TWEETS_MAX Tweets.
    """

    manifest: Mapping[str, Any]
    schema: Schema
    model: bytes
    sha256: str
    golden: golden_pb2.GoldenFile


def read_bundle(directory: Path) -> Bundle:
    """Reads a bundle and checks all that can be seen without running the model.

    Raises:
        BundleError: With every fault found; UnreadableBundleError where a file can not be read.
    """
    faults: list[str] = []
    contents = _read_files(directory, faults)
    manifest = _parse_manifest(contents.get(MANIFEST_FILE), faults)
    if faults:
        raise BundleError(faults)

    for name in (MODEL_FILE, GOLDEN_FILE):
        faults += _file_faults(name, contents[name], manifest["files"])
    if faults:  # Not what its maker wrote: nothing else about it is worth a word.
        raise BundleError(faults)
    schema = _parse_schema(manifest, faults)
    if manifest["plan_hash"] != _hash_json(manifest["plan"]):
        faults.append(f"{MANIFEST_FILE}: plan_hash is not that of the plan")
    if manifest.get("manifest_hash", wanted := _manifest_hash(manifest)) != wanted and not faults:
        faults.append(f"{MANIFEST_FILE}: manifest_hash is not that of what it says")
    faults += [f"{MODEL_FILE}: {fault}" for fault in onnx_file.faults(contents[MODEL_FILE])]
    golden = _parse_golden(contents[GOLDEN_FILE], faults)
    if faults or schema is None:
        raise BundleError(faults)
    return Bundle(manifest, schema, contents[MODEL_FILE], manifest["files"][MODEL_FILE]["sha256"], golden)


def write_bundle(directory: Path, model: bytes, stated: Mapping[str, Any], golden: bytes) -> None:
    """Writes a bundle that appears whole or not at all.

    Args:
        directory: Where it shall stand; must not exist (or be empty), its parent must.
        model: The content of model.onnx.
        stated: A value for each of STATED_KEYS, as JSON values.
        golden: A serialised GoldenFile.

    Raises:
        BundleError: A key is missing, unknown or of the wrong type, or what is to be written would not be read.
        OSError: `directory` holds something already, or the disk refuses.
    """
    manifest = dict(stated) | {
        "format": FORMAT,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in ((MODEL_FILE, model), (GOLDEN_FILE, golden))
        },
        "schema_hash": Schema.from_json(stated["schema"]).hash if "schema" in stated else "",
        "plan_hash": _hash_json(stated.get("plan")),
        "created_by": f"timeline-ranker {__version__}",
    }
    manifest["manifest_hash"] = _manifest_hash(manifest)
    if faults := _key_faults(manifest):
        raise BundleError(faults)
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
    _place(directory, {MODEL_FILE: model, GOLDEN_FILE: golden, MANIFEST_FILE: text.encode()})


def copy_bundle(source: Path, directory: Path) -> None:
    """Copies a bundle byte for byte; the copy appears whole or not at all.

    Args:
        source: A bundle.
        directory: Where the copy shall stand; must not exist (or be empty), its parent must.

    Raises:
        BundleError: What was read is not to be served.
        OSError: `directory` holds something already, or the disk refuses.
    """
    faults: list[str] = []
    contents = _read_files(source, faults)
    if faults:
        raise BundleError(faults)
    _place(directory, contents)


def sync_directory(directory: Path) -> None:
    """Makes renames and new entries of a directory survive a crash."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place(directory: Path, contents: Mapping[str, bytes]) -> None:
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        for name, content in contents.items():
            _write_durably(partial / name, content)
        read_bundle(partial)
        partial.chmod(0o755)
        sync_directory(partial)
        partial.rename(directory)
        sync_directory(directory.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _read_files(directory: Path, faults: list[str]) -> dict[str, bytes]:
    try:
        return _contents(directory, faults)
    except OSError as error:
        raise UnreadableBundleError([f"{Path(error.filename or directory).name}: {error.strerror}"]) from error


def _contents(directory: Path, faults: list[str]) -> dict[str, bytes]:
    if not directory.is_dir():
        faults.append(f"{directory} is not a directory")
        return {}
    names = {entry.name for entry in directory.iterdir()}
    faults += [f"{name}: does not belong into a bundle" for name in sorted(names - BYTES_MAX.keys())]
    contents = {}
    inside = Path(os.path.realpath(directory))
    for name, bytes_max in BYTES_MAX.items():
        path = directory / name
        if name not in names:
            faults.append(f"{name}: is missing")
        elif not Path(os.path.realpath(path)).is_relative_to(inside):  # Path.resolve raises where links go in a circle
            faults.append(f"{name}: is a link that leads out of the bundle")
        elif not path.is_file():
            faults.append(f"{name}: is not a regular file")
        elif (size := path.stat().st_size) > bytes_max:
            faults.append(f"{name}: has {size} bytes, more than {bytes_max}")
        else:
            contents[name] = path.read_bytes()
    return contents


def _parse_manifest(content: bytes | None, faults: list[str]) -> dict[str, Any]:
    if content is None:
        return {}
    try:
        manifest = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        faults.append(f"{MANIFEST_FILE}: is not JSON: {error}")
        return {}
    if not isinstance(manifest, dict):
        faults.append(f"{MANIFEST_FILE}: is not a JSON object")
        return {}
    if manifest.get("format") != FORMAT:  # First: another format may well have other keys.
        faults.append(f"{MANIFEST_FILE}: format is {manifest.get('format')!r}, this software reads {FORMAT}")
        return {}
    faults += _key_faults(manifest)
    return manifest


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _key_faults(manifest: Mapping[str, Any]) -> list[str]:
    needed = MANIFEST_KEYS.keys() - {"manifest_hash"}
    faults = [f"{MANIFEST_FILE}: {key} is missing" for key in MANIFEST_KEYS if key in needed and key not in manifest]
    for key, value in manifest.items():
        if key not in MANIFEST_KEYS:
            faults.append(f"{MANIFEST_FILE}: {key} is not known")
        elif isinstance(value, bool) or not isinstance(value, MANIFEST_KEYS[key]):
            faults.append(f"{MANIFEST_FILE}: {key} is of the wrong type")
    floor = manifest.get("icymi_relevance_min")
    if isinstance(floor, float | int) and not is_finite(floor):
        faults.append(f"{MANIFEST_FILE}: icymi_relevance_min is {floor}")
    files = manifest.get("files")
    if isinstance(files, dict) and (unknown := files.keys() - {MODEL_FILE, GOLDEN_FILE}):
        faults.append(f"{MANIFEST_FILE}: files names {', '.join(sorted(unknown))}")
    return faults


def _file_faults(name: str, content: bytes, files: Mapping[str, Any]) -> list[str]:
    stated = files.get(name)
    if not isinstance(stated, dict):
        return [f"{MANIFEST_FILE}: files says nothing of {name}"]
    if stated.get("bytes") != len(content):
        return [f"{name}: has {len(content)} bytes, the manifest says {stated.get('bytes')}"]
    digest = hashlib.sha256(content).hexdigest()
    if stated.get("sha256") != digest:
        return [f"{name}: sha256 is {digest}, the manifest says {stated.get('sha256')}"]
    return []


def _parse_schema(manifest: Mapping[str, Any], faults: list[str]) -> Schema | None:
    try:
        schema = Schema.from_json(manifest["schema"])
    except SchemaError as error:
        faults.append(f"{MANIFEST_FILE}: schema: {error}")
        return None
    if schema.hash != manifest["schema_hash"]:
        faults.append(f"{MANIFEST_FILE}: schema_hash is not that of the schema")
    return schema


def _parse_golden(content: bytes, faults: list[str]) -> golden_pb2.GoldenFile:
    try:
        golden = golden_pb2.GoldenFile.FromString(content)
    except DecodeError:
        faults.append(f"{GOLDEN_FILE}: is not a GoldenFile")
        return golden_pb2.GoldenFile()
    if not golden.cases:
        faults.append(f"{GOLDEN_FILE}: has no cases")
    for i, case in enumerate(golden.cases):
        tweets = len(case.request.candidates.tweet_ids)
        if not 1 <= tweets <= GOLDEN_TWEETS_MAX:
            faults.append(f"{GOLDEN_FILE}: case {i} has {tweets} Tweets, not 1 to {GOLDEN_TWEETS_MAX}")
    return golden


def _manifest_hash(manifest: Mapping[str, Any]) -> str:
    return _hash_json({key: value for key, value in manifest.items() if key not in ("files", "manifest_hash")})


def _one_line(fault: str) -> str:
    cut = fault if len(fault) <= FAULT_CHARACTERS_MAX else fault[:FAULT_CHARACTERS_MAX] + "..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
