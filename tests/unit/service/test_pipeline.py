"""The request path without a server: its answers, worked out by hand, and what stops it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from service import pipeline
from service.decode import Decoder
from service.errors import DeadlinePassed, InvalidRequest, UnknownModel
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.limits import Limits
from service.model import Served, load_model
from service.pipeline import Answer, Call
from service.policy import Policy, effective
from tests import toy

HOUR_MS = 3_600_000
NOW_MS = 1_750_000_000_000
DECODER = Decoder(Limits())


@pytest.fixture(scope="module")
def stable(toy_bundle: Path) -> Served:
    """The toy under a policy of small sizes."""
    model = load_model(toy_bundle, threads=1)
    policy = Policy(ranked_size=2, icymi_size=1, icymi_candidates_min=4)
    return Served(model, effective(policy, model.schema, model.icymi_relevance_min))


def call(deadline_ns: float = math.inf) -> Call:
    """A call that arrives at 1,000 us by a clock that goes on by 10 us whenever it is looked at."""
    ticks = itertools.count(1_000_000, 10_000)
    return Call(NOW_MS, lambda: next(ticks), arrived_ns=990_000, deadline_ns=deadline_ns, make_id=lambda: "made")


def rank(request: pb.RankTimelineRequest, stable: Served) -> tuple[Answer, pb.RankTimelineResponse]:
    answer = pipeline.rank_timeline(request.SerializeToString(), stable, DECODER, call())
    return answer, pb.RankTimelineResponse.FromString(answer.body)


def request() -> pb.RankTimelineRequest:
    """Four Tweets: relevance of likes/1000 + 0.1 x strength + ..., all else absent, after a day away."""
    candidates = toy.candidates([99, 199, 299, 399], author_index=[0, 0, 1, 1], strength=[1, 3])
    candidates.tweets.columns.append("mood")
    candidates.tweets.values[:] = [99, 0, 199, 0, 299, 0, 399, 0]
    return pb.RankTimelineRequest(
        request_id="r1", viewer_id=5, last_visit_ms=NOW_MS - 24 * HOUR_MS, candidates=candidates
    )


def test_a_timeline_by_hand(stable: Served) -> None:
    """Raw like = 0.001 x (likes + 1) + 0.1 x (strength + 1), raw reply = 0.01 x (strength + 1); calibrated half.

    Tweets 1 to 4: like 0.3, 0.4, 0.7, 0.8 and reply 0.02, 0.02, 0.04, 0.04, so relevance 0.17, 0.22, 0.39, 0.44.
    Floor 0.2: Tweet 4 is the missed one; 3 and 2 are ranked, newest (3) first.
    """
    answer, response = rank(request(), stable)

    assert response.request_id == "r1"
    assert response.icymi_decision == pb.ICYMI_DECISION_SHOWN
    assert response.degradation == pb.DEGRADATION_NONE
    sections = (response.icymi, response.ranked, response.remainder)
    assert [list(s.tweet_ids) for s in sections] == [[4], [3, 2], [1]]
    np.testing.assert_allclose([x for s in sections for x in s.scores], [0.44, 0.39, 0.22, 0.17], rtol=1e-6)
    np.testing.assert_allclose(response.ranked.probabilities, [0.35, 0.02, 0, 0.2, 0.01, 0], rtol=1e-6)
    assert list(response.heads) == ["like", "reply", "negative"]
    assert response.served_by.model_version == stable.model.version
    assert response.served_by.policy_version == stable.policy.version
    assert response.features.tweets == pb.FeatureCounts.Columns(present=1, absent=3, unknown=1)
    assert response.features.authors == pb.FeatureCounts.Columns(present=1, absent=1)
    assert response.features.viewer == pb.FeatureCounts.Columns(absent=2)
    assert not response.HasField("explanation")
    assert answer.decision == pb.ICYMI_DECISION_SHOWN
    assert answer.probabilities.shape == (4, 3)


def test_timings_add_up(stable: Served) -> None:
    """One stage ends where the next begins; the answer tells all but its own encoding."""
    answer, response = rank(request(), stable)

    assert response.timings == pb.Timings(
        queue_us=10, decode_us=10, align_us=10, score_us=20, combine_us=10, build_us=10
    )
    assert answer.stages_ns["encode"] == 10_000
    assert set(answer.stages_ns) == set(pipeline.STAGES)


def test_explanation_by_hand(stable: Served) -> None:
    """Without its author's table Tweet 4 has 0.2 of 0.44; without the Tweets' 0.24; the viewer's is empty anyway."""
    asked = request()
    asked.explain = True

    _, response = rank(asked, stable)

    explanation = response.explanation
    np.testing.assert_allclose(explanation.raw_probabilities[:3], [0.8, 0.04, 0], rtol=1e-6)
    assert len(explanation.raw_probabilities) == 9
    assert list(explanation.policy_factors) == [1, 1, 1]
    assert list(explanation.viewer) == [0, 0, 0]
    np.testing.assert_allclose(explanation.authors, [0.24, 0.24, 0.12], rtol=1e-5)
    np.testing.assert_allclose(explanation.tweets, [0.2, 0.15, 0.1], rtol=1e-5)


def test_explanation_of_nothing(stable: Served) -> None:
    """An empty timeline has an empty explanation."""
    _, response = rank(pb.RankTimelineRequest(viewer_id=1, explain=True), stable)

    assert response.HasField("explanation")
    assert response.explanation == pb.Explanation()


def test_no_candidates(stable: Served) -> None:
    """Three empty sections, the heads all the same."""
    answer, response = rank(pb.RankTimelineRequest(viewer_id=1), stable)

    assert (response.icymi, response.ranked, response.remainder) == (pb.Section(), pb.Section(), pb.Section())
    assert list(response.heads) == ["like", "reply", "negative"]
    assert response.icymi_decision == pb.ICYMI_DECISION_TOO_FEW_CANDIDATES
    assert answer.probabilities.shape == (0, 3)


def test_an_id_is_made_where_there_is_none(stable: Served) -> None:
    """The answer can always be referred to."""
    assert rank(pb.RankTimelineRequest(viewer_id=1), stable)[1].request_id == "made"


def test_request_time(stable: Served) -> None:
    """The request's own time counts; without one the server's does."""
    late = request()
    late.request_time_ms = late.last_visit_ms + HOUR_MS
    ahead = request()
    ahead.last_visit_ms = NOW_MS + 1

    assert rank(late, stable)[1].icymi_decision == pb.ICYMI_DECISION_TOO_RECENT
    with pytest.raises(InvalidRequest, match="last_visit_ms"):
        rank(ahead, stable)
    ahead.request_time_ms = NOW_MS + 2
    assert rank(ahead, stable)[1].icymi_decision == pb.ICYMI_DECISION_TOO_RECENT


def test_scores_in_the_order_sent(stable: Served) -> None:
    """The same relevance as in a timeline, whatever the policy's factors; raw probabilities only if asked."""
    asked = pb.ScoreTweetsRequest(request_id="r2", viewer_id=5, candidates=request().candidates)
    answer = pipeline.score_tweets(asked.SerializeToString(), stable, DECODER, call())
    response = pb.ScoreTweetsResponse.FromString(answer.body)

    assert list(response.tweet_ids) == [1, 2, 3, 4]
    np.testing.assert_allclose(response.scores, [0.17, 0.22, 0.39, 0.44], rtol=1e-6)
    np.testing.assert_allclose(response.probabilities[3:6], [0.2, 0.01, 0], rtol=1e-6)
    assert not response.raw_probabilities
    assert (response.request_id, response.model_version) == ("r2", stable.model.version)
    assert answer.decision is None

    asked.raw = True
    answer = pipeline.score_tweets(asked.SerializeToString(), stable, DECODER, call())
    raw = pb.ScoreTweetsResponse.FromString(answer.body).raw_probabilities
    np.testing.assert_allclose(raw[3:6], [0.4, 0.02, 0], rtol=1e-6)


def test_describe_model(stable: Served) -> None:
    """Features in the schema's order, heads with the weights in force, policy and limits."""
    response = pb.DescribeModelResponse.FromString(pipeline.describe_model(b"", stable, DECODER, call()))

    assert response.model_version == stable.model.version
    assert [(f.group, f.name) for f in response.features] == [(f.group, f.name) for f in toy.SCHEMA.features]
    assert response.features[7] == pb.Feature(name="text", group="tweet", kind="vector", width=2)
    assert response.features[1].vocabulary == ["phone", "tablet"]
    assert response.heads[2] == pb.Head(name="negative", weight=3, sign=-1)
    assert response.policy_toml == stable.policy.toml
    assert response.limits.message_bytes_max == 32 << 20
    assert response.limits.default_deadline_ms == 1_000


@pytest.mark.parametrize("model", ["", "stable", "VERSION"])
def test_the_model_goes_by_label_or_version(stable: Served, model: str) -> None:
    """One model, three ways to ask for it."""
    assert pipeline.assign(model.replace("VERSION", stable.model.version), stable) is stable


def test_unknown_model(stable: Served) -> None:
    """Any other model is not found, whichever method asks."""
    asked = request()
    asked.model = "canary"
    with pytest.raises(UnknownModel, match="no model 'canary' is served"):
        rank(asked, stable)
    with pytest.raises(UnknownModel):
        pipeline.describe_model(pb.DescribeModelRequest(model="3").SerializeToString(), stable, DECODER, call())


def test_what_nobody_waits_for_is_not_scored(stable: Served) -> None:
    """The clock stands at 1,030 us when it comes to scoring."""
    body = request().SerializeToString()

    with pytest.raises(DeadlinePassed):
        pipeline.rank_timeline(body, stable, DECODER, call(deadline_ns=1_030_000))
    assert pipeline.rank_timeline(body, stable, DECODER, call(deadline_ns=1_030_001))
