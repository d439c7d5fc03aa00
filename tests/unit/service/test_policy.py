"""Policies: defaults, what is refused and how, and the effective policy as TOML and version."""

from __future__ import annotations

import hashlib
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.policy import EffectivePolicy, Policy, PolicyError, effective, read_policy
from service.schema import Feature, Head, Schema
from tests import toy


def resolve(policy: Policy, schema: Schema = toy.SCHEMA) -> EffectivePolicy:
    return effective(policy, schema, icymi_relevance_min=0.125)


def test_defaults() -> None:
    """An empty document is a whole policy."""
    policy = read_policy("")

    assert policy == Policy()
    assert (policy.ranked_size, policy.icymi_size, policy.icymi_candidates_min) == (30, 5, 100)
    assert policy.icymi_away_hours_min == 12
    assert not policy.author_diversity


def test_all_values() -> None:
    """Every value can be set."""
    document = """
        ranked_size = 10
        icymi_size = 2
        icymi_candidates_min = 0
        icymi_away_hours_min = 1.5
        icymi_relevance_min = -1
        author_diversity = true
        author_diversity_decay = 0.75
        author_diversity_floor = 0
        [head_weights]
        like = 2
        negative = 0.5
    """

    assert read_policy(document) == Policy(10, 2, 0, 1.5, -1, True, 0.75, 0, {"like": 2, "negative": 0.5})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("ranked_sise = 3", "ranked_sise is not a policy value; did you mean ranked_size?"),
        ("zzz = 3", "zzz is not a policy value; there are ranked_size, icymi_size"),
        ("ranked_size = 0", "ranked_size = 0: must be a whole number, 1 or more"),
        ("ranked_size = 3.0", "ranked_size = 3.0: must be a whole number"),
        ("ranked_size = true", "ranked_size = True: must be a whole number"),
        ("icymi_size = 0", "icymi_size = 0: must be a whole number, 1 or more"),
        ("icymi_candidates_min = -1", "icymi_candidates_min = -1: must be a whole number, 0 or more"),
        ("icymi_away_hours_min = -0.5", "icymi_away_hours_min = -0.5: must be a number of hours"),
        ("icymi_away_hours_min = inf", "icymi_away_hours_min = inf: must be a number of hours"),
        ("icymi_relevance_min = nan", "icymi_relevance_min = nan: must be a number"),
        ("icymi_relevance_min = '0'", "icymi_relevance_min = '0': must be a number"),
        ("author_diversity = 1", "author_diversity = 1: must be true or false"),
        ("author_diversity_decay = 1.5", "author_diversity_decay = 1.5: must be a number between 0 and 1"),
        ("author_diversity_floor = -1", "author_diversity_floor = -1: must be a number between 0 and 1"),
        ("head_weights = 3", "head_weights must be a table"),
        ("head_weights.like = -1", "head_weights.like = -1: must be a number, 0 or more"),
        ("head_weights.like = 'x'", "head_weights.like = 'x': must be a number, 0 or more"),
        (f"icymi_relevance_min = {10**400}", "icymi_relevance_min = 10000"),
        ("ranked_size = ", "not TOML: "),
        ("ranked_size = " + "[" * 5_000, "not TOML: "),
    ],
)
def test_refused(document: str, message: str) -> None:
    """The message names key and value, and the nearest name that exists."""
    with pytest.raises(PolicyError) as caught:
        read_policy(document)

    assert str(caught.value).startswith(message)


def test_bundle_fills_what_is_open() -> None:
    """Weights that the policy does not name and the ICYMI floor are the bundle's; signs always are."""
    resolved = resolve(read_policy("head_weights.negative = 10"))

    assert resolved.signed_weights.tolist() == [1, 2, -10]
    assert resolved.icymi_relevance_min == 0.125
    assert resolve(read_policy("icymi_relevance_min = 0.5")).icymi_relevance_min == 0.5


def test_unknown_head() -> None:
    """A weight for a head that the model lacks is a mistake, not a no-op."""
    with pytest.raises(PolicyError, match=r"head_weights\.likes: the model has no such head; did you mean like\?"):
        resolve(read_policy("head_weights.likes = 1"))


def test_toml_says_everything() -> None:
    """The effective policy in full, and its version: the start of its hash."""
    resolved = resolve(Policy(ranked_size=7))

    assert resolved.toml == (
        "ranked_size = 7\n"
        "icymi_size = 5\n"
        "icymi_candidates_min = 100\n"
        "icymi_away_hours_min = 12.0\n"
        "icymi_relevance_min = 0.125\n"
        "author_diversity = false\n"
        "author_diversity_decay = 0.5\n"
        "author_diversity_floor = 0.25\n"
        "\n"
        "[head_weights]\n"
        "like = 1.0\n"
        "reply = 2.0\n"
        "negative = 3.0\n"
    )
    assert resolved.version == hashlib.sha256(resolved.toml.encode()).hexdigest()[:12]


def test_version_follows_every_value() -> None:
    """Two policies have one version only if they are the same."""
    policies = [Policy(), Policy(ranked_size=31), Policy(head_weights={"like": 1.5}), Policy(icymi_relevance_min=0.1)]

    assert len({resolve(policy).version for policy in policies}) == len(policies)


@given(
    names=st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True),
    weight=st.floats(0, allow_infinity=False, allow_nan=False),
    floor=st.floats(allow_infinity=False, allow_nan=False),
)
def test_toml_reads_back(names: list[str], weight: float, floor: float) -> None:
    """Whatever the heads are called and the numbers are: the TOML is TOML, and says the same."""
    names = [name.encode(errors="replace").decode() for name in names]
    schema = Schema((Feature("x", "tweet", "binary"),), tuple(Head(name, weight, 1) for name in dict.fromkeys(names)))
    resolved = effective(Policy(), schema, floor)

    assert tomllib.loads(resolved.toml)["head_weights"] == dict.fromkeys(names, weight)
    assert read_policy(resolved.toml) == resolved.policy
