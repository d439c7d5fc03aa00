"""The request path, from the bytes of a request to the bytes of its answer.

    1. open      the bytes: who asks for what, and how many rows there are
    2. assign    the viewer to arms of experiments -> the model and policy that answer
    3. admit     wait for a turn: all rows, the newest, none but by time; or refuse (service/admission.py)
    4. decode    protobuf -> arrays, and the checks
    5. align     the caller's columns -> the model's
    6. score     one run of the model, a few where there are many rows
    7. combine   the heads -> one relevance
    8. build     the timeline, a Tweet explored now and then
    9. encode    arrays -> protobuf

All that takes long happens in a call's turn: what is refused costs little, and nothing gets in the way of the calls
whose turn it is. The first two count as decoding.

What the stages cost for 500 Tweets by 100 authors in the default schema, in microseconds of one core, in their place:
what follows a run of the model finds the caches full of it, and costs several times as much as in a loop of its own.
The fastest tenth of calls (of encode the mean), on an Intel Xeon at 2.5 GHz; docs/decisions/0070 has what it was
before and what is left, python -m loadtest.bench measures the whole.

              budget   measured
    decode       150        350
    align         40         88
    combine       10         58
    build         50        160
    encode        70        110

Nothing here knows gRPC, looks at a clock of its own or keeps anything: what the world adds to a request comes in a
`Call`, what an operator wants to see goes out in an `Answer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from service import timeline as timeline_rules
from service.admission import Admission, Turn
from service.align import Counts, Tables
from service.decode import (
    Candidates,
    Floats,
    check_forced_arms,
    check_header,
    check_model,
    check_times,
    parse,
)
from service.encode import Contributions, describe_response, explanation_of, rank_response, score_response
from service.exploration import explore
from service.fast_decode import RequestDecoder
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.model import LoadResult, Served
from service.relevance import relevance
from service.scoring import Scores
from service.serving import Serving
from service.timeline import Rows, Timeline, newest_first

# Viewer and authors go through the model again for each part: much smaller ones would cost much more.
PART_ROWS_MAX = 850
STAGES = ("decode", "queue", "align", "score", "combine", "build", "encode")


class Call(NamedTuple):
    """What the world adds to a request.

    Attributes:
        now_ms: The server's time, Unix ms.
        clock: Nanoseconds of a clock that never goes back.
        arrived_ns: When the call arrived, by `clock`.
        deadline_ns: When the caller stops waiting, by `clock`.
        admission: Gives it its turn; goes by the same clock.
        on_end: Takes what to call when the call ends early; False: it has ended.
        make_id: Makes an id for a request that has none.
        loads: Version -> what became of the latest try to load it.
    """

    now_ms: int
    clock: Callable[[], int]
    arrived_ns: int
    deadline_ns: float
    admission: Admission
    on_end: Callable[[Callable[[], None]], bool]
    make_id: Callable[[], str]
    loads: Mapping[str, LoadResult] = MappingProxyType({})


class Ranking(NamedTuple):
    """How one timeline came to be.

    Attributes:
        viewer_id: Whose it is.
        request_id: The request's, or the one made up.
        served_at_ms: The server's time when the request came, Unix ms.
        arms: Experiment -> arm.
        timeline: As served.
        inclusion_probabilities: float32 [N], see `explore`; None: nothing was explored.
    """

    viewer_id: int
    request_id: str
    served_at_ms: int
    arms: Mapping[str, str]
    timeline: Timeline
    inclusion_probabilities: Floats | None


class Answer(NamedTuple):
    """A response, and what metrics and served log want to know about it.

    Attributes:
        body: The serialised response.
        stages_ns: Nanoseconds by stage.
        heads: Names of the heads.
        rows: Number of candidates.
        probabilities: float32 [scored candidates, heads], calibrated.
        counts: How the request's columns fared.
        ranking: None where no timeline was asked for.
    """

    body: bytes
    stages_ns: dict[str, int]
    heads: tuple[str, ...]
    rows: int
    probabilities: Floats
    counts: Counts
    ranking: Ranking | None


class _Stopwatch:
    """Splits the time since a call's arrival into stages."""

    def __init__(self, call: Call) -> None:
        self._clock = call.clock
        self._last_ns = call.arrived_ns
        self.stages_ns: dict[str, int] = {}
        self.lap("queue")

    def lap(self, stage: str) -> None:
        """Counts the time since the last lap as `stage`."""
        now_ns = self._clock()
        self.stages_ns[stage] = self.stages_ns.get(stage, 0) + now_ns - self._last_ns
        self._last_ns = now_ns


def rank_timeline(body: bytes, serving: Serving, decoder: RequestDecoder, call: Call) -> Answer:
    """Answers a RankTimelineRequest.

    Raises:
        InvalidRequest, UnknownModel, DeadlinePassed, Overloaded, Cancelled: See service/errors.py.
    """
    watch = _Stopwatch(call)
    request, rows, read = decoder.open(pb.RankTimelineRequest, body)
    check_header(request, decoder.limits)
    check_times(request.last_visit_ms, request.request_time_ms or call.now_ms)
    check_forced_arms(request.forced_arms, decoder.limits)
    served = serving.assign(request.viewer_id, request.model, request.forced_arms)
    watch.lap("decode")

    with _admit(rows, served, request.require_full_ranking, call) as turn:
        watch.lap("queue")
        candidates = read()
        watch.lap("decode")
        return _rank(request, candidates, served, turn, call, watch)


def _rank(
    request: pb.RankTimelineRequest, candidates: Candidates, served: Served, turn: Turn, call: Call, watch: _Stopwatch
) -> Answer:
    tables, counts = served.model.aligner.align(candidates)
    watch.lap("align")

    scores, scored = score(tables, candidates, served, turn)
    watch.lap("score")

    weights = served.policy.signed_weights
    relevances = relevance(scores.probabilities, weights)
    raw_relevances = relevance(scores.raw, weights)
    watch.lap("combine")

    timeline = timeline_rules.build(
        candidates,
        relevances,
        raw_relevances,
        request.last_visit_ms,
        request.request_time_ms or call.now_ms,
        served.policy,
        turn.degradation,
    )
    request_id = request.request_id or call.make_id()
    inclusion_probabilities = None
    if served.exploration_epsilon and turn.degradation == pb.DEGRADATION_NONE:
        timeline, inclusion_probabilities = explore(
            timeline, candidates, raw_relevances, served.exploration_epsilon, request_id
        )
    watch.lap("build")

    explanation = None
    if request.explain:
        shown = np.concatenate((timeline.icymi, timeline.ranked))
        explanation = explanation_of(shown, scores, timeline, explain(tables, shown, relevances, served))
        watch.lap("score")
    body = rank_response(request_id, candidates, timeline, scores, counts, served, watch.stages_ns, explanation)
    watch.lap("encode")
    ranking = Ranking(request.viewer_id, request_id, call.now_ms, served.arms, timeline, inclusion_probabilities)
    heads = served.model.schema.head_names
    return Answer(body, watch.stages_ns, heads, len(candidates), scored, counts, ranking)


def score_tweets(body: bytes, serving: Serving, decoder: RequestDecoder, call: Call) -> Answer:
    """Answers a ScoreTweetsRequest; raises as `rank_timeline` does."""
    watch = _Stopwatch(call)
    request, rows, read = decoder.open(pb.ScoreTweetsRequest, body)
    check_header(request, decoder.limits)
    served = serving.assign(request.viewer_id, request.model, {})
    watch.lap("decode")

    with _admit(rows, served, full_only=True, call=call) as turn:
        watch.lap("queue")
        candidates = read()
        watch.lap("decode")
        tables, counts = served.model.aligner.align(candidates)
        watch.lap("align")

        scores = in_parts(tables, served, turn)
        watch.lap("score")

        relevances = relevance(scores.probabilities, served.policy.signed_weights)
        watch.lap("combine")

        request_id = request.request_id or call.make_id()
        answer_body = score_response(request_id, candidates, scores, relevances, request.raw, served)
        watch.lap("encode")
    heads = served.model.schema.head_names
    return Answer(answer_body, watch.stages_ns, heads, len(candidates), scores.probabilities, counts, None)


def describe_model(body: bytes, serving: Serving, decoder: RequestDecoder, call: Call) -> bytes:
    """Answers a DescribeModelRequest; raises InvalidRequest and UnknownModel."""
    request = parse(pb.DescribeModelRequest, body)
    check_model(request.model, decoder.limits)
    served = serving.untreated(request.model)
    return describe_response(served, decoder.limits, serving.models, call.loads).SerializeToString()


# By the name of the method that each answers.
METHODS: dict[str, Callable[[bytes, Serving, RequestDecoder, Call], Answer | bytes]] = {
    "RankTimeline": rank_timeline,
    "ScoreTweets": score_tweets,
    "DescribeModel": describe_model,
}


def _admit(rows: int, served: Served, full_only: bool, call: Call) -> Turn:
    return call.admission.admit(served.model.version, rows, call.deadline_ns, full_only, call.on_end)


def score(tables: Tables, candidates: Candidates, served: Served, turn: Turn) -> tuple[Scores, Floats]:
    """Scores as many of the newest candidates as it is the turn of; the others are NaN.

    Returns:
        [N, heads] scores, and the calibrated probabilities [scored candidates, heads] alone.
    """
    if turn.degradation == pb.DEGRADATION_NONE:
        scores = in_parts(tables, served, turn)
        return scores, scores.probabilities
    newest = newest_first(np.arange(len(candidates)), candidates)[: turn.rows]
    scored = in_parts(tables.take(newest), served, turn)
    shape = (len(candidates), len(served.model.schema.heads))
    scores = Scores(np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32))
    for of_all, of_newest in zip(scores, scored, strict=True):
        of_all[newest] = of_newest
    return scores, scored.probabilities


def in_parts(tables: Tables, served: Served, turn: Turn) -> Scores:
    """Scores all rows; where others call too, PART_ROWS_MAX at a time, and in between lets those pass that are due."""
    rows = len(tables.tweets)
    if rows <= PART_ROWS_MAX or turn.alone:
        return served.model.score(tables)
    parts: list[Scores] = []
    for part in np.array_split(np.arange(rows), -(-rows // PART_ROWS_MAX)):
        if parts:
            turn.pause()
        parts.append(served.model.score(tables.take(part)))
    return Scores(*map(np.concatenate, zip(*parts, strict=True)))


def explain(tables: Tables, rows: Rows, relevances: Floats, served: Served) -> Contributions:
    """What each group of features adds to the relevance of the Tweets in `rows`: scores them without that group."""
    shown = tables.take(rows)
    contributions = []
    for group in ("viewer", "authors", "tweets"):
        scores = served.model.score(shown.without(group))
        contributions.append(relevances[rows] - relevance(scores.probabilities, served.policy.signed_weights))
    return Contributions(*contributions)
