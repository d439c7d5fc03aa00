"""What a run takes from another: whole artifacts, or the weights to start from; and what a plan adds by a line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model_export.datasets.records import Impressions, RecordSet, create, write_day
from model_export.plan import Plan, load_plan
from model_export.plan_table import PlanError
from model_export.run import run_plan
from model_export.score import open_graph, score
from model_export.steps.sample import open_records
from model_export.steps.verify import BUNDLE
from service.bundle import read_bundle
from service.model import load_model

MakePlan = Callable[..., Plan]
REFERENCES = ("discretize", "sample", "train", "export")


def _train(**keys: object) -> str:
    lines = {"epochs": 1, "batch_rows": 256, "threads": 1, **keys}
    return "\n".join(f"{key} = {value!r}" for key, value in lines.items())


def _best(run: dict[str, Path]) -> float:
    """Mean validation RCE of the best epoch."""
    return max(float(epoch["score"]) for epoch in json.loads((run["train"] / "history.json").read_text()))


def test_a_warm_start_begins_where_the_other_run_ended(small_plan: MakePlan, tmp_path: Path) -> None:
    """With hardly a step made it is as good as that one; from nothing it is as good as nothing."""
    trained = run_plan(small_plan(train=_train(epochs=4, learning_rate=0.01)), tmp_path / "a")
    still = {"learning_rate": 1e-9}

    cold = run_plan(small_plan(train=_train(**still)), tmp_path / "cold")
    warm = run_plan(small_plan(train=_train(**still, warm_start=str(tmp_path / "a"))), tmp_path / "warm")

    assert _best(cold) < 1 < 5 < _best(trained)
    assert _best(warm) == pytest.approx(_best(trained), rel=0.1)
    assert warm["discretize"].name == trained["discretize"].name


def test_a_warm_start_is_trained_again_if_the_other_run_changes(small_plan: MakePlan, tmp_path: Path) -> None:
    """By what its weights are, not by where they lie."""
    plans = [small_plan(train=_train(seed=seed)) for seed in (1, 2)]
    run_plan(plans[0], tmp_path / "a")
    warm = _train(warm_start=str(tmp_path / "a"))
    first = run_plan(small_plan(train=warm), tmp_path / "warm")
    assert run_plan(small_plan(train=warm), tmp_path / "warm") == first

    run_plan(plans[1], tmp_path / "a")
    second = run_plan(small_plan(train=warm), tmp_path / "warm")

    assert {step for step in first if first[step] != second[step]} == {"train", "export", "calibrate", "test", "verify"}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"train.network": "trunk = 'mlp'\nunits = 16\nhidden = [8]"}, "different shapes"),
        ({"discretize": "bins = 5"}, "different bins|discretize.from"),
        ({"features": "leave_out = ['tweet.text']"}, "other features or heads"),
    ],
)
def test_a_net_of_another_kind_is_no_start(
    small_plan: MakePlan, tmp_path: Path, tables: dict[str, str], message: str
) -> None:
    """The error says what differs."""
    run_plan(small_plan(train=_train()), tmp_path / "a")

    with pytest.raises(PlanError, match=message):
        run_plan(small_plan(**tables, train=_train(warm_start=str(tmp_path / "a"))), tmp_path / "out")


def test_a_start_that_is_not_there_is_refused(small_plan: MakePlan, tmp_path: Path) -> None:
    """No run, or one of a net without a part."""
    with pytest.raises(PlanError, match="holds no finished run"):
        run_plan(small_plan(train=_train(warm_start=str(tmp_path / "nowhere"))), tmp_path / "out")
    with pytest.raises(PlanError, match="whole nets"):
        small_plan(train=_train(warm_start="runs/a", without="normalization"))


def test_a_refresh_calibrates_a_finished_graph_on_new_days(
    small_plan: MakePlan,
    make_impressions: Callable[[int, int], Impressions],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing before `calibrate` runs again, it takes seconds, and what comes out is a bundle of the same net."""
    old = run_plan(small_plan(), tmp_path / "a")
    schema = RecordSet.open(tmp_path / "records").schema
    create(tmp_path / "new", schema)
    for day in (108, 109):
        write_day(tmp_path / "new", schema, day, make_impressions(1_500, day))
    tables = {name: f"from = {str(tmp_path / 'a')!r}" for name in REFERENCES}
    plan = small_plan(
        **tables,
        data=f"folder = {str(tmp_path / 'new')!r}",
        split="train = 0\nvalidate = 0\ncalibrate = 1\ntest = 1",
    )
    capsys.readouterr()
    begin = time.monotonic()
    new = run_plan(plan, tmp_path / "refresh")
    seconds = time.monotonic() - begin

    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines if " s: " in line] == ["data", "calibrate", "test", "verify"]
    assert seconds < 30
    for step in REFERENCES:
        assert new[step].name == old[step].name
        for file in old[step].rglob("*"):
            assert file.is_dir() or (new[step] / file.relative_to(old[step])).samefile(file)
    before, after = (read_bundle(run["verify"] / BUNDLE) for run in (old, new))
    load_model(new["verify"] / BUNDLE, threads=1)
    assert after.sha256 != before.sha256
    days = {"train": [0, 3], "validate": [4, 4]}
    assert before.manifest["metrics"]["training"]["days"] == {**days, "calibrate": [5, 5]}
    assert after.manifest["metrics"]["training"]["days"] == {**days, "calibrate": [108, 108]}
    view = next(open_records(plan, new["data"]).batches([109]))
    (raw_before, p_before), (raw_after, p_after) = (score(open_graph(b.model), view) for b in (before, after))
    np.testing.assert_array_equal(raw_before, raw_after)
    assert (p_before != p_after).any()


def test_what_is_learned_wants_days(small_plan: MakePlan, tmp_path: Path) -> None:
    """Without a reference there is nothing to fit on."""
    with pytest.raises(PlanError, match="there are no days to train on"):
        run_plan(small_plan(split="train = 0\nvalidate = 0\ncalibrate = 4\ntest = 4"), tmp_path / "out")


def test_a_new_step_is_one_file_and_one_line(
    small_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here one that looks at the calibration; nothing before it runs again."""
    before = run_plan(small_plan(), tmp_path / "out")
    package = tmp_path / f"steps_of_{tmp_path.name}"
    package.mkdir()
    (package / "widest.py").write_text(
        "import json\n"
        "from dataclasses import dataclass\n"
        "from model_export.plan import Step\n"
        "@dataclass(frozen=True)\n"
        "class Parameters:\n"
        "    digits: int = 3\n"
        "def run(context):\n"
        "    heads = json.loads((context.inputs['calibrate'] / 'calibration.json').read_text())\n"
        "    widest = max(head['y'][-1] for head in heads.values())\n"
        "    (context.out / 'widest.txt').write_text(str(round(widest, context.parameters.digits)))\n"
        "    return 'done'\n"
        "STEP = Step(version=1, parameters=Parameters, inputs=('calibrate',), parts=(), run=run)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = (tmp_path / "plan.toml").read_text()
    (tmp_path / "plan.toml").write_text(text.replace("'verify']", f"'verify', '{package.name}.widest']", 1))

    after = run_plan(load_plan(tmp_path / "plan.toml"), tmp_path / "out")

    assert list(after) == [*before, "widest"]
    assert {step: after[step] for step in before} == before
    assert 0 < float((after["widest"] / "widest.txt").read_text()) <= 1


def test_a_new_feature_is_one_line(small_plan: MakePlan, tmp_path: Path) -> None:
    """Of the plan, where the data has it: the bundle asks for it, and the data is not read again."""
    fewer = run_plan(small_plan(features="leave_out = ['author.style', 'tweet.likes']"), tmp_path / "out")
    more = run_plan(small_plan(features="leave_out = ['author.style']"), tmp_path / "out")

    asked = [
        {f"{f.group}.{f.name}" for f in read_bundle(run["verify"] / BUNDLE).schema.features} for run in (fewer, more)
    ]
    assert asked[1] - asked[0] == {"tweet.likes"}
    assert more["data"] == fewer["data"]
