"""A model that is ready to serve: read, loaded, warmed up, and seen to answer as it did where it was made."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from service.align import Aligner, Tables
from service.bundle import Bundle, BundleError, read_bundle
from service.decode import Decoder
from service.errors import InvalidRequest
from service.generated.timelines.ranking.v1 import golden_pb2
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.limits import Limits
from service.policy import EffectivePolicy
from service.relevance import relevance
from service.schema import Schema
from service.scoring import Scorer, Scores

# How far an answer may be from the golden one: |difference| <= GOLDEN_ABSOLUTE + GOLDEN_RELATIVE x golden value.
# Other processors add in another order, and a steep piece of a calibration curve widens that; a model that is
# not the one that was tested is off by far more.
GOLDEN_ABSOLUTE = 1e-5
GOLDEN_RELATIVE = 1e-2


@dataclass(frozen=True)
class Model:
    """One version of the model.

    Attributes:
        version: Its name in answers.
        sha256: Of model.onnx, in hex.
        schema: What it reads and predicts.
        icymi_relevance_min: The bundle's floor for the ICYMI module.
        aligner: From a caller's columns to its own.
        scorer: The session.
    """

    version: str
    sha256: str
    schema: Schema
    icymi_relevance_min: float
    aligner: Aligner
    scorer: Scorer

    def score(self, tables: Tables) -> Scores:
        """Scores N >= 0 Tweets."""
        if len(tables.tweets):
            return self.scorer.score(tables)
        nothing = np.empty((0, len(self.schema.heads)), np.float32)
        return Scores(nothing, nothing)


@dataclass(frozen=True, slots=True)
class Served:
    """What answers one request.

    Attributes:
        model: Scores the Tweets.
        policy: Makes a timeline of the scores.
        arms: Experiment -> arm of the viewer.
        exploration_epsilon: How often a Tweet is explored, 0 to 1.
        fields: Heads and `served_by` of a RankTimelineResponse, serialised: the same in all its answers.
    """

    model: Model
    policy: EffectivePolicy
    arms: Mapping[str, str] = field(default_factory=dict)
    exploration_epsilon: float = 0.0
    fields: bytes = field(init=False)

    def __post_init__(self) -> None:
        served_by = pb.ServedBy(model_version=self.model.version, policy_version=self.policy.version, arms=self.arms)
        response = pb.RankTimelineResponse(heads=self.model.schema.head_names, served_by=served_by)
        object.__setattr__(self, "fields", response.SerializeToString())


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What became of a try to load a version.

    Attributes:
        faults: Why it was refused, a line each; none: it was loaded.
        at_ms: When, Unix ms.
    """

    faults: tuple[str, ...]
    at_ms: int

    @staticmethod
    def now(*faults: str) -> LoadResult:
        """A result of this moment."""
        return LoadResult(faults, time.time_ns() // 1_000_000)


def load_model(directory: Path, threads: int) -> Model:
    """Loads the bundle in `directory`; a single run of it may use `threads` threads.

    Raises:
        BundleError: The bundle is not to be served, and why.
    """
    bundle = read_bundle(directory)
    model = make_model(bundle, Scorer(bundle.model, bundle.schema, bundle.manifest["graph"], threads))
    check_answers(model, bundle)
    return model


def make_model(bundle: Bundle, scorer: Scorer, version: str | None = None) -> Model:
    """The model of a bundle; None: it is called by the first 12 hex digits of its sha256."""
    return Model(
        version=version or bundle.sha256[:12],
        sha256=bundle.sha256,
        schema=bundle.schema,
        icymi_relevance_min=float(bundle.manifest["icymi_relevance_min"]),
        aligner=Aligner(bundle.schema, scorer.sparse_tweets),
        scorer=scorer,
    )


def check_answers(model: Model, bundle: Bundle) -> None:
    """Warms the model up and holds its answers against the golden ones; raises BundleError."""
    model.scorer.warm_up()
    if faults := golden_faults(model, bundle):
        raise BundleError(faults)


def golden_faults(model: Model, bundle: Bundle) -> list[str]:
    """Where the model's answers are not the golden ones, a line per case."""
    faults = []
    decoder = Decoder(Limits())
    for i, case in enumerate(bundle.golden.cases):
        fault = _case_fault(model, decoder, case)
        if fault:
            faults.append(f"golden.binpb: case {i}: {fault}")
    return faults


def _case_fault(model: Model, decoder: Decoder, case: golden_pb2.GoldenCase) -> str:
    try:
        candidates = decoder.candidates(case.request.candidates)
    except InvalidRequest as error:
        return f"the request is bad: {error}"
    if list(case.response.heads) != list(model.schema.head_names):
        return f"heads are {list(case.response.heads)}, the schema's {list(model.schema.head_names)}"
    tables, _ = model.aligner.align(candidates)
    scores = model.scorer.try_out(tables)
    weights = np.array([h.sign * h.weight for h in model.schema.heads])
    margin, raw_margin = (GOLDEN_ABSOLUTE + GOLDEN_RELATIVE * values for values in scores)
    for name, golden, found, allowed in (
        ("probabilities", case.response.probabilities, scores.probabilities.ravel(), margin.ravel()),
        ("raw_probabilities", case.response.raw_probabilities, scores.raw.ravel(), raw_margin.ravel()),
        ("scores", case.response.scores, relevance(scores.probabilities, weights), margin @ np.abs(weights)),
    ):
        if len(golden) != len(found):
            return f"{len(golden)} {name}, the model gives {len(found)}"
        difference = np.abs(np.asarray(golden, dtype=np.float32) - found)
        if not (difference <= allowed).all():  # written so that NaN fails
            return f"{name} are up to {difference.max():.3g} away from the model's"
    return ""
