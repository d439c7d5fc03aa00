"""Experiments: reading, conflicts, assignment, forced arms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.experiments import Arm, Experiment, Experiments, ExperimentsError, read_experiments
from service.policy import Policy

WHOLE = """
[[experiments]]
name = "more_likes"
salt = "more-likes-1"
[[experiments.arms]]
name = "control"
share = 0.75
[[experiments.arms]]
name = "treatment"
share = 0.25
model = "canary"
policy.head_weights.like = 2.0
policy.icymi_size = 3

[[experiments]]
name = "explore"
salt = "explore-1"
arms = [{name = "on", share = 1, exploration_epsilon = 0.05}, {name = "off", share = 0}]
"""


def experiment(name: str, *shares: float, salt: str = "") -> Experiment:
    """Arms a, b, ... of these shares, which set nothing."""
    return Experiment(name, salt or f"salt of {name}", tuple(Arm("abcdefgh"[i], s) for i, s in enumerate(shares)))


def experiments(*all_of_them: Experiment, policy: Policy | None = None) -> Experiments:
    return Experiments(all_of_them, policy or Policy())


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    return float(((observed - expected) ** 2 / expected).sum())


def test_a_file_becomes_what_it_says() -> None:
    """All that a file can state arrives where it belongs; what it leaves out is absent."""
    more_likes, explore = read_experiments(WHOLE)

    assert more_likes == Experiment(
        "more_likes",
        "more-likes-1",
        (
            Arm("control", 0.75),
            Arm("treatment", 0.25, model="canary", policy={"head_weights": {"like": 2.0}, "icymi_size": 3}),
        ),
    )
    assert explore.arms == (Arm("on", 1, exploration_epsilon=0.05), Arm("off", 0))


def test_arms_of_several_experiments_add_up() -> None:
    """A viewer gets the policy of the server with all that their arms set, and the one model that an arm names."""
    running = Experiments(read_experiments(WHOLE), Policy(ranked_size=7, head_weights={"reply": 3.0}))
    treated = running.assign(1, {"more_likes": "treatment", "explore": "on"})
    control = running.assign(1, {"more_likes": "control", "explore": "off"})

    assert treated.arms == {"more_likes": "treatment", "explore": "on"}
    assert treated.policy == Policy(ranked_size=7, icymi_size=3, head_weights={"reply": 3.0, "like": 2.0})
    assert (treated.model, treated.exploration_epsilon) == ("canary", 0.05)
    assert control.policy == Policy(ranked_size=7, head_weights={"reply": 3.0})
    assert (control.model, control.exploration_epsilon) == ("stable", 0.0)
    assert len(running.treatments) == 4
    assert list(running.arms) == [
        ("more_likes", "control"),
        ("more_likes", "treatment"),
        ("explore", "on"),
        ("explore", "off"),
    ]


def test_without_experiments_all_get_the_same() -> None:
    """No experiment: one treatment, no arms, the stable model."""
    treatment = experiments(policy=Policy(icymi_size=2)).assign(77, {})

    assert treatment.arms == {}
    assert (treatment.model, treatment.policy) == ("stable", Policy(icymi_size=2))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("salt =", "sallt ="), "experiment 'more_likes': sallt is not known; did you mean salt?"),
        (("model =", "mode ="), "experiment 'more_likes': arm 'treatment': mode is not known; did you mean model?"),
        (
            ('[[experiments]]\nname = "explore"', '[[experiment]]\nname = "explore"'),
            "experiment is not known; did you mean experiments?",
        ),
        (('salt = "explore-1"\n', ""), "experiment 'explore': salt is missing"),
        (('name = "control"\n', ""), "experiment 'more_likes': arm 0: name is missing"),
        (("0.75", "0.7"), "experiment 'more_likes': the shares of its arms sum to 0.95, not to 1"),
        (("0.75", "nan"), "arm 'control': share = nan: must be a number between 0 and 1"),
        (("0.75", "true"), "arm 'control': share = True: must be a number between 0 and 1"),
        (("0.75", "-0.25"), "arm 'control': share = -0.25: must be a number between 0 and 1"),
        (("0.05", "1.5"), "arm 'on': exploration_epsilon = 1.5: must be a number between 0 and 1"),
        (('"canary"', "3"), "arm 'treatment': model = 3: must be a label"),
        (('"canary"', '""'), "arm 'treatment': model = '': must be a label"),
        (('"control"', '"treatment"'), "two arms of one name among treatment, treatment"),
        (('"control"', '"con trol"'), "name = 'con trol': must be 1 to 64 of"),
        (('"more-likes-1"', '""'), "salt = '': must be a text"),
        (('"more-likes-1"', '"a\\u0000b"'), "must be a text, neither empty nor with a zero byte"),
        (('name = "explore"', 'name = "more_likes"'), "two experiments are called 'more_likes'"),
        (('"explore-1"', '"more-likes-1"'), "experiments 'more_likes' and 'explore' have the same salt"),
        (("policy.icymi_size = 3", "policy = 3"), "not TOML"),
        (("policy.icymi_size = 3", "policy.icymi_size = " + "[" * 5_000), "not TOML"),
        (("icymi_size", "icymi_sise"), "policy.icymi_sise is not a policy value; did you mean icymi_size?"),
        (("icymi_size = 3", "icymi_size = 0"), "arm 'treatment': policy.icymi_size = 0: must be a whole number"),
        (("like = 2.0", "like = -2.0"), "policy.head_weights.like = -2.0: must be a number, 0 or more"),
        (("exploration_epsilon = 0.05", "policy = 1"), "policy = 1: must be a table"),
        (('arms = [{name = "on", share = 1', 'arms = [1, {name = "on", share = 1'), "arms must be one or more tables"),
        (("exploration_epsilon = 0.05", 'model = "x"'), "'more_likes' and 'explore' both set model"),
        (
            ("exploration_epsilon = 0.05", "policy.icymi_size = 3"),
            "'more_likes' and 'explore' both set policy.icymi_size",
        ),
        (
            ("exploration_epsilon = 0.05", "policy.head_weights = {like = 1, reply = 1}"),
            "both set policy.head_weights.like",
        ),
    ],
)
def test_a_bad_file_is_refused_with_what_is_wrong(change: tuple[str, str], fault: str) -> None:
    """Each fault is named with experiment, arm, key and value; an unknown key with the one that was meant."""
    assert change[0] in WHOLE
    with pytest.raises(ExperimentsError) as refused:
        Experiments(read_experiments(WHOLE.replace(*change, 1)), Policy())

    assert fault in str(refused.value)


def test_experiments_may_set_different_weights_of_the_same_table() -> None:
    """What may not be set twice is a value, not the table that it stands in."""
    likes = Experiment("likes", "1", (Arm("a", 1, policy={"head_weights": {"like": 1}}),))
    replies = Experiment("replies", "2", (Arm("a", 1, policy={"head_weights": {"reply": 2}}),))

    assert experiments(likes, replies).assign(1, {}).policy.head_weights == {"like": 1, "reply": 2}


def test_more_combinations_than_the_server_would_hold_are_refused() -> None:
    """Four experiments of six arms have 1,296 combinations."""
    with pytest.raises(ExperimentsError, match="more than 1000 combinations"):
        experiments(*(experiment(name, *[0.25] * 4, 0, 0) for name in "wxyz"))


# uniform() of these comes from sha256sum and JavaScript, see test_stable_hash.py: 0.2197, 0.0213, 0.0837, 0.3961.
@pytest.mark.parametrize(
    ("viewer_id", "arm"), [(1, "b"), (2, "a"), (9223372036854775807, "b"), (-1, "c")], ids=["1", "2", "max", "-1"]
)
def test_other_languages_find_the_same_arm(viewer_id: int, arm: str) -> None:
    """The arm follows from the documented hash and the cumulative shares alone."""
    assert experiment("any", 0.05, 0.3, 0.65, salt="like-weight").arm_of(viewer_id).name == arm


@pytest.mark.parametrize(("drawn", "arm"), [(0.0, "b"), (0.333333333, "c"), (1 - 2**-53, "d")])
def test_the_ends_of_an_arm(drawn: float, arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An arm begins where those before it end, the last one has what rounding leaves, one without a share nothing."""
    monkeypatch.setattr("service.experiments.uniform", lambda _salt, _key: drawn)

    assert experiment("any", 0, 0.333333333, 0.333333333, 0.333333333, 0).arm_of(1).name == arm


SNOWFLAKES = np.random.default_rng(5).integers(1, 2**62, 40_000)


@pytest.mark.parametrize("viewer_ids", [range(1, 40_001), SNOWFLAKES.tolist()], ids=["small", "large"])
@pytest.mark.parametrize("salt", ["a", "b", "2026-11"])
def test_arms_get_their_shares(viewer_ids: list[int], salt: str) -> None:
    """Chi-square over four arms: below 16.27, the 99.9 % point with 3 degrees of freedom, for small and large ids."""
    shares = [0.1, 0.2, 0.3, 0.4]
    dealt = experiment("any", *shares, salt=salt)
    names = [dealt.arm_of(viewer_id).name for viewer_id in viewer_ids]
    observed = np.array([names.count(name) for name in "abcd"])

    assert chi_square(observed, np.array(shares) * len(names)) < 16.27


@pytest.mark.parametrize("salts", [("one", "two"), ("exp-1", "exp-2"), ("a", "aa")])
def test_experiments_are_independent(salts: tuple[str, str]) -> None:
    """Chi-square of the 4 x 4 table of two experiments' arms: below 27.88, the 99.9 % point with 9 degrees."""
    first, second = (experiment("any", 0.1, 0.2, 0.3, 0.4, salt=salt) for salt in salts)
    table = np.zeros((4, 4))
    for viewer_id in range(1, 40_001):
        table["abcd".index(first.arm_of(viewer_id).name), "abcd".index(second.arm_of(viewer_id).name)] += 1
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()

    assert chi_square(table, expected) < 27.88


def test_growing_a_share_moves_nobody_who_has_the_arm() -> None:
    """A first arm that grows from a tenth to a third keeps its viewers."""
    small, grown = experiment("any", 0.1, 0.9), experiment("any", 0.3, 0.7)
    before = {viewer_id for viewer_id in range(1, 2_000) if small.arm_of(viewer_id).name == "a"}
    after = {viewer_id for viewer_id in range(1, 2_000) if grown.arm_of(viewer_id).name == "a"}

    assert before
    assert before < after


@given(st.integers(-(2**63), 2**63 - 1), st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["a", "b"])))
def test_forcing_an_arm_leaves_the_other_experiments_alone(viewer_id: int, forced_arms: dict[str, str]) -> None:
    """A forced arm is the one asked for; in experiments that are not forced the viewer has their own."""
    running = experiments(experiment("x", 0.5, 0.5), experiment("y", 0.5, 0.5))
    own = running.assign(viewer_id, {}).arms

    assert running.assign(viewer_id, forced_arms).arms == {**own, **forced_arms}


@pytest.mark.parametrize(
    ("forced_arms", "description"),
    [
        ({"z": "a"}, "there is no experiment 'z'; there are x, y"),
        ({"x": "c"}, "experiment 'x' has no arm 'c'; it has a, b"),
        ({"x": ""}, "experiment 'x' has no arm ''; it has a, b"),
    ],
)
def test_an_unknown_forced_arm_is_the_callers_mistake(forced_arms: dict[str, str], description: str) -> None:
    """The field at fault is forced_arms, and the text says what there is."""
    with pytest.raises(InvalidRequest) as refused:
        experiments(experiment("x", 0.5, 0.5), experiment("y", 1)).assign(1, forced_arms)

    assert (refused.value.field, refused.value.description) == ("forced_arms", description)


def test_forcing_an_arm_where_nothing_runs_is_refused() -> None:
    """Without experiments there is nothing to force."""
    with pytest.raises(InvalidRequest, match="there is no experiment 'x'; none is running"):
        experiments().assign(1, {"x": "a"})
