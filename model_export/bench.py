"""What scoring costs beside what it replaces: the measures P3 and P4.

All forms of all models score the same timelines on one thread, in turn; what counts is CPU time. A repetition is a few
timelines; ratios are taken within it, then the median over all, so that a slow moment of the machine is slow for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from loadtest.measures import Measure
from model_export.baselines.cost import lap_times

Times = NDArray[np.float64]

# Of each ratio: the model that is held against the graph.
RIVALS = {"P3": "plain", "P4": "trees", "P4_logistic": "logistic"}
_TIMELINES_PER_REPETITION = 4


def time_models(
    models: Mapping[str, Mapping[str, Callable[[int], object]]], repetitions: int
) -> dict[str, tuple[str, Times]]:
    """Of each model the form that is fastest by the median, and its CPU us per timeline [repetitions].

    Args:
        models: By name, a call for each form, which takes the number of a timeline.
        repetitions: Of a few calls each.
    """
    calls = {(name, form): call for name, forms in models.items() for form, call in forms.items()}
    laps = lap_times(calls, repetitions * _TIMELINES_PER_REPETITION)
    us = {key: 1_000 * ms.reshape(repetitions, -1).mean(axis=1) for key, ms in laps.items()}
    fastest = {}
    for name, forms in models.items():
        medians = {form: float(np.median(us[name, form])) for form in forms}
        form = min(medians, key=medians.__getitem__)
        fastest[name] = form, us[name, form]
    return fastest


def speed(us: Mapping[str, Times]) -> dict[str, Measure]:
    """Ratios to the graph, above 1 where the graph is faster, and the microseconds behind them.

    Args:
        us: Of `graph` and each of RIVALS, per timeline, by repetition.
    """
    ratios = {name: Measure.of((us[rival] / us["graph"]).tolist(), "ratio") for name, rival in RIVALS.items()}
    return ratios | {f"{name}_us": Measure.of(times.tolist(), "us") for name, times in us.items()}
