"""The model repository: versions, labels, and the commands that change them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.__main__ import main
from service.bundle import write_bundle
from service.repository import (
    PREVIOUS_MAX,
    Label,
    Labels,
    Repository,
    RepositoryError,
    format_labels,
    parse_labels,
    promoted,
    rolled_back,
)
from tests import toy


class Shell:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *command: object) -> tuple[int, str, str]:
        """Status, standard output and standard error."""
        status = main([str(word) for word in command])
        out, err = self._capsys.readouterr()
        return status, out, err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def root(tmp_path: Path, toy_bundle: Path) -> Path:
    """A repository of versions 1 to 3; 1 and then 2 were stable."""
    repository = Repository(tmp_path / "models")
    for _ in range(3):
        repository.publish(toy_bundle)
    repository.promote(1, "stable")
    repository.promote(2, "stable")
    return repository.root


def test_the_life_of_a_repository(shell: Shell, tmp_path: Path, toy_bundle: Path) -> None:
    """publish, promote, promote, rollback and status, each with what the one before printed."""
    root = tmp_path / "deep" / "models"
    assert shell("publish", toy_bundle, root) == (0, "1\n", "")
    assert shell("status", root) == (0, "version 1: good\n", "")
    assert shell("promote", root, 1) == (0, "stable: version 1, before it none\n", "")
    assert shell("publish", toy_bundle, root) == (0, "2\n", "")
    assert shell("promote", root, 2, "--label", "canary") == (0, "canary: version 2, before it none\n", "")
    assert shell("promote", root, 2) == (0, "stable: version 2, before it 1\n", "")
    assert json.loads((root / "labels.json").read_text()) == {
        "stable": {"version": 2, "previous": [1]},
        "canary": {"version": 2, "previous": []},
    }
    assert shell("rollback", root) == (0, "stable: version 1, before it none\n", "")
    status, out, err = shell("status", root, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == {
        "labels": {"stable": {"version": 1, "previous": []}, "canary": {"version": 2, "previous": []}},
        "versions": [{"version": 1, "faults": []}, {"version": 2, "faults": []}],
    }


def test_published_files_are_the_bundles(root: Path, toy_bundle: Path) -> None:
    """A version holds the bundle byte for byte and nothing else; nothing lies about beside it."""
    for path in toy_bundle.iterdir():
        assert (root / "3" / path.name).read_bytes() == path.read_bytes()
    assert {p.name for p in (root / "3").iterdir()} == {p.name for p in toy_bundle.iterdir()}
    assert {p.name for p in root.iterdir()} == {"1", "2", "3", "labels.json", ".lock"}


def test_a_bundle_with_a_fault_is_not_published(shell: Shell, tmp_path: Path, own_bundle: Path) -> None:
    """Each fault is a line on stderr, and the repository stays as it was: here, not even made."""
    (own_bundle / "model.onnx").write_bytes(b"")
    status, out, err = shell("publish", own_bundle, tmp_path / "models")

    assert (status, out) == (1, "")
    assert err.startswith("timeline-ranker publish: model.onnx: has 0 bytes")
    assert err.count("\n") == 1
    assert not (tmp_path / "models").exists()


def test_a_model_that_does_not_answer_as_it_did_is_not_published(shell: Shell, tmp_path: Path) -> None:
    """Verification runs the model: golden answers of another model are seen."""
    golden = toy.golden_file()
    golden.cases[0].response.probabilities[0] += 0.1
    write_bundle(tmp_path / "bundle", toy.model_bytes(), toy.manifest_fields(), golden.SerializeToString())

    status, _, err = shell("publish", tmp_path / "bundle", tmp_path / "models")

    assert status == 1
    assert "golden.binpb: case 0" in err


def test_version_numbers_are_never_used_twice(root: Path, toy_bundle: Path) -> None:
    """Numbers go on after the highest that there is or that a label remembers, gaps notwithstanding."""
    os.rename(root / "3", root / "30")
    assert Repository(root).publish(toy_bundle) == 31
    (root / "labels.json").write_text('{"stable": {"version": 2, "previous": [1, 77]}}')
    assert Repository(root).publish(toy_bundle) == 78
    # A bad version that is removed when nothing points to it any more: its answers are in logs, under that number.
    shutil.rmtree(root / "78")
    (root / "labels.json").write_text('{"stable": {"version": 2}}')
    assert Repository(root).publish(toy_bundle) == 79


def test_leftovers_of_a_killed_publisher_are_removed(root: Path, toy_bundle: Path) -> None:
    """The next publisher clears away what no other can be writing; other people's files stay."""
    (root / ".4.abcd").mkdir()
    (root / ".4.abcd" / "model.onnx").write_bytes(b"half")
    (root / ".labels.json.123").write_text("{")
    (root / ".5.link").symlink_to(root / "3")
    (root / "README").write_text("ours")

    assert Repository(root).publish(toy_bundle) == 4
    assert {p.name for p in root.iterdir()} == {"1", "2", "3", "4", "labels.json", ".lock", "README"}


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (["promote", "{root}", "9"], "timeline-ranker promote: there is no version 9; there are 1, 2, 3"),
        (["promote", "{root}", "0"], "timeline-ranker promote: there is no version 0; there are 1, 2, 3"),
        (["promote", "{root}", "1", "--label", "3"], "timeline-ranker promote: '3' is not a label: a letter a-z"),
        (["promote", "{root}/no", "1"], "timeline-ranker promote: {root}/no: No such file or directory"),
        (["rollback", "{root}", "--label", "canary"], "rollback: there is no label 'canary'; there are stable"),
        (["rollback", "{root}/no"], "timeline-ranker rollback: {root}/no: No such file or directory"),
        (["status", "{root}/no"], "timeline-ranker status: {root}/no: No such file or directory"),
        (["publish", "{bundle}", "{root}/labels.json"], "timeline-ranker publish: [Errno 17] File exists"),
    ],
)
def test_what_can_not_be_is_refused_with_one_line(
    shell: Shell, root: Path, toy_bundle: Path, command: Sequence[str], fault: str
) -> None:
    """Exit status 1, nothing on stdout, one line on stderr, and nothing changed."""
    before = (root / "labels.json").read_text()
    status, out, err = shell(*(word.format(root=root, bundle=toy_bundle) for word in command))

    assert (status, out, err.count("\n")) == (1, "", 1)
    assert fault.format(root=root) in err
    assert (root / "labels.json").read_text() == before


def test_an_unsound_version_is_not_promoted(shell: Shell, root: Path) -> None:
    """A flipped byte in a published model is seen before anything serves it, and status tells of it."""
    model = bytearray((root / "3" / "model.onnx").read_bytes())
    model[100] ^= 1
    (root / "3" / "model.onnx").write_bytes(model)
    status, _, err = shell("promote", root, 3)

    assert status == 1
    assert err.startswith("timeline-ranker promote: version 3: model.onnx: sha256 is")
    assert "version 3: model.onnx: sha256 is" in shell("status", root)[1]
    assert Repository(root).labels() == {"stable": Label(2, (1,))}


def test_a_link_is_no_version(shell: Shell, root: Path) -> None:
    """A version that leads out of the repository is not served from there."""
    os.rename(root / "3", root.parent / "elsewhere")
    (root / "3").symlink_to(root.parent / "elsewhere")

    assert shell("promote", root, 3) == (1, "", "timeline-ranker promote: version 3: is a link\n")


def test_a_label_whose_version_is_gone_can_not_roll_back_to_it(shell: Shell, root: Path) -> None:
    """Rolling back to nothing would be an outage; status names a labelled version that is not there."""
    os.rename(root / "1", root.parent / "gone")
    os.rename(root / "2", root.parent / "gone-too")

    assert shell("rollback", root) == (1, "", "timeline-ranker rollback: there is no version 1; there are 3\n")
    assert f"version 2: {root / '2'} is not a directory" in shell("status", root)[1]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "labels.json: is not JSON"),
        ("[1]", "labels.json: is not a JSON object"),
        ('{"stable": 3}', "labels.json: stable: must be an object"),
        ('{"stable": {"previous": []}}', "labels.json: stable: must be an object"),
        ('{"stable": {"version": 3, "pervious": []}}', "labels.json: stable: must be an object"),
        ('{"stable": {"version": "3"}}', "labels.json: stable: versions must be whole numbers from 1"),
        ('{"stable": {"version": true}}', "labels.json: stable: versions must be whole numbers from 1"),
        ('{"stable": {"version": 0}}', "labels.json: stable: versions must be whole numbers from 1"),
        ('{"stable": {"version": 3, "previous": [1, 1.5]}}', "labels.json: stable: versions must be whole numbers"),
        ('{"stable": {"version": 3, "previous": 1}}', "labels.json: stable: versions must be whole numbers"),
        ('{"Stable": {"version": 3}}', "labels.json: 'Stable' is not a label"),
        ("[" * 100_000, "labels.json: is not JSON"),
        ('"\\ud800"', "labels.json: is not a JSON object"),
    ],
)
def test_labels_that_make_no_sense_are_refused(root: Path, toy_bundle: Path, content: str, fault: str) -> None:
    """A labels.json that somebody edited by hand and got wrong is told what is wrong, by all that read it."""
    (root / "labels.json").write_text(content)
    repository = Repository(root)
    for attempt in (
        repository.labels,
        lambda: repository.publish(toy_bundle),
        lambda: repository.promote(1, "stable"),
        lambda: repository.rollback("stable"),
    ):
        with pytest.raises(RepositoryError) as refused:
            attempt()
        assert str(refused.value).startswith(fault)
    assert (root / "labels.json").read_text() == content


def test_labels_in_another_encoding_are_refused(root: Path) -> None:
    """Bytes that are not UTF-8 are an error like any other."""
    (root / "labels.json").write_bytes(b'{"st\xff": 1}')
    with pytest.raises(RepositoryError, match=r"^labels\.json: "):
        Repository(root).labels()


CHANGES = """
import sys
from pathlib import Path
from service.repository import Repository
repository = Repository(Path(sys.argv[1]))
for _ in range(5):
    version = repository.publish(Path(sys.argv[2]))
    repository.promote(version, sys.argv[3])
    print(version)
"""


def test_several_publishers_do_not_get_in_each_others_way(tmp_path: Path, toy_bundle: Path) -> None:
    """Four processes publish and promote at a time: every version its own number, every label all of its steps."""
    root = tmp_path / "models"
    labels = ["a", "b", "c", "d"]
    command = [sys.executable, "-c", CHANGES, str(root), str(toy_bundle)]
    publishers = [subprocess.Popen([*command, label], stdout=subprocess.PIPE, text=True) for label in labels]
    versions = [[int(line) for line in publisher.communicate()[0].split()] for publisher in publishers]

    assert [publisher.returncode for publisher in publishers] == [0, 0, 0, 0]
    assert sorted(itertools.chain(*versions)) == list(range(1, 21)) == list(Repository(root).versions())
    assert Repository(root).labels() == {
        label: Label(published[-1], tuple(reversed(published[:-1])))
        for label, published in zip(labels, versions, strict=True)
    }


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30))
def test_rolling_back_retraces_the_promotions(versions: list[int]) -> None:
    """Back through the last PREVIOUS_MAX different versions, in the order opposite to that of their promotion."""
    labels: Labels = {}
    steps: list[int] = []
    for version in versions:
        labels = promoted(labels, "stable", version)
        if steps[-1:] != [version]:
            steps.append(version)
    seen = [labels["stable"].version]
    while labels["stable"].previous:
        labels = rolled_back(labels, "stable")
        seen.append(labels["stable"].version)

    assert seen == steps[::-1][: PREVIOUS_MAX + 1]
    with pytest.raises(RepositoryError, match=f"at version {seen[-1]} and has none before it"):
        rolled_back(labels, "stable")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_-]{0,63}", fullmatch=True),
        st.builds(Label, st.integers(1, 10**18 - 1), st.lists(st.integers(1, 10**18 - 1)).map(tuple)),
    )
)
def test_labels_come_back_as_they_were_written(labels: dict[str, Label]) -> None:
    """Whatever the labels, labels.json says it all."""
    assert parse_labels(format_labels(labels)) == labels
