"""A bundle is read as it was written, and not at all where anything about it is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import bundle
from service.bundle import BundleError, UnreadableBundleError, read_bundle, write_bundle
from service.generated.timelines.ranking.v1 import golden_pb2
from service.schema import SchemaError
from tests import toy
from tests.rlimits import no_descriptor_left


def edit_manifest(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def replace_file(directory: Path, name: str, content: bytes) -> None:
    """Replaces a file and has the manifest say so, as a maker with bad intentions would."""
    (directory / name).write_bytes(content)
    stated = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit_manifest(directory, lambda manifest: manifest["files"].update({name: stated}))


def faults_of(directory: Path) -> tuple[str, ...]:
    with pytest.raises(BundleError) as caught:
        read_bundle(directory)
    return caught.value.faults


def test_reads_what_was_written(toy_bundle: Path) -> None:
    """Model, schema, golden file and what the maker stated come back unchanged."""
    read = read_bundle(toy_bundle)

    assert read.model == toy.model_bytes()
    assert read.sha256 == hashlib.sha256(toy.model_bytes()).hexdigest()
    assert read.schema == toy.SCHEMA
    assert read.golden == toy.golden_file()
    assert {key: read.manifest[key] for key in toy.manifest_fields()} == toy.manifest_fields()


def test_manifest_states_hashes_and_sizes(toy_bundle: Path) -> None:
    """Anyone can check a bundle with sha256sum and a JSON reader."""
    manifest = json.loads((toy_bundle / "manifest.json").read_text())

    assert manifest["format"] == 1
    assert manifest["schema_hash"] == toy.SCHEMA.hash
    assert manifest["plan_hash"] == hashlib.sha256(b'{"name": "toy"}').hexdigest()
    for name in ("model.onnx", "golden.binpb"):
        content = (toy_bundle / name).read_bytes()
        assert manifest["files"][name] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_leaves_nothing_beside_the_bundle(own_bundle: Path) -> None:
    """The temporary directory is gone once the bundle stands, and others may read the bundle."""
    assert [p.name for p in own_bundle.parent.iterdir()] == [own_bundle.name]
    assert own_bundle.stat().st_mode & 0o777 == 0o755


def test_copies_byte_for_byte(toy_bundle: Path, tmp_path: Path) -> None:
    """A copy has the files of the original, and is a bundle."""
    bundle.copy_bundle(toy_bundle, tmp_path / "copy")

    for path in toy_bundle.iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()
    assert read_bundle(tmp_path / "copy") == read_bundle(toy_bundle)


def test_copies_nothing_unsound(own_bundle: Path) -> None:
    """Of a bundle with a fault no copy comes to be, and nothing is left where it would have stood."""
    (own_bundle / "golden.binpb").write_bytes(b"")

    with pytest.raises(BundleError, match=r"golden\.binpb: has 0 bytes"):
        bundle.copy_bundle(own_bundle, own_bundle.parent / "copy")

    assert [p.name for p in own_bundle.parent.iterdir()] == [own_bundle.name]


def test_does_not_overwrite(own_bundle: Path) -> None:
    """A bundle that stands is never replaced, and the attempt leaves nothing behind."""
    before = (own_bundle / "manifest.json").read_bytes()

    with pytest.raises(OSError, match="not empty"):
        toy.write(own_bundle, law="steps")

    assert (own_bundle / "manifest.json").read_bytes() == before
    assert [p.name for p in own_bundle.parent.iterdir()] == [own_bundle.name]


def test_refuses_to_write_what_it_would_not_read(tmp_path: Path) -> None:
    """A bundle that could not be served never appears."""
    with pytest.raises(BundleError, match="is not an ONNX file"):
        write_bundle(tmp_path / "b", b"\x0a\xff", toy.manifest_fields(), toy.golden_file().SerializeToString())

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"law": 5}, "law is of the wrong type"),
        ({"laws": "steps"}, "laws is not known"),
        ({"icymi_relevance_min": True}, "icymi_relevance_min is of the wrong type"),
        ({"icymi_relevance_min": float("nan")}, "icymi_relevance_min is nan"),
        ({"icymi_relevance_min": 10**400}, "icymi_relevance_min is 10000"),
    ],
)
def test_refuses_to_write_a_bad_manifest(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    """What the maker states is checked by key and type."""
    with pytest.raises(BundleError, match=fault):
        toy.write(tmp_path / "b", **change)


def test_refuses_to_write_without_a_key(tmp_path: Path) -> None:
    """All keys are the maker's duty: none has a default."""
    stated = {key: value for key, value in toy.manifest_fields().items() if key != "metrics"}

    with pytest.raises(BundleError, match="metrics is missing"):
        write_bundle(tmp_path / "b", toy.model_bytes(), stated, b"")


def test_refuses_to_write_a_contradicting_schema(tmp_path: Path) -> None:
    """A schema that contradicts itself is the maker's error."""
    schema = toy.SCHEMA.to_json() | {"heads": []}

    with pytest.raises(SchemaError):
        toy.write(tmp_path / "b", schema=schema)


def test_a_directory_that_is_not_there() -> None:
    """The first thing to be wrong with a bundle is that there is none."""
    assert faults_of(Path("/nowhere/at/all")) == ("/nowhere/at/all is not a directory",)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "golden.binpb"])
def test_missing_file(own_bundle: Path, name: str) -> None:
    """A half-written bundle is refused with the file that it lacks."""
    (own_bundle / name).unlink()

    assert faults_of(own_bundle) == (f"{name}: is missing",)


@pytest.mark.parametrize("name", ["model.onnx", "golden.binpb"])
@pytest.mark.parametrize("position", [0, -1])
def test_flipped_byte(own_bundle: Path, name: str, position: int) -> None:
    """One byte of another value is enough to refuse a file."""
    content = bytearray((own_bundle / name).read_bytes())
    content[position] ^= 1
    (own_bundle / name).write_bytes(content)

    (fault,) = faults_of(own_bundle)

    assert fault.startswith(f"{name}: sha256 is ")


def test_truncated_file(own_bundle: Path) -> None:
    """A file of another length is refused by its length."""
    size = len(toy.model_bytes())
    os.truncate(own_bundle / "model.onnx", size - 1)

    assert faults_of(own_bundle) == (f"model.onnx: has {size - 1} bytes, the manifest says {size}",)


def test_absurd_size(own_bundle: Path) -> None:
    """A file beyond all reason is not even read (it is sparse here: reading it would take its size in memory)."""
    os.truncate(own_bundle / "golden.binpb", 1 << 40)

    assert faults_of(own_bundle) == (f"golden.binpb: has {1 << 40} bytes, more than {64 << 20}",)


def test_unknown_file(own_bundle: Path) -> None:
    """What is not known to belong into a bundle might be what a model loads behind the checks."""
    (own_bundle / "weights.bin").write_bytes(b"")

    assert faults_of(own_bundle) == ("weights.bin: does not belong into a bundle",)


def test_link_out_of_the_bundle(own_bundle: Path) -> None:
    """A link may not fetch a file from elsewhere, even one with the right bytes."""
    elsewhere = own_bundle.parent / "elsewhere.onnx"
    (own_bundle / "model.onnx").rename(elsewhere)
    (own_bundle / "model.onnx").symlink_to(elsewhere)

    assert faults_of(own_bundle) == ("model.onnx: is a link that leads out of the bundle",)


def test_link_to_the_whole_bundle(own_bundle: Path) -> None:
    """The bundle itself may be reached through a link, as it is under most volume mounts."""
    link = own_bundle.parent / "current"
    link.symlink_to(own_bundle)

    assert read_bundle(link).schema == toy.SCHEMA


def test_directory_in_place_of_a_file(own_bundle: Path) -> None:
    """Neither a directory nor a device passes for a file."""
    (own_bundle / "golden.binpb").unlink()
    (own_bundle / "golden.binpb").mkdir()

    assert faults_of(own_bundle) == ("golden.binpb: is not a regular file",)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"icymi_relevance_min": NaN}', "NaN is not a JSON number"),
        (b"[]", "is not a JSON object"),
        (b"{}", "format is None, this software reads 1"),
        (b'{"format": 2}', "format is 2, this software reads 1"),
    ],
)
def test_manifest_that_is_none(own_bundle: Path, content: bytes, fault: str) -> None:
    """Any bytes in place of a manifest give one clear line."""
    (own_bundle / "manifest.json").write_bytes(content)

    (found,) = faults_of(own_bundle)

    assert found.startswith("manifest.json: ")
    assert fault in found


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda m: m.pop("plan"), "manifest.json: plan is missing"),
        (lambda m: m.update(note="x"), "manifest.json: note is not known"),
        (lambda m: m["plan"].update(seed=1), "manifest.json: plan_hash is not that of the plan"),
        (lambda m: m["schema"]["features"].pop(), "manifest.json: schema_hash is not that of the schema"),
        (lambda m: m["schema"]["features"].clear(), "manifest.json: schema_hash is not that of the schema"),
        (lambda m: m["schema"]["heads"].clear(), "manifest.json: schema: heads must be there"),
        (lambda m: m["schema"]["features"][0].update(name=5), "manifest.json: schema: "),
        (lambda m: m["schema"]["features"][7].update(width=2.5), "manifest.json: schema: "),
        (lambda m: m["schema"].update(features=5), "manifest.json: schema: "),
        (
            lambda m: m["schema"]["features"][0].update(name="a\ud800"),
            "manifest.json: schema: a name that is no Unicode",
        ),
        (
            lambda m: m["schema"]["features"][1].update(vocabulary="en"),
            "manifest.json: schema: not a schema: a vocabul",
        ),
        (lambda m: m["schema"]["heads"][0].update(weight=10**400), "manifest.json: schema: head 'like': weight 1000"),
        (lambda m: m["schema"]["heads"][0].update(weight=True), "manifest.json: schema: head 'like': weight True"),
        (lambda m: m["schema"]["features"][7].update(width=20_000), "manifest.json: schema: the tweet's features take"),
        (lambda m: m["metrics"].update(rce=1), "manifest.json: manifest_hash is not that of what it says"),
        (lambda m: m["files"].update({"x": {}}), "manifest.json: files names x"),
        (lambda m: m["files"].pop("model.onnx"), "manifest.json: files says nothing of model.onnx"),
        (lambda m: m["files"].update({"model.onnx": 5}), "manifest.json: files says nothing of model.onnx"),
    ],
)
def test_manifest_that_lies(own_bundle: Path, edit: Callable[[dict[str, Any]], object], fault: str) -> None:
    """What the manifest says is held against the rest of the bundle."""
    edit_manifest(own_bundle, edit)

    (found,) = faults_of(own_bundle)

    assert found.startswith(fault)


@given(st.data())
def test_no_bit_of_a_manifest_can_flip_unseen(toy_bundle: Path, data: st.DataObject) -> None:
    """It is refused, or means what it did before."""
    content = bytearray((toy_bundle / "manifest.json").read_bytes())
    before = json.loads(content)
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    with tempfile.TemporaryDirectory() as name:
        for path in toy_bundle.iterdir():
            (Path(name) / path.name).write_bytes(path.read_bytes())
        (Path(name) / "manifest.json").write_bytes(content)
        try:
            after = read_bundle(Path(name)).manifest
        except BundleError:
            return
    assert after == before


def test_a_manifest_without_a_hash_of_itself(own_bundle: Path) -> None:
    """Bundles made before there was one are read."""
    edit_manifest(own_bundle, lambda m: m.pop("manifest_hash"))

    assert read_bundle(own_bundle).schema == toy.SCHEMA


def test_faults_go_into_logs() -> None:
    """Whatever a bundle has in it: few lines, short ones, and nothing in them that a terminal or a log would obey."""
    error = BundleError(["x" * 10_000, "a\nINFO all is well\x1b[2J", *["y"] * 100])

    assert error.faults[0] == "x" * 300 + "..."
    assert error.faults[1] == "a\\nINFO all is well\\x1b[2J"
    assert error.faults[20:] == ("and 82 more",)


def test_a_file_that_can_not_be_read(own_bundle: Path) -> None:
    """Not a fault of the bundle's, for all that one can tell."""
    with no_descriptor_left(), pytest.raises(UnreadableBundleError, match="Too many open files"):
        read_bundle(own_bundle)


def test_names_every_fault(own_bundle: Path) -> None:
    """Faults are collected, so that a maker does not find them one at a time."""
    edit_manifest(own_bundle, lambda m: (m.pop("plan"), m.pop("law")))
    (own_bundle / "golden.binpb").unlink()

    assert set(faults_of(own_bundle)) == {
        "golden.binpb: is missing",
        "manifest.json: plan is missing",
        "manifest.json: law is missing",
    }


def test_golden_file_of_other_bytes(own_bundle: Path) -> None:
    """A golden file that does not parse is named."""
    replace_file(own_bundle, "golden.binpb", b"\x0a\xff")

    assert faults_of(own_bundle) == ("golden.binpb: is not a GoldenFile",)


def test_golden_file_without_cases(own_bundle: Path) -> None:
    """A bundle without a golden case cannot be checked for parity."""
    replace_file(own_bundle, "golden.binpb", b"")

    assert faults_of(own_bundle) == ("golden.binpb: has no cases",)


@pytest.mark.parametrize("tweets", [0, bundle.GOLDEN_TWEETS_MAX + 1])
def test_golden_case_of_a_wrong_size(own_bundle: Path, tweets: int) -> None:
    """Golden cases have Tweets, but few."""
    golden = golden_pb2.GoldenFile()
    golden.cases.add().request.candidates.tweet_ids.extend(range(1, tweets + 1))
    replace_file(own_bundle, "golden.binpb", golden.SerializeToString())

    assert faults_of(own_bundle) == (f"golden.binpb: case 0 has {tweets} Tweets, not 1 to 20",)


def test_foreign_graph(own_bundle: Path) -> None:
    """What is wrong with the graph is told as the bundle's fault."""
    replace_file(own_bundle, "model.onnx", b"")

    assert faults_of(own_bundle) == ("model.onnx: is an ONNX file without a graph",)
