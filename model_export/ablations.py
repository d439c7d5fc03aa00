"""A plan with one of its parts taken away, for each of them in turn: what each part gives, or does not give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from model_export.plan import FeaturePlan, Plan
from model_export.plan_table import PlanError

WHOLE, OTHER_SEED = "the whole plan", "the whole plan, another seed"
_LAST_STEP = "test"
# More than there are of either: no negative is left out, no head is calibrated.
_MANY = 10**9


def ablations(plan: Plan) -> dict[str, Plan]:
    """Plans up to the step `test`, by what they go without.

    The first is the whole one, the second has another seed of training: their difference is chance.

    Raises:
        PlanError: There is no step `test`, or a step that has to change is taken from another run.
    """
    names = [planned.name for planned in plan.steps]
    if _LAST_STEP not in names:
        raise PlanError(f"steps: ablations need {_LAST_STEP}")
    whole = replace(plan, steps=plan.steps[: names.index(_LAST_STEP) + 1])
    features: dict[str, Callable[[FeaturePlan], FeaturePlan]] = {
        # What had bins alone has to enter somehow.
        "discretizer": lambda f: replace(f, binned=(), raw_log=tuple(dict.fromkeys((*f.raw_log, *f.binned)))),
    }
    if plan.features.raw or plan.features.raw_log:
        features["raw values"] = lambda f: replace(f, raw=(), raw_log=())
    if plan.features.dots:
        features["inner products"] = lambda f: replace(f, dots=())
    made = {WHOLE: whole, OTHER_SEED: _changed(whole, "train", seed=_parameter(whole, "train", "seed") + 1)}
    made |= {f"without {name}": replace(whole, features=change(whole.features)) for name, change in features.items()}
    return made | {
        "without normalization": _changed(whole, "train", without="normalization"),
        "without feature bias": _changed(whole, "train", without="feature_bias"),
        "without sampling": _changed(whole, "sample", negatives_per_positive=float(_MANY)),
        "without isotonic regression": _changed(whole, "calibrate", positives_min=_MANY),
        "without any calibration": _changed(whole, "test", without="calibration"),
    }


def _parameter(plan: Plan, step: str, name: str) -> Any:
    return next(getattr(planned.parameters, name) for planned in plan.steps if planned.name == step)


def _changed(plan: Plan, step: str, **changes: Any) -> Plan:
    """The plan with other parameters of one step."""
    steps = []
    for planned in plan.steps:
        if planned.name == step:
            if planned.source is not None:
                raise PlanError(f"ablations: {step} has to change, but is taken from {planned.source}")
            planned = replace(planned, parameters=replace(planned.parameters, **changes))
        steps.append(planned)
    return replace(plan, steps=tuple(steps))
