"""What a server answers with at one moment: models under labels, and a policy for each treatment of viewers."""

from __future__ import annotations

from collections.abc import Mapping

from service.errors import InvalidRequest, UnknownModel
from service.experiments import Experiments, Treatment
from service.model import Model, Served
from service.policy import Policy, PolicyError, effective
from service.repository import STABLE


class ServingError(ValueError):
    """Models, policy and experiments do not go together; the text says which do not."""


class Serving:
    """All that requests are answered with. Never changes: a server replaces it as one reference.

    Attributes:
        models: Label -> model.
    """

    def __init__(self, models: Mapping[str, Model], experiments: Experiments) -> None:
        """Works out every policy for every model.

        Args:
            models: Label -> model; STABLE is among them.
            experiments: What runs; may be none.

        Raises:
            ServingError: An arm wants a model that is not there, or policy or arm a weight for a head that the model
                lacks.
        """
        by_version = {model.version: model for model in models.values()}
        self.models = models
        self._experiments = experiments
        self._by_name: dict[str, Model] = {**by_version, **models}
        self._untreated = {version: _untreated(model, experiments.policy) for version, model in by_version.items()}
        # What an arm wants of another model than its own need not fit; a request may still ask for the two together.
        self._treated = {
            version: [_treated(model, treatment) for treatment in experiments.treatments]
            for version, model in by_version.items()
        }
        for treatment in experiments.treatments:
            if treatment.model not in models:
                raise ServingError(f"arms {dict(treatment.arms)}: no model {treatment.model!r} is served")
            served = self._treated[models[treatment.model].version][treatment.index]
            if isinstance(served, PolicyError):
                raise ServingError(f"arms {dict(treatment.arms)}: policy: {served}")

    def assign(self, viewer_id: int, model: str, forced_arms: Mapping[str, str]) -> Served:
        """What answers a viewer.

        Args:
            viewer_id: Decides the arms.
            model: Label or version that the request asks for, instead of what the arms say; may be empty.
            forced_arms: Experiment -> arm that the request asks for.

        Raises:
            InvalidRequest: There is no such experiment or arm, or the viewer's arms and the model asked for do not go
                together.
            UnknownModel: No such model is served.
        """
        treatment = self._experiments.assign(viewer_id, forced_arms)
        served = self._treated[self._named(model or treatment.model).version][treatment.index]
        if isinstance(served, PolicyError):
            raise InvalidRequest("model", f"does not go with arms {dict(treatment.arms)}: {served}")
        return served

    def untreated(self, model: str) -> Served:
        """The model of that label or version, the stable one for "", with the policy that no arm touched.

        Raises:
            UnknownModel: No such model is served.
        """
        return self._untreated[self._named(model or STABLE).version]

    def _named(self, name: str) -> Model:
        model = self._by_name.get(name)
        if model is None:
            there = ", ".join(f"{label!r} (version {m.version!r})" for label, m in self.models.items())
            raise UnknownModel(f"no model {name!r} is served; there are {there}")
        return model


def _untreated(model: Model, policy: Policy) -> Served:
    try:
        return Served(model, effective(policy, model.schema, model.icymi_relevance_min))
    except PolicyError as error:
        raise ServingError(f"policy: {error} (version {model.version})") from error


def _treated(model: Model, treatment: Treatment) -> Served | PolicyError:
    try:
        policy = effective(treatment.policy, model.schema, model.icymi_relevance_min)
    except PolicyError as error:
        return error
    return Served(model, policy, treatment.arms, treatment.exploration_epsilon)
