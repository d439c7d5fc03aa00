"""Plans: what is read, and what is refused."""

from __future__ import annotations

import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import model_export
from model_export.plan import Split, load_plan
from model_export.plan_table import PlanError, parse_table

PLANS = Path(model_export.__file__).parent / "plans"

MINIMAL = """
steps = ["data", "discretize"]
[split]
train = 1
validate = 1
calibrate = 1
test = 1
[data.world]
law = "steps"
seed = 3
impressions = 1000
"""


def write(folder: Path, text: str, name: str = "plan.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_plan_that_ships_can_be_read(path: Path) -> None:
    """With the steps of the design in order."""
    names = [step.name for step in load_plan(path).steps]

    assert names == ["data", "discretize", "sample", "train", "export", "calibrate", "test", "verify"]


def test_defaults_are_written_out_in_the_resolved_plan(tmp_path: Path) -> None:
    """What was said and what was not."""
    document = load_plan(write(tmp_path, MINIMAL)).to_json()

    assert document["data"] == {"world": {"law": "steps", "seed": 3, "impressions": 1000, "days": 20}}
    assert document["discretize"]["bins"] == 32
    assert document["split"] == {"train": 1, "validate": 1, "calibrate": 1, "test": 1}
    assert document["heads"] == {}


def test_a_plan_extends_another(tmp_path: Path) -> None:
    """Tables are merged key by key, lists replaced."""
    write(tmp_path, MINIMAL + "[features]\nraw = ['tweet.likes']\n", "base.toml")
    plan = load_plan(
        write(tmp_path, "extends = 'base.toml'\n[data.world]\nseed = 4\n[features]\nraw = ['tweet.age', 'tweet.words']")
    )

    assert plan.steps[0].parameters.world.seed == 4
    assert plan.steps[0].parameters.world.law == "steps"
    assert plan.features.raw == ("tweet.age", "tweet.words")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[splits]\ntrain = 1", r"'splits' is not known; did you mean 'split'\?"),
        ("[discretize]\nbinz = 3", r"discretize: 'binz' is not known; did you mean 'bins'\?"),
        ("[discretize]\nbins = 'many'", r"discretize\.bins: 'many' is not of type int"),
        ("[discretize]\nbins = true", r"discretize\.bins: True is not of type int"),
        ("[discretize]\nbins = 0", "discretize: bins must be in"),
        ("[discretize]\nform = 'runs/a'", r"discretize: 'form' is not known; did you mean 'from'\?"),
        ("[discretize]\nfrom = 3", r"discretize\.from: 3 is not a run's directory"),
        ("[features]\nraw = 'x'", r"features\.raw: 'x' is not a list"),
        ("[train]\nepochs = 1", "has a table 'train', a step that `steps` does not name"),
        ("[heads.like]\nsign = 1", r"heads\.like: weight is missing"),
        ("extends = 'no.toml", "Illegal character|Unescaped|unterminated|Invalid|Expected"),
    ],
)
def test_what_can_not_be_meant_is_refused(tmp_path: Path, change: str, message: str) -> None:
    """The error says where, and the nearest valid name."""
    with pytest.raises(PlanError, match=message):
        load_plan(write(tmp_path, MINIMAL + change))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ('["data", "discretise"]', r"'discretise' is not known; did you mean 'discretize'\?"),
        ('["discretize", "data"]', "discretize needs data before it"),
        ('["data", "data"]', "a step twice"),
        ('"data"', "steps is not a list"),
        ("[1]", "steps is not a list"),
    ],
)
def test_steps_must_be_known_and_in_order(tmp_path: Path, steps: str, message: str) -> None:
    """A plan is refused before anything runs."""
    with pytest.raises(PlanError, match=message):
        load_plan(write(tmp_path, MINIMAL.replace('["data", "discretize"]', steps)))


def test_a_law_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """With the nearest one."""
    with pytest.raises(PlanError, match=r"data\.world\.law: 'step' is not known; did you mean 'steps'"):
        load_plan(write(tmp_path, MINIMAL.replace('"steps"\nseed', '"step"\nseed')))


def test_a_plan_that_extends_itself_is_refused(tmp_path: Path) -> None:
    """Over a detour too."""
    write(tmp_path, "extends = 'plan.toml'", "other.toml")

    with pytest.raises(PlanError, match="extends itself"):
        load_plan(write(tmp_path, "extends = 'other.toml'"))


def test_a_step_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of anyone's, by its dotted path; its table goes by its last name."""
    package = tmp_path / "someones"
    package.mkdir()
    (package / "audit.py").write_text(
        "from dataclasses import dataclass\n"
        "from model_export.plan import Step\n"
        "@dataclass(frozen=True)\n"
        "class Parameters:\n"
        "    depth: int = 1\n"
        "STEP = Step(version=1, parameters=Parameters, inputs=('data',), parts=(), run=lambda context: 'done')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = MINIMAL.replace('"discretize"]', '"someones.audit"]') + "[audit]\ndepth = 7\n"

    step = load_plan(write(tmp_path, text)).steps[1]

    assert (step.name, step.parameters.depth) == ("audit", 7)


def test_a_fault_inside_a_step_module_is_not_mistaken_for_a_typo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that imports what is not there says so itself."""
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "broken.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        load_plan(write(tmp_path, MINIMAL.replace('"discretize"]', '"someone.broken"]')))


def test_split_hands_out_all_days_in_order() -> None:
    """Whatever their numbers."""
    records: Any = types.SimpleNamespace(days=(3, 4, 7, 8, 9))

    assert Split(2, 1, 1, 1).days(records) == {"train": (3, 4), "validate": (7,), "calibrate": (8,), "test": (9,)}
    with pytest.raises(PlanError, match="6 days, but the data has 5"):
        Split(3, 1, 1, 1).days(records)
    with pytest.raises(ValueError, match="at least one day"):
        Split(1, 1, 0, 1)
    with pytest.raises(ValueError, match="fewer than none"):
        Split(-1, 1, 1, 1)


def test_what_is_not_learned_needs_no_days() -> None:
    """A part without days is not there; a step that asks for it all the same is told."""
    records: Any = types.SimpleNamespace(days=(3, 4))
    days = Split(0, 0, 1, 1).days(records)

    assert days == {"calibrate": (3,), "test": (4,)}
    with pytest.raises(PlanError, match="split: there are no days to train on"):
        days["train"]


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Outer:
    name: str
    share: float = 0.5
    on: bool = False
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None
    sizes: tuple[int, ...] = ()
    rates: dict[str, float] | None = None


def test_a_table_becomes_a_dataclass() -> None:
    """Each supported type; a whole number may stand for a float."""
    table = {"name": "x", "share": 1, "on": True, "kind": "b", "inner": {"size": 2}, "sizes": [1, 2], "rates": {"l": 1}}

    assert parse_table(Outer, table, "t") == Outer("x", 1.0, True, "b", Inner(2), (1, 2), {"l": 1.0})


KEYS = st.sampled_from(["name", "share", "on", "kind", "inner", "sizes", "rates", "nmae"])
VALUES = st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(st.dictionaries(KEYS, VALUES | st.dictionaries(st.text(), VALUES)))
def test_any_table_is_read_or_refused_with_a_plan_error(table: dict[str, Any]) -> None:
    """Nothing else gets out, and what is read has the declared types."""
    try:
        parsed = parse_table(Outer, table, "t")
    except PlanError:
        return
    assert isinstance(parsed.name, str)
    assert isinstance(parsed.share, float)
    assert isinstance(parsed.on, bool)
    assert parsed.kind in ("a", "b")
