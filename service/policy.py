"""The timeline policy: every threshold by which scores become a timeline. Policy is data, read from TOML.

ranked_size = 30
author_diversity = true

[head_weights]
like = 0.5
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.schema import Schema, is_finite


class PolicyError(ValueError):
    """A policy says something that makes no sense; the text names key and value."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The values of a policy; the defaults are those of a policy that says nothing.

    Attributes:
        ranked_size: Tweets in the ranked section. 30: about what a viewer scrolls through before the top set's order
            by time stops helping.
        icymi_size: Most Tweets in the "In case you missed it" module. 5: a glance; it stands above everything else.
        icymi_candidates_min: Fewest candidates for the module to show. 100: with fewer, the ranked section alone
            leaves little to be missed.
        icymi_away_hours_min: Shortest absence for the module to show, in hours. 12: a night or a working day; whoever
            was here more recently has missed little.
        icymi_relevance_min: Relevance that a Tweet needs for the module, before policy factors. None: the floor that
            the bundle states, taken from its own held-out scores, since relevance has the scale of the model's heads.
        author_diversity: Whether further Tweets of one author count less. Off: it overrides the model's own ranking.
        author_diversity_decay: What an author's further Tweets are multiplied by, one after the other, from the best
            down, on the way to the floor. 0.5, as Twitter's home timeline had it in 2023.
        author_diversity_floor: What the factor approaches. 0.25, from the same source. The k-th Tweet of an author,
            from 0, gets (1 - floor) x decay^k + floor.
        head_weights: Head -> weight in the relevance, for those that shall not have the bundle's. The sign is the
            bundle's.
    """

    ranked_size: int = 30
    icymi_size: int = 5
    icymi_candidates_min: int = 100
    icymi_away_hours_min: float = 12.0
    icymi_relevance_min: float | None = None
    author_diversity: bool = False
    author_diversity_decay: float = 0.5
    author_diversity_floor: float = 0.25
    head_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, check, wanted in _CHECKS:
            value = getattr(self, name)
            if not check(value):
                raise PolicyError(f"{name} = {value!r}: must be {wanted}")
        for head, weight in self.head_weights.items():
            if not is_finite(weight) or weight < 0:
                raise PolicyError(f"head_weights.{head} = {weight!r}: must be a number, 0 or more")


@dataclass(frozen=True, slots=True)
class EffectivePolicy:
    """A policy with nothing left open: what one model's scores are arranged by.

    Attributes:
        policy: Its `icymi_relevance_min` is a number and its `head_weights` name every head.
        signed_weights: float64 [heads], sign x weight, in the order of the schema's heads.
        toml: All values, as TOML; `read_policy` reads it back.
        version: The first 12 hex digits of the sha256 of `toml`.
    """

    policy: Policy
    signed_weights: NDArray[np.float64]
    toml: str
    version: str

    @property
    def icymi_relevance_min(self) -> float:
        """The floor of the ICYMI module."""
        floor = self.policy.icymi_relevance_min
        assert floor is not None  # noqa: S101 - what `effective` sees to
        return floor


def read_policy(text: str) -> Policy:
    """The policy in a TOML document; raises PolicyError naming what is wrong."""
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PolicyError(f"not TOML: {error}") from error
    return override(Policy(), values)


def override(policy: Policy, values: Mapping[str, Any]) -> Policy:
    """`policy` with some of its values replaced, head weights one by one.

    Args:
        policy: What holds for all other values.
        values: As a policy file would have them.

    Raises:
        PolicyError: Naming the value that is unknown or makes no sense.
    """
    known = [f.name for f in fields(Policy)]
    for name in values:
        if name not in known:
            raise PolicyError(f"{name} is not a policy value{nearest(name, known)}")
    head_weights = values.get("head_weights", {})
    if not isinstance(head_weights, Mapping):
        raise PolicyError("head_weights must be a table of head = weight")
    return replace(policy, **{**values, "head_weights": {**policy.head_weights, **head_weights}})


def effective(policy: Policy, schema: Schema, icymi_relevance_min: float) -> EffectivePolicy:
    """What `policy` comes to for one bundle.

    Args:
        policy: As read.
        schema: The bundle's, for heads, signs and default weights.
        icymi_relevance_min: The bundle's floor.

    Raises:
        PolicyError: The policy weighs a head that the model lacks.
    """
    for head in policy.head_weights:
        if head not in schema.head_names:
            raise PolicyError(f"head_weights.{head}: the model has no such head{nearest(head, schema.head_names)}")
    weights = {h.name: float(policy.head_weights.get(h.name, h.weight)) for h in schema.heads}
    floor = icymi_relevance_min if policy.icymi_relevance_min is None else policy.icymi_relevance_min
    resolved = replace(policy, icymi_relevance_min=float(floor), head_weights=weights)
    toml = _to_toml(resolved)
    return EffectivePolicy(
        policy=resolved,
        signed_weights=np.array([h.sign * weights[h.name] for h in schema.heads]),
        toml=toml,
        version=hashlib.sha256(toml.encode()).hexdigest()[:12],
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one it is probably meant to be, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_CHECKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("ranked_size", lambda v: _is_count(v) and v >= 1, "a whole number, 1 or more"),
    ("icymi_size", lambda v: _is_count(v) and v >= 1, "a whole number, 1 or more"),
    ("icymi_candidates_min", _is_count, "a whole number, 0 or more"),
    ("icymi_away_hours_min", lambda v: is_finite(v) and v >= 0, "a number of hours, 0 or more"),
    ("icymi_relevance_min", lambda v: v is None or is_finite(v), "a number"),
    ("author_diversity", lambda v: isinstance(v, bool), "true or false"),
    ("author_diversity_decay", lambda v: is_finite(v) and 0 <= v <= 1, "a number between 0 and 1"),
    ("author_diversity_floor", lambda v: is_finite(v) and 0 <= v <= 1, "a number between 0 and 1"),
)


def _to_toml(policy: Policy) -> str:
    values = asdict(policy)
    weights = values.pop("head_weights")
    # Numbers and booleans are written alike in JSON and TOML.
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    lines += ["", "[head_weights]", *(f"{_toml_key(name)} = {json.dumps(weight)}" for name, weight in weights.items())]
    return "\n".join(lines) + "\n"


def _toml_key(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_-]+", name):
        return name
    return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")  # the one character that only TOML escapes
