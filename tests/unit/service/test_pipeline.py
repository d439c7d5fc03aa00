"""The request path without a server: its answers, worked out by hand, and what stops it."""

from __future__ import annotations

import hashlib
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from service import pipeline
from service.admission import Admission, Turn
from service.align import Tables
from service.errors import DeadlinePassed, InvalidRequest, UnknownModel
from service.experiments import Arm, Experiment, Experiments
from service.fast_decode import RequestDecoder as Decoder
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.limits import Limits
from service.model import LoadResult, Model, load_model
from service.pipeline import Answer, Call
from service.policy import Policy
from service.scoring import Scores
from service.serving import Serving
from tests import toy

HOUR_MS = 3_600_000
NOW_MS = 1_750_000_000_000
DECODER = Decoder(Limits())
VERSION = hashlib.sha256(toy.model_bytes()).hexdigest()[:12]


POLICY = Policy(ranked_size=2, icymi_size=1, icymi_candidates_min=4)


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Model:
    """The toy."""
    return load_model(toy_bundle, threads=1)


@pytest.fixture(scope="module")
def serving(model: Model) -> Serving:
    """The toy under a policy of small sizes."""
    return Serving({"stable": model}, Experiments((), POLICY))


def call(deadline_ns: float = math.inf) -> Call:
    """A call that arrives at 990 us by a clock that goes on by 10 us whenever it is looked at.

    It asks for its turn at 1,030 us, and takes 1 ms and 1 us for each Tweet.
    """
    ticks = itertools.count(1_000_000, 10_000)
    admission = Admission(1, lambda: 1_030_000)
    admission.start({VERSION: ((0, 1_000_000), (1_000, 2_000_000))})
    return Call(
        NOW_MS,
        lambda: next(ticks),
        arrived_ns=990_000,
        deadline_ns=deadline_ns,
        admission=admission,
        on_end=lambda _: True,
        make_id=lambda: "made",
    )


def rank(
    request: pb.RankTimelineRequest, serving: Serving, deadline_ns: float = math.inf
) -> tuple[Answer, pb.RankTimelineResponse]:
    answer = pipeline.rank_timeline(request.SerializeToString(), serving, DECODER, call(deadline_ns))
    return answer, pb.RankTimelineResponse.FromString(answer.body)


def request() -> pb.RankTimelineRequest:
    """Four Tweets: relevance of likes/1000 + 0.1 x strength + ..., all else absent, after a day away."""
    candidates = toy.candidates([99, 199, 299, 399], author_index=[0, 0, 1, 1], strength=[1, 3])
    candidates.tweets.columns.append("mood")
    candidates.tweets.values[:] = [99, 0, 199, 0, 299, 0, 399, 0]
    return pb.RankTimelineRequest(
        request_id="r1", viewer_id=5, last_visit_ms=NOW_MS - 24 * HOUR_MS, candidates=candidates
    )


def test_a_timeline_by_hand(serving: Serving) -> None:
    """Raw like = 0.001 x (likes + 1) + 0.1 x (strength + 1), raw reply = 0.01 x (strength + 1); calibrated half.

    Tweets 1 to 4: like 0.3, 0.4, 0.7, 0.8 and reply 0.02, 0.02, 0.04, 0.04, so relevance 0.17, 0.22, 0.39, 0.44.
    Floor 0.2: Tweet 4 is the missed one; 3 and 2 are ranked, newest (3) first.
    """
    answer, response = rank(request(), serving)

    assert response.request_id == "r1"
    assert response.icymi_decision == pb.ICYMI_DECISION_SHOWN
    assert response.degradation == pb.DEGRADATION_NONE
    sections = (response.icymi, response.ranked, response.remainder)
    assert [list(s.tweet_ids) for s in sections] == [[4], [3, 2], [1]]
    np.testing.assert_allclose([x for s in sections for x in s.scores], [0.44, 0.39, 0.22, 0.17], rtol=1e-6)
    np.testing.assert_allclose(response.ranked.probabilities, [0.35, 0.02, 0, 0.2, 0.01, 0], rtol=1e-6)
    assert list(response.heads) == ["like", "reply", "negative"]
    assert response.served_by.model_version == serving.untreated("").model.version
    assert response.served_by.policy_version == serving.untreated("").policy.version
    assert response.features.tweets == pb.FeatureCounts.Columns(present=1, absent=3, unknown=1)
    assert response.features.authors == pb.FeatureCounts.Columns(present=1, absent=1)
    assert response.features.viewer == pb.FeatureCounts.Columns(absent=2)
    assert not response.HasField("explanation")
    assert answer.ranking is not None
    assert (answer.ranking.viewer_id, answer.ranking.request_id, answer.ranking.served_at_ms) == (5, "r1", NOW_MS)
    assert answer.ranking.arms == {}
    assert answer.ranking.timeline.decision == pb.ICYMI_DECISION_SHOWN
    assert answer.ranking.inclusion_probabilities is None
    assert answer.probabilities.shape == (4, 3)


def test_timings_add_up(serving: Serving) -> None:
    """One stage ends where the next begins; the answer tells all but its own encoding.

    Decoding counts before a call's turn and in it, queueing before it is looked at and after.
    """
    answer, response = rank(request(), serving)

    assert response.timings == pb.Timings(
        queue_us=20, decode_us=20, align_us=10, score_us=10, combine_us=10, build_us=10
    )
    assert answer.stages_ns["encode"] == 10_000
    assert set(answer.stages_ns) == set(pipeline.STAGES)


def test_explanation_by_hand(serving: Serving) -> None:
    """Without its author's table Tweet 4 has 0.2 of 0.44; without the Tweets' 0.24; the viewer's is empty anyway."""
    asked = request()
    asked.explain = True

    _, response = rank(asked, serving)

    explanation = response.explanation
    np.testing.assert_allclose(explanation.raw_probabilities[:3], [0.8, 0.04, 0], rtol=1e-6)
    assert len(explanation.raw_probabilities) == 9
    assert list(explanation.policy_factors) == [1, 1, 1]
    assert list(explanation.viewer) == [0, 0, 0]
    np.testing.assert_allclose(explanation.authors, [0.24, 0.24, 0.12], rtol=1e-5)
    np.testing.assert_allclose(explanation.tweets, [0.2, 0.15, 0.1], rtol=1e-5)


def test_no_explanation_costs_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of the model, and no other stage of an explanation; with one asked for a run more for each group."""
    runs: list[Tables] = []
    score = model.scorer.score

    def counted(tables: Tables) -> Scores:
        runs.append(tables)
        return score(tables)

    monkeypatch.setattr(model.scorer, "score", counted)
    serving = Serving({"stable": model}, Experiments((), POLICY))
    explained = request()
    explained.explain = True

    rank(explained, serving)
    assert len(runs) == 1 + 3
    monkeypatch.setattr(pipeline, "explain", None)
    monkeypatch.setattr(pipeline, "explanation_of", None)
    rank(request(), serving)
    assert len(runs) == 4 + 1


def test_explanation_of_nothing(serving: Serving) -> None:
    """An empty timeline has an empty explanation."""
    _, response = rank(pb.RankTimelineRequest(viewer_id=1, explain=True), serving)

    assert response.HasField("explanation")
    assert response.explanation == pb.Explanation()


def test_no_candidates(serving: Serving) -> None:
    """Three empty sections, the heads all the same."""
    answer, response = rank(pb.RankTimelineRequest(viewer_id=1), serving)

    assert (response.icymi, response.ranked, response.remainder) == (pb.Section(), pb.Section(), pb.Section())
    assert list(response.heads) == ["like", "reply", "negative"]
    assert response.icymi_decision == pb.ICYMI_DECISION_TOO_FEW_CANDIDATES
    assert answer.probabilities.shape == (0, 3)


def test_an_id_is_made_where_there_is_none(serving: Serving) -> None:
    """The answer can always be referred to."""
    assert rank(pb.RankTimelineRequest(viewer_id=1), serving)[1].request_id == "made"


def test_request_time(serving: Serving) -> None:
    """The request's own time counts; without one the server's does."""
    late = request()
    late.request_time_ms = late.last_visit_ms + HOUR_MS
    ahead = request()
    ahead.last_visit_ms = NOW_MS + 1

    assert rank(late, serving)[1].icymi_decision == pb.ICYMI_DECISION_TOO_RECENT
    with pytest.raises(InvalidRequest, match="last_visit_ms"):
        rank(ahead, serving)
    ahead.request_time_ms = NOW_MS + 2
    assert rank(ahead, serving)[1].icymi_decision == pb.ICYMI_DECISION_TOO_RECENT


def test_scores_in_the_order_sent(serving: Serving) -> None:
    """The same relevance as in a timeline, whatever the policy's factors; raw probabilities only if asked."""
    asked = pb.ScoreTweetsRequest(request_id="r2", viewer_id=5, candidates=request().candidates)
    answer = pipeline.score_tweets(asked.SerializeToString(), serving, DECODER, call())
    response = pb.ScoreTweetsResponse.FromString(answer.body)

    assert list(response.tweet_ids) == [1, 2, 3, 4]
    np.testing.assert_allclose(response.scores, [0.17, 0.22, 0.39, 0.44], rtol=1e-6)
    np.testing.assert_allclose(response.probabilities[3:6], [0.2, 0.01, 0], rtol=1e-6)
    assert not response.raw_probabilities
    assert (response.request_id, response.model_version) == ("r2", serving.untreated("").model.version)
    assert answer.ranking is None

    asked.raw = True
    answer = pipeline.score_tweets(asked.SerializeToString(), serving, DECODER, call())
    raw = pb.ScoreTweetsResponse.FromString(answer.body).raw_probabilities
    np.testing.assert_allclose(raw[3:6], [0.4, 0.02, 0], rtol=1e-6)


def test_describe_model(serving: Serving) -> None:
    """Features in the schema's order, heads with the weights in force, policy, limits, labels and loads."""
    loads = {"1": LoadResult((), 11), "2": LoadResult(("model.onnx: is missing", "golden.binpb: is missing"), 22)}
    asked = call()._replace(loads=loads)
    response = pb.DescribeModelResponse.FromString(pipeline.describe_model(b"", serving, DECODER, asked))

    assert response.serving == {"stable": response.model_version}
    assert list(response.loads) == [
        pb.ModelLoad(version="1", at_ms=11),
        pb.ModelLoad(version="2", at_ms=22, faults=["model.onnx: is missing", "golden.binpb: is missing"]),
    ]

    assert response.model_version == serving.untreated("").model.version
    assert [(f.group, f.name) for f in response.features] == [(f.group, f.name) for f in toy.SCHEMA.features]
    assert response.features[7] == pb.Feature(name="text", group="tweet", kind="vector", width=2)
    assert response.features[1].vocabulary == ["phone", "tablet"]
    assert response.heads[2] == pb.Head(name="negative", weight=3, sign=-1)
    assert response.policy_toml == serving.untreated("").policy.toml
    assert response.limits.message_bytes_max == 32 << 20
    assert response.limits.default_deadline_ms == 1_000


ALL_IN_ONE = Experiment(
    "all_in_one",
    "salt",
    (
        Arm("control", 0),
        Arm("treatment", 1, exploration_epsilon=1.0, policy={"head_weights": {"like": 10.0}, "ranked_size": 1}),
    ),
)


def test_the_viewers_arm_decides(model: Model) -> None:
    """All viewers are in the treatment: likes count tenfold, one Tweet is ranked, and it gives its slot away.

    Tweets 1 to 4: relevance 1.52, 2.02, 3.54, 4.04. The exploration takes Tweet 3's slot for 1 or 2.
    """
    serving = Serving({"stable": model}, Experiments((ALL_IN_ONE,), POLICY))
    answer, response = rank(request(), serving)

    assert response.served_by.arms == {"all_in_one": "treatment"}
    assert response.served_by.policy_version != serving.untreated("").policy.version
    assert list(response.icymi.tweet_ids) == [4]
    assert response.icymi.scores[0] == pytest.approx(4.04)
    (explored,) = response.ranked.tweet_ids
    assert explored in (1, 2)
    assert list(response.remainder.tweet_ids) == [3, 3 - explored]
    assert answer.ranking is not None
    assert answer.ranking.inclusion_probabilities is not None
    np.testing.assert_array_equal(answer.ranking.inclusion_probabilities, [0.5, 0.5, 0, 1])


def test_a_forced_arm_decides_instead(model: Model) -> None:
    """The control has nobody but whom a request forces into it; an arm that there is not is refused."""
    serving = Serving({"stable": model}, Experiments((ALL_IN_ONE,), POLICY))
    asked = request()
    asked.forced_arms["all_in_one"] = "control"
    response = rank(asked, serving)[1]

    assert response.served_by.arms == {"all_in_one": "control"}
    assert [list(s.tweet_ids) for s in (response.icymi, response.ranked)] == [[4], [3, 2]]
    asked.forced_arms["all_in_one"] = "both"
    with pytest.raises(InvalidRequest, match=r"^forced_arms: experiment 'all_in_one' has no arm 'both'"):
        rank(asked, serving)


def test_scores_go_by_the_viewers_arm(model: Model) -> None:
    """The weights of the viewer's arm, not the server's."""
    serving = Serving({"stable": model}, Experiments((ALL_IN_ONE,), POLICY))
    asked = pb.ScoreTweetsRequest(viewer_id=5, candidates=request().candidates)
    answer = pipeline.score_tweets(asked.SerializeToString(), serving, DECODER, call())

    scores = pb.ScoreTweetsResponse.FromString(answer.body).scores
    np.testing.assert_allclose(scores, [1.52, 2.02, 3.54, 4.04], rtol=1e-6)


def test_unknown_model(serving: Serving) -> None:
    """Any other model is not found, whichever method asks."""
    asked = request()
    asked.model = "canary"
    with pytest.raises(UnknownModel, match="no model 'canary' is served"):
        rank(asked, serving)
    with pytest.raises(UnknownModel):
        pipeline.describe_model(pb.DescribeModelRequest(model="3").SerializeToString(), serving, DECODER, call())


def test_many_rows_are_scored_in_parts(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are in one; in between the call lets others pass, if there are others."""
    asked = pb.ScoreTweetsRequest(viewer_id=5, candidates=request().candidates, raw=True).SerializeToString()
    whole = pb.ScoreTweetsResponse.FromString(pipeline.score_tweets(asked, serving, DECODER, call()).body)
    pauses: list[Turn] = []
    monkeypatch.setattr(Turn, "pause", lambda turn: pauses.append(turn))
    monkeypatch.setattr(pipeline, "PART_ROWS_MAX", 3)
    busy = call()._replace(admission=Admission(100, lambda: 1_030_000))
    for _ in range(10):
        busy.admission.admit(VERSION, 1, math.inf, full_only=False, on_end=busy.on_end)

    pipeline.score_tweets(asked, serving, DECODER, call())
    assert not pauses
    parts = pb.ScoreTweetsResponse.FromString(pipeline.score_tweets(asked, serving, DECODER, busy).body)

    assert len(pauses) == 1
    assert list(parts.scores) == list(whole.scores)
    assert list(parts.probabilities) == list(whole.probabilities)
    assert list(parts.raw_probabilities) == list(whole.raw_probabilities)


def test_what_nobody_waits_for_is_not_scored(serving: Serving) -> None:
    """At its deadline a call is refused, whatever it wants; all or nothing, as long as the Tweets would not make it."""
    full = request()
    full.require_full_ranking = True
    scores = pb.ScoreTweetsRequest(viewer_id=5, candidates=request().candidates).SerializeToString()

    with pytest.raises(DeadlinePassed, match="passed"):
        rank(request(), serving, 1_030_000)
    with pytest.raises(DeadlinePassed, match="too short to score 4 Tweets"):
        rank(full, serving, 2_033_999)
    with pytest.raises(DeadlinePassed, match="too short to score 4 Tweets"):
        pipeline.score_tweets(scores, serving, DECODER, call(2_033_999))
    assert rank(full, serving, 2_034_001)[1].degradation == pb.DEGRADATION_NONE
    assert pipeline.score_tweets(scores, serving, DECODER, call(2_034_001)).rows == 4


def many(count: int) -> pb.RankTimelineRequest:
    """Tweets 1, 2, ... of which the second half is older than the first; likes grow with the id."""
    half = count // 2
    created_at_ms = [1_000 + (i if i >= half else 10_000 - i) for i in range(count)]
    return pb.RankTimelineRequest(
        viewer_id=5,
        last_visit_ms=NOW_MS - 24 * HOUR_MS,
        explain=True,
        candidates=toy.candidates(list(range(count)), created_at_ms=created_at_ms),
    )


def test_the_newest_are_scored_where_there_is_no_time_for_all(serving: Serving) -> None:
    """120 of 200 Tweets fit: the newest are 1 to 100 and then 200 to 181; the best of those are 200 and 199, 198."""
    answer, response = rank(many(200), serving, 1_030_000 + 1_120_001)

    assert response.degradation == pb.DEGRADATION_PARTIAL
    assert response.icymi_decision == pb.ICYMI_DECISION_DEGRADED
    assert not response.icymi.tweet_ids
    assert list(response.ranked.tweet_ids) == [200, 199]
    assert list(response.remainder.tweet_ids) == [*range(1, 101), *range(198, 100, -1)]
    scored = [id_ <= 100 or id_ > 180 for id_ in response.remainder.tweet_ids]
    np.testing.assert_array_equal(~np.isnan(response.remainder.scores), scored)
    np.testing.assert_array_equal(~np.isnan(response.remainder.probabilities), np.repeat(scored, 3))
    # Author's strength 1: 0.2 for like and 0.02 for reply; 0.001 x (likes + 1); half of it all.
    np.testing.assert_allclose(response.ranked.scores, [0.5 * (0.4 + 0.04), 0.5 * (0.399 + 0.04)], rtol=1e-5)
    np.testing.assert_allclose(response.explanation.raw_probabilities, [0.4, 0.02, 0, 0.399, 0.02, 0], rtol=1e-5)
    assert (answer.rows, answer.probabilities.shape) == (200, (120, 3))
    assert not np.isnan(answer.probabilities).any()


def test_newest_first_where_there_is_no_time_for_any(serving: Serving) -> None:
    """All in the remainder, not scored; still nothing but the gates before it says why there is no ICYMI."""
    answer, response = rank(many(200), serving, 1_030_000 + 1_099_000)

    assert response.degradation == pb.DEGRADATION_REVERSE_CHRONOLOGICAL
    assert response.icymi_decision == pb.ICYMI_DECISION_DEGRADED
    assert not response.icymi.tweet_ids
    assert not response.ranked.tweet_ids
    assert list(response.remainder.tweet_ids) == [*range(1, 101), *range(200, 100, -1)]
    assert np.isnan(response.remainder.scores).all()
    assert np.isnan(response.remainder.probabilities).all()
    assert len(response.remainder.probabilities) == 600
    assert response.explanation == pb.Explanation()
    assert response.features.tweets == pb.FeatureCounts.Columns(present=1, absent=3)
    assert (answer.rows, answer.probabilities.shape) == (200, (0, 3))
    first_visit = many(200)
    first_visit.last_visit_ms = 0
    assert rank(first_visit, serving, 1_031_000)[1].icymi_decision == pb.ICYMI_DECISION_FIRST_VISIT


def test_only_whole_rankings_explore(model: Model) -> None:
    """The viewer's arm would swap a Tweet in every timeline."""
    serving = Serving({"stable": model}, Experiments((ALL_IN_ONE,), POLICY))
    answer, response = rank(many(200), serving, 1_030_000 + 1_120_001)

    assert list(response.ranked.tweet_ids) == [200]
    assert answer.ranking is not None
    assert answer.ranking.inclusion_probabilities is None
