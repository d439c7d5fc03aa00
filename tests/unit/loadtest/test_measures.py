from __future__ import annotations

import json
import math
from pathlib import Path

from loadtest.measures import Measure, write


def test_figures_as_json(tmp_path: Path) -> None:
    """The median with its spread; null where a call never ended, since other parsers know no Infinity."""
    write({"P6": Measure.of([3.0, math.inf, 1.0], "ratio")}, tmp_path / "bench.json")

    document = json.loads((tmp_path / "bench.json").read_text(), parse_constant=lambda name: name)
    assert document["measures"] == {"P6": {"value": 3.0, "min": 1.0, "max": None, "unit": "ratio"}}
