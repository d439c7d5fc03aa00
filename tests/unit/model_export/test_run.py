"""Carrying out plans: what is made, what is kept, what is taken from elsewhere."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from model_export.plan import load_plan
from model_export.plan_table import PlanError
from model_export.run import run_plan

STEP = """
from dataclasses import dataclass
from pathlib import Path
from model_export.plan import Step

@dataclass(frozen=True)
class Parameters:
    word: str = ""
    fail: bool = False

def run(context):
    left = context.out / "left.txt"
    left.write_text((left.read_text() if left.exists() else "") + "x")
    log = Path({log!r})
    log.write_text((log.read_text() if log.exists() else "") + "{name} ")
    if context.parameters.fail:
        raise RuntimeError("power cut")
    before = "".join((path / "text").read_text() for path in context.inputs.values())
    (context.out / "text").write_text(before + context.parameters.word + str(context.plan.part("split")["test"]))
    return "wrote " + context.parameters.word

STEP = Step(version=1, parameters=Parameters, inputs={inputs!r}, parts={parts!r}, run=run, resumable={resumable!r})
"""
PLAN = """
steps = ["{package}.first", "{package}.second", "{package}.third"]
split = {{ train = 1, validate = 1, calibrate = 1, test = {test} }}
first = {first}
second = {second}
third = {third}
"""


class Runner:
    """Runs plans of three steps that write words; `second` may be resumed, `third` looks at the split."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._log = root / "log.txt"
        # Modules are remembered by name, so each test has a package of its own.
        self._package = root.name
        (root / self._package).mkdir()
        for name, inputs, parts in (("first", (), ()), ("second", ("first",), ()), ("third", ("second",), ("split",))):
            text = STEP.format(name=name, inputs=inputs, parts=parts, resumable=name == "second", log=str(self._log))
            (root / self._package / f"{name}.py").write_text(text)

    def __call__(
        self, first: str = "{}", second: str = "{}", third: str = "{}", test: int = 1, out: str = "out"
    ) -> tuple[list[str], dict[str, Path]]:
        """(steps that ran, artifacts)."""
        self._log.write_text("")
        plan = self._root / "plan.toml"
        plan.write_text(PLAN.format(package=self._package, first=first, second=second, third=third, test=test))
        artifacts = run_plan(load_plan(plan), self._root / out)
        return self._log.read_text().split(), artifacts


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[str], dict[str, Path]]]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return Runner(tmp_path)


Run = Callable[..., tuple[list[str], dict[str, Path]]]


def test_steps_run_in_order_and_feed_each_other(runner: Run) -> None:
    """The third has the words of all, and each artifact says what it was made from."""
    ran, artifacts = runner('{ word = "a" }', '{ word = "b" }', '{ word = "c" }')

    assert ran == ["first", "second", "third"]
    assert (artifacts["third"] / "text").read_text() == "a1b1c1"
    document = json.loads((artifacts["second"] / "artifact.json").read_text())
    assert document["inputs"] == {"first": artifacts["first"].name}
    assert document["parameters"] == {"word": "b", "fail": False}
    assert document["summary"] == "wrote b"


def test_nothing_runs_twice(runner: Run) -> None:
    """The same plan finds all that it made."""
    _, artifacts = runner()
    ran, again = runner()

    assert ran == []
    assert again == artifacts


def test_a_change_reruns_what_depends_on_it_and_nothing_before(runner: Run) -> None:
    """By parameters and by parts of the plan; going back finds the old artifacts."""
    runner()

    assert runner(third='{ word = "new" }')[0] == ["third"]
    assert runner(second='{ word = "new" }')[0] == ["second", "third"]
    assert runner(test=2)[0] == ["third"]
    assert runner()[0] == []


def test_an_interrupted_step_leaves_no_artifact(runner: Run, tmp_path: Path) -> None:
    """And starts afresh, unless it says that it can go on."""
    for fails in ({"first": "{ fail = true }"}, {"second": "{ fail = true }"}):
        with pytest.raises(RuntimeError, match="power cut"):
            runner(**fails)
        with pytest.raises(RuntimeError, match="power cut"):
            runner(**fails)

    left = {path.name.split("-")[0]: (path / "left.txt").read_text() for path in (tmp_path / "out").glob("*.partial")}
    assert left == {"first": "x", "second": "xx"}
    assert not list((tmp_path / "out").glob("third-*"))


def test_an_artifact_can_come_from_another_run(runner: Run) -> None:
    """It is copied; what depends on it is made with it."""
    _, others = runner('{ word = "theirs" }', out="theirs")

    ran, artifacts = runner('{ from = "theirs" }', out="mine")

    assert ran == ["second", "third"]
    assert artifacts["first"].name == others["first"].name
    assert artifacts["first"] != others["first"]
    assert (artifacts["third"] / "text").read_text().startswith("theirs")
    assert runner('{ from = "theirs" }', out="mine")[0] == []


def test_a_run_that_has_no_such_artifact_is_refused(runner: Run, tmp_path: Path) -> None:
    """No run there, or one without the step."""
    with pytest.raises(PlanError, match="nowhere holds no finished run"):
        runner('{ from = "nowhere" }')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"artifacts": {"frist": "x"}}')
    with pytest.raises(PlanError, match=r"no such step: 'first' is not known; did you mean 'frist'"):
        runner('{ from = "other" }')


def test_two_runs_do_not_share_a_directory_at_a_time(runner: Run, tmp_path: Path) -> None:
    """The second is refused, and runs once the first has ended."""
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(PlanError, match="another run works in"):
            runner()

    assert len(runner()[0]) == 3


def test_each_step_says_one_line(runner: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, made or kept; stdout is for results."""
    runner('{ word = "a" }')
    runner('{ word = "a" }')

    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 6
    assert lines[0].startswith("first: ")
    assert lines[0].endswith(" s: wrote a")
    assert lines[3] == "first: as it was: wrote a"
