"""Step `data`: impressions in the record form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tqdm import tqdm

from model_export.datasets.records import RecordSet
from model_export.datasets.world import generate
from model_export.plan import Context, Step


@dataclass(frozen=True)
class WorldData:
    """The simulated world; see `model_export.datasets.world.generate`."""

    law: Literal["steps", "smooth", "tastes"]
    seed: int
    impressions: int
    days: int = 20


@dataclass(frozen=True)
class Parameters:
    """Where the data comes from."""

    world: WorldData


def _run(context: Context) -> str:
    world: WorldData = context.parameters.world
    with tqdm(total=world.days, desc="data", unit="day", leave=False) as bar:

        def progress(_done: int, _total: int) -> None:
            bar.update()

        generate(context.out, world.law, world.seed, world.impressions, world.days, progress=progress)
    records = RecordSet.open(context.out)
    return f"{records.rows(records.days):,} impressions of world {world.seed}, law {world.law}, {world.days} days"


STEP = Step(version=1, parameters=Parameters, inputs=(), parts=(), run=_run)
