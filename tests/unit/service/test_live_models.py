"""A server's models and its repository: what is loaded, what serves, what is refused. Real files, real models."""

from __future__ import annotations

import gc
import json
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from service.align import Tables
from service.bundle import Bundle, UnreadableBundleError, read_bundle
from service.live_models import UNREADABLE_PAUSE_S, LiveModels
from service.model import LoadResult, Model
from service.model_loader import LOADING_NICENESS, TIMING_RUNS, ModelLoader, step_back
from service.repository import Repository
from service.scoring import Scorer, Scores
from service.serving import ServingError
from tests.spoiled import SPOILERS, flip_byte, slow_down


class Server:
    """What a server does with models, kept for inspection."""

    def __init__(self, root: Path, needed: frozenset[str] = frozenset({"stable"})) -> None:
        self.models: Mapping[str, Model] = {}
        self.attempts = 0
        self.swapped = threading.Event()
        self.niceness = 0
        self.reports: list[tuple[str, LoadResult]] = []
        self.objection = ""
        self.refused: dict[str, str] = {}
        self.now_s = 0.0
        self.load: Callable[[Bundle, str, Model | None], Model] = ModelLoader(threads=1, slowdown_max=3.0).load
        self.live = LiveModels(
            Repository(root), lambda *given: self.load(*given), self.serve, self.report, needed, lambda: self.now_s
        )

    def serve(self, models: Mapping[str, Model]) -> None:
        self.attempts += 1
        if self.objection or {label: model.version for label, model in models.items()} == self.refused:
            raise ServingError(self.objection or "these two do not go together")
        self.models = models
        self.niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        self.swapped.set()

    def report(self, version: str, result: LoadResult) -> None:
        self.reports.append((version, result))

    def update(self) -> dict[str, str]:
        """Label -> version after one more look."""
        self.live.update()
        return {label: model.version for label, model in self.models.items()}

    def faults(self, version: int) -> tuple[str, ...]:
        """What the latest report says of the version."""
        return dict(self.reports)[str(version)].faults


@pytest.fixture
def repository(tmp_path: Path, toy_bundle: Path) -> Repository:
    """Version 1 is stable."""
    repository = Repository(tmp_path / "models")
    repository.publish(toy_bundle)
    repository.promote(1, "stable")
    return repository


@pytest.fixture
def server(repository: Repository) -> Server:
    """A server that serves version 1."""
    server = Server(repository.root)
    assert server.update() == {"stable": "1"}
    return server


def point(repository: Repository, **labels: int) -> None:
    """Labels by hand, so that what promote would refuse gets to the server."""
    content = {label: {"version": version, "previous": []} for label, version in labels.items()}
    (repository.root / "labels.json").write_text(json.dumps(content))


def test_a_promoted_version_serves(server: Server, repository: Repository, toy_bundle: Path) -> None:
    """Promote, look: the new version serves, under its number; the old one is let go of."""
    repository.publish(toy_bundle)
    repository.promote(2, "stable")

    assert server.update() == {"stable": "2"}
    assert server.faults(2) == ()
    repository.rollback("stable")
    assert server.update() == {"stable": "1"}


def test_nothing_changed_nothing_done(server: Server) -> None:
    """Looking again loads and swaps nothing."""
    for _ in range(3):
        server.update()

    assert (server.attempts, len(server.reports)) == (1, 1)


def test_a_label_may_join_and_leave(server: Server, repository: Repository, toy_bundle: Path) -> None:
    """A canary comes in beside the stable version without loading that again, and goes when its label goes."""
    stable = server.models["stable"]
    repository.publish(toy_bundle)
    repository.promote(2, "canary")

    assert server.update() == {"stable": "1", "canary": "2"}
    assert server.models["stable"] is stable
    point(repository, stable=1)
    assert server.update() == {"stable": "1"}


def test_one_version_under_two_labels_is_one_model(server: Server, repository: Repository) -> None:
    """Memory holds it once."""
    repository.promote(1, "canary")
    server.update()

    assert server.models["canary"] is server.models["stable"]


def test_a_failed_version_is_reported_and_left_alone(server: Server, repository: Repository, toy_bundle: Path) -> None:
    """The old version serves on; the failed one is not tried again until one of its files changes."""
    repository.publish(toy_bundle)
    golden = repository.bundle(2) / "golden.binpb"
    content = golden.read_bytes()
    golden.write_bytes(content[:-1])
    point(repository, stable=2)
    for _ in range(3):
        assert server.update() == {"stable": "1"}

    assert len(server.reports) == 2
    assert server.faults(2)[0].startswith("golden.binpb: has")
    golden.write_bytes(content)
    assert server.update() == {"stable": "2"}
    assert server.faults(2) == ()


@pytest.mark.parametrize("how", SPOILERS)
def test_no_bad_version_ever_serves(server: Server, repository: Repository, toy_bundle: Path, how: str) -> None:
    """Whatever is wrong with a version: one clear line, and the old one serves on."""
    spoil, fault = SPOILERS[how]
    repository.publish(toy_bundle)
    spoil(repository.bundle(2))
    point(repository, stable=2)

    assert server.update() == {"stable": "1"}
    (line,) = server.faults(2)
    assert fault in line
    assert "\n" not in line


def test_without_anything_to_compare_with_a_slow_model_serves(repository: Repository) -> None:
    """The first model of a server is as fast as it is."""
    slow_down(repository.bundle(1))

    assert Server(repository.root).update() == {"stable": "1"}


def test_one_bad_label_does_not_hold_up_the_others(server: Server, repository: Repository, toy_bundle: Path) -> None:
    """The canary is refused, the new stable version serves."""
    for _ in range(2):
        repository.publish(toy_bundle)
    flip_byte(repository.bundle(2))
    point(repository, stable=3, canary=2)

    assert server.update() == {"stable": "3"}
    assert server.faults(3) == ()
    assert server.faults(2) != ()


@pytest.mark.parametrize("content", [None, "{", "{}"], ids=["gone", "broken", "empty"])
def test_labels_that_can_not_be_read_change_nothing(
    server: Server, repository: Repository, toy_bundle: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """All models serve on, and the log says why, once."""
    repository.publish(toy_bundle)
    repository.promote(2, "canary")
    server.update()
    caplog.clear()
    (repository.root / "labels.json").unlink()
    if content is not None:
        (repository.root / "labels.json").write_text(content)
    for _ in range(3):
        assert server.update() == {"stable": "1", "canary": "2"}

    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "labels.json" in caplog.text


def test_nothing_serves_before_all_that_is_needed_is_there(repository: Repository, toy_bundle: Path) -> None:
    """Experiments that want a canary wait for it; once there, it stays though its label goes."""
    server = Server(repository.root, needed=frozenset({"stable", "canary"}))
    assert server.update() == {}
    assert server.live.complaint == f"{repository.root}: no model is ready under canary"

    repository.publish(toy_bundle)
    repository.promote(2, "canary")
    assert server.update() == {"stable": "1", "canary": "2"}
    point(repository, stable=1)
    assert server.update() == {"stable": "1", "canary": "2"}


def test_an_objection_of_policy_or_experiments_leaves_all_as_it_was(
    server: Server, repository: Repository, toy_bundle: Path
) -> None:
    """A sound model that does not go with the server's policy is reported, not served, and not loaded over again."""
    repository.publish(toy_bundle)
    repository.promote(2, "stable")
    server.objection = "policy: head_weights.x: the model has no such head"
    for _ in range(3):
        assert server.update() == {"stable": "1"}

    assert server.faults(2) == ("policy: head_weights.x: the model has no such head",)
    assert (server.attempts, len(server.reports)) == (2, 2)
    repository.rollback("stable")
    server.objection = ""
    assert server.update() == {"stable": "1"}
    repository.promote(2, "stable")
    assert server.update() == {"stable": "2"}


def test_a_version_that_serves_in_the_end_was_not_refused(
    server: Server, repository: Repository, toy_bundle: Path
) -> None:
    """Stable and canary change at the same time, and the new stable version does not go with the old canary."""
    for _ in range(3):
        repository.publish(toy_bundle)
    repository.promote(2, "canary")
    assert server.update() == {"stable": "1", "canary": "2"}
    server.refused = {"stable": "3", "canary": "2"}
    point(repository, stable=3, canary=4)

    assert server.update() == {"stable": "3", "canary": "4"}
    assert server.faults(3) == server.faults(4) == ()
    assert [version for version, _ in server.reports] == ["1", "2", "4", "3"]


def test_what_could_not_be_read_is_tried_again_after_a_while(
    server: Server, repository: Repository, toy_bundle: Path
) -> None:
    """A server that ran out of descriptors has some again later, and the files look as they did."""
    repository.publish(toy_bundle)
    repository.promote(2, "stable")
    load = server.load

    def fail(*_: object) -> Model:
        raise UnreadableBundleError(["model.onnx: Too many open files"])

    server.load = fail
    for _ in range(3):
        assert server.update() == {"stable": "1"}
    assert server.faults(2) == ("model.onnx: Too many open files",)
    assert len(server.reports) == 2

    server.load = load
    assert server.update() == {"stable": "1"}
    server.now_s += UNREADABLE_PAUSE_S
    assert server.update() == {"stable": "2"}


def test_a_change_of_rights_is_a_change(server: Server, repository: Repository, toy_bundle: Path) -> None:
    """Who may read a file is not seen in its content's time."""
    repository.publish(toy_bundle)
    flip_byte(repository.bundle(2))
    point(repository, stable=2)
    server.update()
    model = repository.bundle(2) / "model.onnx"
    model.chmod(0o640)
    server.update()

    assert len(server.reports) == 3


def test_a_bundle_that_breaks_the_loader_is_a_failed_version(
    server: Server, repository: Repository, toy_bundle: Path
) -> None:
    """An error that nobody foresaw is reported like one that somebody did, and the watch goes on."""

    def load(*_: object) -> Model:
        raise MemoryError("no room for 7 GiB")

    repository.publish(toy_bundle)
    repository.promote(2, "stable")
    server.load = load
    for _ in range(3):
        assert server.update() == {"stable": "1"}

    assert server.faults(2) == ("MemoryError: no room for 7 GiB",)
    assert len(server.reports) == 2


def test_the_old_model_is_gone_when_nobody_uses_it(server: Server, repository: Repository, toy_bundle: Path) -> None:
    """After the swap nothing holds the old version but the requests that began on it."""
    held_by_a_request = server.models["stable"]
    old = weakref.ref(held_by_a_request)
    repository.publish(toy_bundle)
    repository.promote(2, "stable")
    server.update()
    gc.collect()

    assert old() is held_by_a_request
    del held_by_a_request
    gc.collect()
    assert old() is None


def test_the_watch_goes_on_until_told_to_stop(server: Server, repository: Repository, toy_bundle: Path) -> None:
    """In a thread of its own, of low priority, it sees a promotion by itself."""
    stop = threading.Event()
    watch = threading.Thread(target=server.live.watch, args=(stop, 0.01))
    server.swapped.clear()
    watch.start()
    repository.publish(toy_bundle)
    repository.promote(2, "stable")
    assert server.swapped.wait(30)
    stop.set()
    watch.join(30)

    assert not watch.is_alive()
    assert server.niceness == LOADING_NICENESS
    assert {label: model.version for label, model in server.models.items()} == {"stable": "2"}


def test_the_watch_outlives_what_nobody_foresaw(server: Server, repository: Repository) -> None:
    """The first error comes while a version is loaded, the second one when it is to serve at last; then all is well."""
    stop, failures = threading.Event(), [KeyError("unforeseen"), KeyError("again")]
    serve = server.serve

    def fail_twice(models: Mapping[str, Model]) -> None:
        if failures:
            raise failures.pop()
        serve(models)

    live = LiveModels(repository, lambda *given: server.load(*given), fail_twice, server.report)
    watch = threading.Thread(target=live.watch, args=(stop, 0.01))
    server.swapped.clear()
    watch.start()
    assert server.swapped.wait(30)
    stop.set()
    watch.join(30)

    assert not failures
    assert live.serving == {"stable": 1}


def test_a_model_that_is_kept_waiting_is_not_taken_for_a_slow_one(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy server whoever loads stands aside in the middle of runs, for longer than TIMING_RUNS of them."""

    class Interrupted(Scorer):
        runs = 0

        def score(self, tables: Tables) -> Scores:
            self.runs += 1
            if self.runs < 2 * TIMING_RUNS:
                threading.Event().wait(0.002)
            return super().score(tables)

    loader = ModelLoader(threads=1, slowdown_max=3.0)
    beside = loader.load(read_bundle(toy_bundle), "1", None)
    monkeypatch.setattr("service.model_loader.Scorer", Interrupted)

    assert loader.load(read_bundle(toy_bundle), "2", beside).version == "2"


def test_loading_has_low_priority_and_running_has_not(toy_bundle: Path) -> None:
    """Who loads steps back; the threads that the session will run requests on do not."""
    nice: dict[str, int] = {}

    def load() -> None:
        step_back()
        nice["loading"] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        before = set(os.listdir("/proc/self/task"))
        model = loader.load(read_bundle(toy_bundle), "1", None)
        for thread in set(os.listdir("/proc/self/task")) - before:
            nice[thread] = os.getpriority(os.PRIO_PROCESS, int(thread))
        del model  # its session's threads have been there until here

    loader = ModelLoader(threads=3, slowdown_max=3.0)
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=load)
    thread.start()
    thread.join()

    assert nice.pop("loading") == LOADING_NICENESS
    assert len(nice) == 2
    assert set(nice.values()) == {usual}
