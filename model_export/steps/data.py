"""Step `data`: impressions in the record form."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from model_export.datasets import kuairand, parquet
from model_export.datasets.kuairand import KuaiRandData
from model_export.datasets.parquet import ParquetData
from model_export.datasets.records import DataError, RecordSet, data_path
from model_export.datasets.world import generate
from model_export.finished_run import FinishedRun
from model_export.plan import Context, Step
from model_export.plan_table import PlanError
from service.schema import Schema


@dataclass(frozen=True)
class WorldData:
    """The simulated world; see `model_export.datasets.world.generate`."""

    law: Literal["steps", "smooth", "tastes"]
    seed: int
    impressions: int
    days: int = 20


@dataclass(frozen=True)
class Parameters:
    """Where the data comes from: one of these. What files of it hold has a part in the artifact's name."""

    world: WorldData | None = None
    kuairand: KuaiRandData | None = None
    parquet: ParquetData | None = None

    def __post_init__(self) -> None:
        if [self.world, self.kuairand, self.parquet].count(None) != 2:
            raise ValueError("wants one table of world, kuairand and parquet")


def _run(context: Context) -> str:
    match context.parameters:
        case Parameters(world=WorldData() as world):
            return _simulate(world, context)
        case Parameters(kuairand=KuaiRandData() as source):
            return _read_kuairand(source, context)
        case Parameters(parquet=ParquetData() as source):
            return _read_parquet(source, context)
    raise AssertionError("unreachable: parameters name one source")


def read_dates(
    source: Parameters, path: Path, schema: Schema, first: datetime.date, last: datetime.date, root: Path
) -> RecordSet:
    """Real impressions of the dates `first` to `last`, both included, for a model that exists.

    Args:
        source: The reader, and how it is to read.
        path: What it reads instead of the source's own path.
        schema: The model's: its features, with its categories, and its heads are read.
        first: As the source dates impressions.
        last: Likewise, not before `first`.
        root: Where the data set is written.

    Raises:
        PlanError: There are no such impressions, or they are not what the model reads.
    """
    with _refused():
        match source:
            case Parameters(kuairand=KuaiRandData()):
                return kuairand.convert(path, root, first, last).for_model(schema)
            case Parameters(parquet=ParquetData() as mapping):
                mapping = replace(mapping, path=str(path), first=str(first), last=str(last))
                return parquet.convert(mapping, root, schema)
    raise PlanError("data: is the plan's own world, which has no dates; wants kuairand or parquet")


def _files(parameters: Parameters) -> dict[str, Path]:
    """Files of real impressions by their paths below the source's."""
    with _refused():
        match parameters:
            case Parameters(kuairand=KuaiRandData() as source):
                root = data_path(source.path)
                return {str(file.relative_to(root)): file for file in kuairand.source_files(root)}
            case Parameters(parquet=ParquetData() as mapping):
                root = data_path(mapping.path)
                files = {str(file.relative_to(root)): file for file in parquet.source_files(mapping)}
                return files if mapping.schema_from is None else {**files, "schema": _schema_file(mapping.schema_from)}
    return {}


def _simulate(world: WorldData, context: Context) -> str:
    with tqdm(total=world.days, desc="data", unit="day", leave=False) as bar:

        def progress(_done: int, _total: int) -> None:
            bar.update()

        generate(context.out, world.law, world.seed, world.impressions, world.days, progress=progress)
    records = RecordSet.open(context.out)
    return f"{records.rows(records.days):,} impressions of world {world.seed}, law {world.law}, {world.days} days"


def _read_kuairand(source: KuaiRandData, context: Context) -> str:
    first, last = datetime.date.fromisoformat(source.first), datetime.date.fromisoformat(source.last)
    with _refused():
        records = kuairand.convert(data_path(source.path), context.out, first, last)
    return f"{records.rows(records.days):,} impressions of KuaiRand-Pure, {source.first} to {source.last}"


def _read_parquet(source: ParquetData, context: Context) -> str:
    if source.train_days is not None and source.train_days > context.plan.split.train:
        raise PlanError("data.parquet: train_days are more than the split's, so later days would be learned from")
    schema = None
    if source.schema_from is not None:
        schema = Schema.from_json(json.loads(_schema_file(source.schema_from).read_text()))
    with _refused():
        records = parquet.convert(source, context.out, schema)
    return f"{records.rows(records.days):,} impressions of {source.path}, {len(records.days)} days"


def _schema_file(run: str) -> Path:
    return FinishedRun.open(Path(run)).artifact("data") / "schema.json"


@contextmanager
def _refused() -> Iterator[None]:
    """Data that can not be read is a plan that can not be carried out."""
    try:
        yield
    except DataError as error:
        raise PlanError(f"data: {error}") from error


STEP = Step(version=1, parameters=Parameters, inputs=(), parts=(), run=_run, files=_files)
