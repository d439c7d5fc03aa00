"""What answers whom: models by label and version, policies by arms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.errors import InvalidRequest, UnknownModel
from service.experiments import Arm, Experiment, Experiments
from service.model import Model, load_model
from service.policy import Policy
from service.schema import Head, Schema
from service.serving import Serving, ServingError
from tests import toy

CANARY_EXPERIMENT = Experiment(
    "new_model",
    "salt",
    (
        Arm("old", 0.5),
        Arm("new", 0.5, model="canary", exploration_epsilon=0.1, policy={"head_weights": {"bookmark": 9.0}}),
    ),
)


@pytest.fixture(scope="module")
def stable(toy_bundle: Path) -> Model:
    """The toy model, called 1."""
    return replace(load_model(toy_bundle, threads=1), version="1")


@pytest.fixture(scope="module")
def canary(stable: Model) -> Model:
    """A model, called 2, that has a head more."""
    heads = (*toy.SCHEMA.heads, Head("bookmark", 1.0, 1))
    return replace(stable, version="2", schema=Schema(toy.SCHEMA.features, heads), icymi_relevance_min=0.7)


def experiments(*running: Experiment, policy: Policy | None = None) -> Experiments:
    return Experiments(running, policy or Policy())


def test_without_experiments_the_stable_model_answers(stable: Model, canary: Model) -> None:
    """A request that asks for nothing gets the stable model and the server's policy."""
    serving = Serving({"stable": stable, "canary": canary}, experiments(policy=Policy(icymi_size=3)))
    served = serving.assign(77, "", {})

    assert served.model is stable
    assert (served.policy.policy.icymi_size, served.policy.icymi_relevance_min) == (3, toy.ICYMI_RELEVANCE_MIN)
    assert (served.arms, served.exploration_epsilon) == ({}, 0.0)


@pytest.mark.parametrize(("name", "version"), [("stable", "1"), ("canary", "2"), ("1", "1"), ("2", "2")])
def test_a_request_may_name_a_label_or_a_version(stable: Model, canary: Model, name: str, version: str) -> None:
    """What it names answers, with that model's floor and heads, whatever the viewer's arms say of the model."""
    serving = Serving({"stable": stable, "canary": canary}, experiments())
    served = serving.assign(77, name, {})

    assert served.model.version == serving.untreated(name).model.version == version
    assert served.policy.icymi_relevance_min == served.model.icymi_relevance_min
    assert len(served.policy.signed_weights) == len(served.model.schema.heads)


def test_arms_decide_model_policy_and_exploration(stable: Model, canary: Model) -> None:
    """Each arm's viewers get what the arm says, and the answer's arms say which it was."""
    serving = Serving({"stable": stable, "canary": canary}, experiments(CANARY_EXPERIMENT))
    new, old = (serving.assign(77, "", {"new_model": arm}) for arm in ("new", "old"))

    assert (new.model, new.arms, new.exploration_epsilon) == (canary, {"new_model": "new"}, 0.1)
    np.testing.assert_array_equal(new.policy.signed_weights, [1, 2, -3, 9])
    assert (old.model, old.arms, old.exploration_epsilon) == (stable, {"new_model": "old"}, 0.0)
    assert new.policy.version != old.policy.version
    assert {serving.assign(viewer, "", {}).model.version for viewer in range(1, 50)} == {"1", "2"}


def test_the_model_asked_for_beats_the_arms(stable: Model, canary: Model) -> None:
    """Arm and policy stay the viewer's, the model is the one asked for."""
    serving = Serving({"stable": stable, "canary": canary}, experiments(CANARY_EXPERIMENT))
    served = serving.assign(77, "canary", {"new_model": "old"})

    assert (served.model, served.arms) == (canary, {"new_model": "old"})
    np.testing.assert_array_equal(served.policy.signed_weights, [1, 2, -3, 1])


def test_a_model_that_lacks_what_the_arms_weigh_is_the_callers_mistake(stable: Model, canary: Model) -> None:
    """The stable model has no bookmarks to weigh: asking for it in the new arm is refused, naming the field."""
    serving = Serving({"stable": stable, "canary": canary}, experiments(CANARY_EXPERIMENT))
    with pytest.raises(InvalidRequest) as refused:
        serving.assign(77, "stable", {"new_model": "new"})

    assert refused.value.field == "model"
    assert "{'new_model': 'new'}: head_weights.bookmark: the model has no such head" in refused.value.description


def test_only_labelled_versions_are_served(stable: Model, canary: Model) -> None:
    """Any other name is unknown, and the text says what there is."""
    serving = Serving({"stable": stable, "canary": canary}, experiments())
    there_are = r"no model '3' is served; there are 'stable' \(version '1'\), 'canary' \(version '2'\)$"

    with pytest.raises(UnknownModel, match=there_are):
        serving.assign(77, "3", {})
    with pytest.raises(UnknownModel, match=there_are):
        serving.untreated("3")


def test_the_description_knows_no_arms(stable: Model, canary: Model) -> None:
    """What DescribeModel tells is the policy that no arm touched."""
    serving = Serving({"stable": stable, "canary": canary}, experiments(CANARY_EXPERIMENT))

    assert serving.untreated("").model is stable
    assert serving.untreated("").arms == {}
    np.testing.assert_array_equal(serving.untreated("canary").policy.signed_weights, [1, 2, -3, 1])


def test_an_arm_without_its_model_is_refused(stable: Model) -> None:
    """Experiments that want a label that nobody serves do not start."""
    with pytest.raises(ServingError, match=r"arms \{'new_model': 'new'\}: no model 'canary' is served"):
        Serving({"stable": stable}, experiments(CANARY_EXPERIMENT))


def test_a_weight_for_a_head_that_the_model_lacks_is_refused(stable: Model) -> None:
    """In the server's policy for any model; in an arm's for the arm's own."""
    with pytest.raises(ServingError, match=r"^policy: head_weights.bookmark: the model has no such head.*version 1"):
        Serving({"stable": stable}, experiments(policy=Policy(head_weights={"bookmark": 1.0})))
    with pytest.raises(ServingError, match=r"arms \{'new_model': 'new'\}: policy: head_weights.bookmark: the model"):
        Serving({"stable": stable, "canary": stable}, experiments(CANARY_EXPERIMENT))
