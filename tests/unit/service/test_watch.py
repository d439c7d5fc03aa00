"""What a server does about its repository, decided from states alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.repository import Repository, RepositoryError
from service.watch import Fingerprint, Found, Held, Plan, look, plan
from tests import toy


def looks(revision: int) -> Fingerprint:
    """What a version looks like after `revision` changes."""
    return (("model.onnx", 100, 7, revision, revision),)


def found(revision: int = 0, **labels: int) -> Found:
    return Found(labels, {version: looks(revision) for version in labels.values()})


def test_a_fresh_server_loads_all_that_is_labelled_the_stable_version_first() -> None:
    """Nothing is served before it is loaded."""
    assert plan(found(canary=1, stable=3, trial=2), Held()) == Plan({}, (3, 1, 2), frozenset())


def test_what_is_loaded_serves() -> None:
    """With every label's version loaded there is nothing left to do."""
    held = Held(loaded={3, 1})

    assert plan(found(canary=1, stable=3), held) == Plan({"canary": 1, "stable": 3}, (), frozenset())


def test_the_old_version_serves_until_the_new_one_is_ready() -> None:
    """A promoted version is loaded beside the old one, takes its place, and only then the old one goes."""
    before = Held(loaded={1}, serving={"stable": 1})

    assert plan(found(stable=2), before) == Plan({"stable": 1}, (2,), frozenset())
    assert plan(found(stable=2), Held({1, 2}, {"stable": 1})) == Plan({"stable": 2}, (), frozenset({1}))


def test_a_failed_version_leaves_the_old_one_and_is_not_tried_again() -> None:
    """As long as it looks the same, nothing happens."""
    held = Held(loaded={1}, serving={"stable": 1}, failed={2: looks(0)})

    assert plan(found(stable=2), held) == Plan({"stable": 1}, (), frozenset())


def test_a_failed_version_that_changed_is_tried_again() -> None:
    """A version whose files were replaced, or only touched, gets another chance."""
    held = Held(loaded={1}, serving={"stable": 1}, failed={2: looks(0)})

    assert plan(found(revision=1, stable=2), held) == Plan({"stable": 1}, (2,), frozenset())


def test_going_back_needs_no_loading_while_the_old_version_is_there() -> None:
    """Label moved to a version that failed, and back: the one that served all along."""
    held = Held(loaded={1}, serving={"stable": 1}, failed={2: looks(0)})

    assert plan(found(stable=1), held) == Plan({"stable": 1}, (), frozenset())


def test_two_labels_on_one_version_load_it_once() -> None:
    """A canary that became stable is one version under two names."""
    assert plan(found(stable=2, canary=2), Held({1, 2}, {"stable": 1, "canary": 2})) == Plan(
        {"stable": 2, "canary": 2}, (), frozenset({1})
    )
    assert plan(found(stable=2, canary=2), Held()).load == (2,)


def test_a_label_that_vanishes_takes_its_version_along_unless_it_is_needed() -> None:
    """The stable label, and those that experiments name, serve on though nobody points them anywhere any more."""
    held = Held({1, 2, 3}, {"stable": 1, "canary": 2, "trial": 3})

    assert plan(found(), held) == Plan({"stable": 1}, (), frozenset({2, 3}))
    assert plan(found(), held, needed={"stable", "trial"}) == Plan({"stable": 1, "trial": 3}, (), frozenset({2}))


VERSIONS = st.integers(1, 4)
LABELS = st.dictionaries(st.sampled_from(["stable", "canary", "trial"]), VERSIONS)


@given(LABELS, LABELS, st.sets(VERSIONS), st.dictionaries(VERSIONS, st.integers(0, 1).map(looks)))
def test_serving_never_depends_on_what_is_not_loaded(
    labels: dict[str, int], serving: dict[str, int], loaded: set[int], failed: dict[int, Fingerprint]
) -> None:
    """Whatever the states: only loaded versions serve, those are kept, and no label that served loses its model."""
    held = Held(loaded | set(serving.values()), serving, failed)
    next_ = plan(found(**labels), held)

    assert set(next_.serving.values()) <= held.loaded
    assert next_.drop == held.loaded - set(next_.serving.values())
    assert not set(next_.load) & held.loaded
    assert {name for name in serving if name in labels or name == "stable"} <= next_.serving.keys()
    for name, version in labels.items():
        if version in held.loaded:
            assert next_.serving[name] == version
        else:
            assert version in next_.load or failed[version] == looks(0)


def test_a_repository_looks_different_after_any_change(tmp_path: Path) -> None:
    """Missing, half-written, touched, rewritten and cut versions are told apart."""
    repository = Repository(tmp_path)
    (tmp_path / "labels.json").write_text('{"stable": {"version": 1}}')
    seen = [look(repository)]

    toy.write(tmp_path / "1")
    seen.append(look(repository))
    (tmp_path / "1" / "golden.binpb").unlink()
    seen.append(look(repository))
    manifest = tmp_path / "1" / "manifest.json"
    os.utime(manifest, ns=(0, 0))
    seen.append(look(repository))
    manifest.rename(tmp_path / "kept")
    manifest.write_bytes(b"x" * (tmp_path / "kept").stat().st_size)
    os.utime(manifest, ns=(0, 0))
    seen.append(look(repository))
    os.truncate(manifest, 1)
    os.utime(manifest, ns=(0, 0))
    seen.append(look(repository))

    assert [s.labels for s in seen] == [{"stable": 1}] * 6
    assert len({s.fingerprints[1] for s in seen}) == 6
    assert look(repository) == seen[-1]


def test_labels_that_can_not_be_read_are_no_labels(tmp_path: Path) -> None:
    """A broken labels.json is an error, not an empty repository: a server must not let go of everything."""
    (tmp_path / "labels.json").write_text("{")
    with pytest.raises(RepositoryError, match=r"labels\.json: is not JSON"):
        look(Repository(tmp_path))
