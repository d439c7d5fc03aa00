"""`evaluate --data`: a bundle on real impressions, or what stands for them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import model_export
from model_export.__main__ import main
from model_export.plan import load_plan
from model_export.run import run_plan
from model_export.steps.verify import BUNDLE
from service.bundle import read_bundle
from tests import kuairand

PLANS = Path(model_export.__file__).parent / "plans"
FIGURES = {
    *("rce", "rce_low", "rce_high", "pr_auc", "pr_auc_low", "pr_auc_high", "calibration_error"),
    *("positives", "evaluated_positives"),
}
# A small net: how good it is does not matter here.
SMALL = """
steps = ["data", "discretize", "sample", "train", "export", "calibrate", "test", "verify"]
split = {{train = {train}, validate = 1, calibrate = 1, test = 1}}
discretize = {{bins = 4}}
calibrate = {{positives_min = 10, block_events_min = 3}}
[train]
epochs = 1
batch_rows = 64
threads = 1
network = {{trunk = "mlp", units = 8, hidden = [4], tower_units = 2}}
"""
KUAIRAND = """
[data.kuairand]
path = "$FOLDER"
first = "2022-04-25"
last = "2022-04-28"
"""
PARQUET = """
[data.parquet]
path = "$FOLDER/sorted.parquet"
train_days = 2
ids = {viewer_id = "user_id", author_id = "author_id", tweet_id = "video_id", session = "user_id", time_ms = "time_ms"}
labels = {click = "is_click", like = "is_like"}
[data.parquet.features]
"tweet.length" = {kind = "continuous", column = "duration_ms", unit = "ms"}
"tweet.tag" = {kind = "categorical", column = "tag"}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up KuaiRand folder, with its impressions once more in order of time."""
    root = kuairand.write_folder(tmp_path_factory.mktemp("kuairand"))
    pq.write_table(kuairand.read_impressions(root).sort_by("time_ms"), root / "sorted.parquet")
    return root


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """(plan, bundle) of each source."""
    made = {}
    for name, train, source in (("kuairand", 1, KUAIRAND), ("parquet", 2, PARQUET)):
        root = tmp_path_factory.mktemp(name)
        (root / "plan.toml").write_text(SMALL.format(train=train) + source)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FOLDER", str(folder))
            made[name] = root / "plan.toml", run_plan(load_plan(root / "plan.toml"), root / "run")["verify"] / BUNDLE
    return made


def _evaluate(plan: Path, bundle: Path, data: Path, first: str, last: str) -> int:
    command = ["evaluate", str(bundle), "--data", str(data), "--plan", str(plan), "--from", first, "--to", last]
    return main([*command, "--json"])


def _figures(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    captured = capsys.readouterr()
    heads: dict[str, Any] = json.loads(captured.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))[
        "heads"
    ]
    return heads, captured.err


@pytest.mark.parametrize(("source", "file"), [("kuairand", ""), ("parquet", "sorted.parquet")])
def test_figures_on_the_test_day_are_those_of_the_step_test(
    source: str,
    file: str,
    folder: Path,
    trained: dict[str, tuple[Path, Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same impressions, read with the bundle's schema from --data and not from the plan's path."""
    plan, bundle = trained[source]
    # The log's dates are in China, Parquet's days in UTC: there the last one begins at eight in the morning.
    assert _evaluate(plan, bundle, folder / file, "2022-04-28", "2022-04-28") == 0

    heads, said = _figures(capsys)
    manifest = read_bundle(bundle).manifest
    tested, training = manifest["metrics"]["test"], manifest["metrics"]["training"]
    assert tuple(heads) == read_bundle(bundle).schema.head_names
    for head, figures in heads.items():
        assert set(figures) == FIGURES
        assert figures["positives"] == training["positives"][head]
        assert figures["evaluated_positives"] == tested[head]["evaluated_positives"]
        for figure in ("rce", "pr_auc"):
            assert figures[figure] == pytest.approx(tested[head][figure])
            assert figures[f"{figure}_low"] < figures[figure] < figures[f"{figure}_high"]
    assert "too good" not in said


def test_days_that_the_bundle_knows_are_named(
    folder: Path, trained: dict[str, tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures come all the same; what was watched or calibrated on counts as known."""
    assert _evaluate(*trained["kuairand"], folder, "2022-04-25", "2022-04-28") == 0

    heads, said = _figures(capsys)
    assert heads["click"]["evaluated_positives"] > 150
    assert "600 impressions of 4 days" in said
    for day, part in ((25, "train"), (26, "validate"), (27, "calibrate")):
        assert f"2022-04-{day} to 2022-04-{day}: the bundle used these days to {part}" in said
    assert "2022-04-28 to" not in said


def test_a_net_that_began_as_another_is_named(
    folder: Path,
    tmp_path: Path,
    trained: dict[str, tuple[Path, Path]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other's days are not in its manifest."""
    monkeypatch.setenv("FOLDER", str(folder))
    plan, bundle = trained["parquet"]
    start = str(plan.parent / "run")
    (tmp_path / "plan.toml").write_text(plan.read_text().replace("[train]", f"[train]\nwarm_start = {start!r}"))
    warm = run_plan(load_plan(tmp_path / "plan.toml"), tmp_path / "run")["verify"] / BUNDLE

    for evaluated, said in ((warm, True), (bundle, False)):
        assert _evaluate(plan, evaluated, folder / "sorted.parquet", "2022-04-28", "2022-04-28") == 0
        assert (f"started from the net of {start}" in _figures(capsys)[1]) == said


def test_what_could_not_be_measured_is_null(
    tmp_path: Path, trained: dict[str, tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A head without a positive has no figure, and the JSON is JSON."""
    data = kuairand.write_folder(tmp_path / "kuairand")
    table = kuairand.read_impressions(data)
    column = table.column_names.index("is_hate")
    kuairand.write_impressions(data, "a", table.set_column(column, "is_hate", [[0] * len(table)]))
    (data / "impressions_b.parquet").unlink()

    assert _evaluate(*trained["kuairand"], data, "2022-04-28", "2022-04-28") == 0
    assert _figures(capsys)[0]["negative_feedback"]["rce"] is None


@pytest.mark.parametrize(
    ("source", "file", "first", "last", "message"),
    [
        ("kuairand", "", "2022-04-28", "2022-04-29", "no impressions on 2022-04-29"),
        ("kuairand", "nowhere", "2022-04-28", "2022-04-28", "not there"),
        ("parquet", "sorted.parquet", "2022-05-03", "2022-05-04", "from 2022-05-03 to 2022-05-04; there are 2022-04-2"),
        ("parquet", "nowhere", "2022-04-28", "2022-04-28", "no Parquet there"),
        ("parquet", "sorted.parquet", "2022-04-28", "2022-04-27", "--from must not be after --to"),
    ],
)
def test_impressions_that_are_not_there_are_refused(
    source: str,
    file: str,
    first: str,
    last: str,
    message: str,
    folder: Path,
    trained: dict[str, tuple[Path, Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With what there is."""
    assert _evaluate(*trained[source], folder / file, first, last) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_data_that_the_model_does_not_read_is_refused(
    folder: Path, tmp_path: Path, trained: dict[str, tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    """By the feature or head that is missing or different; a world is no such data."""
    (kuairand_plan, kuairand_bundle), (parquet_plan, parquet_bundle) = trained["kuairand"], trained["parquet"]
    others = tmp_path / "plan.toml"
    day = "2022-04-28"

    assert _evaluate(kuairand_plan, parquet_bundle, folder, day, day) == 1
    assert "the data has no tweet.length, which the model reads" in capsys.readouterr().err
    others.write_text(parquet_plan.read_text().replace(', like = "is_like"', ""))
    assert _evaluate(others, parquet_bundle, folder / "sorted.parquet", day, day) == 1
    assert "labels: the model's 'like' has no column" in capsys.readouterr().err
    data = kuairand.write_folder(tmp_path / "kuairand")
    videos = (data / "video_features_basic_pure.csv").read_text()
    (data / "video_features_basic_pure.csv").write_text(videos.replace("Kmovie", "Camera"))
    assert _evaluate(kuairand_plan, kuairand_bundle, data, day, day) == 1
    assert "other categories, kind or unit than the model's" in capsys.readouterr().err
    assert _evaluate(PLANS / "tiny.toml", kuairand_bundle, folder, day, day) == 1
    assert "wants kuairand or parquet" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "x", "--plan", "x", "--from", "2022-04-28"],
        ["--data", "x", "--plan", "x", "--from", "2022-04-28", "--to", "2022-04-28", "--world-law", "steps"],
        ["--data", "x", "--plan", "x", "--from", "2022-04-28", "--to", "2022-04-28", "--impressions", "9"],
        ["--world-seed", "1", "--plan", "x"],
    ],
)
def test_flags_that_do_not_go_together_are_refused(arguments: list[str]) -> None:
    """As a fault of usage."""
    assert main(["evaluate", "x", *arguments]) == 2


@pytest.mark.slow
@pytest.mark.skipif("TIMELINE_RANKER_DATA" not in os.environ, reason="TIMELINE_RANKER_DATA names no folder of data")
def test_a_model_of_real_impressions_is_evaluated_on_later_days(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Better than the base rate where positives are many, with an interval that says so."""
    (tmp_path / "plan.toml").write_text(
        f'extends = "{PLANS / "kuairand.toml"}"\n'
        "split = {train = 1, validate = 1, calibrate = 1, test = 1}\n"
        'data.kuairand = {first = "2022-04-29", last = "2022-05-02"}\n'
        "train = {epochs = 2, batch_rows = 256}\n"
    )
    bundle = run_plan(load_plan(tmp_path / "plan.toml"), tmp_path / "run")["verify"] / BUNDLE
    data = Path(os.environ["TIMELINE_RANKER_DATA"]) / "kuairand_pure"
    assert _evaluate(tmp_path / "plan.toml", bundle, data, "2022-05-03", "2022-05-03") == 0
    heads, _ = _figures(capsys)
    assert heads["click"]["evaluated_positives"] == 8_420
    assert heads["click"]["rce_low"] > 3
    assert all(math.isfinite(figures["rce"]) for figures in heads.values())
