"""What is read in known forms is what the other decoder reads, and nothing that it would refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.decode import Candidates, Decoder, Sparse, Table, parse
from service.errors import InvalidRequest
from service.fast_decode import RequestDecoder, read
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.known_forms import FORM_BYTES_MAX, FORMS_MAX, LITERAL_BYTES_MAX, Form, KnownForms, M, Unknown
from service.limits import Limits
from tests.property.requests import SPOILERS, Drawn, Spoiler, drawn_requests

LIMITS = Limits()


class Reader:
    """Known forms, and the decoder that they are learned from."""

    def __init__(self, limits: Limits) -> None:
        self._decoder = Decoder(limits)
        self._forms = KnownForms(limits)

    def candidates(self, message: pb.Candidates) -> Candidates:
        candidates = self._decoder.candidates(message)
        self._forms.learn(candidates)
        return candidates

    def known(self, kind: type[M], body: bytes) -> tuple[M, Candidates] | None:
        found = self._forms.find(kind, body)
        if found is None:
            return None
        message, layout = found
        try:
            candidates = read(body, layout)
        except Unknown:
            return None
        assert len(candidates) == layout.rows
        return message, candidates


def request(rows: int = 3, authors: int = 2, first_id: int = 1_800_000_000_000_000_000) -> pb.RankTimelineRequest:
    """A request with columns of every kind, NaN among the numbers."""
    numbers = np.linspace(-2, 2, rows * 2).astype(np.float32)
    numbers[::5] = np.nan
    return pb.RankTimelineRequest(
        request_id="r",
        viewer_id=-5,
        last_visit_ms=7,
        model="stable",
        forced_arms={"a": "b", "c": "d"},
        candidates=pb.Candidates(
            tweet_ids=range(first_id, first_id + rows),
            created_at_ms=range(1_750_000_000_000, 1_750_000_000_000 + rows),
            author_index=[i % authors for i in range(rows)],
            author_ids=range(100, 100 + authors),
            viewer=pb.FeatureTable(columns=["age"], values=[1.5]),
            authors=pb.FeatureTable(),
            tweets=pb.FeatureTable(
                columns=["likes", "länge"],
                values=numbers.tolist(),
                categorical=[
                    pb.CategoricalColumn(name="c", vocabulary=["x", "y"], indices=[i % 3 for i in range(rows)])
                ],
                vectors=[pb.VectorColumn(name="v", width=2, values=[0.5] * rows * 2)],
            ),
        ),
    )


def plain(value: Any) -> Any:
    """Arrays as lists that can be compared, NaN like any other value."""
    if isinstance(value, np.ndarray):
        return value.shape, [str(x) for x in value.ravel().tolist()]
    if isinstance(value, Table):
        return (
            value.rows,
            value.header,
            plain(value.values),
            [plain(c) for c in value.categorical],
            plain(value.vectors),
        )
    if isinstance(value, tuple):
        return [plain(part) for part in value]
    return value


def all_of(candidates: Candidates) -> list[Any]:
    c = candidates
    return [plain(x) for x in (c.tweet_ids, c.created_at_ms, c.author_index, c.viewer, c.authors, c.tweets)]


def assert_same(decoder: Reader, body: bytes) -> bool:
    """Whether the body is in a known form; if so, the slow decoder makes the same of it."""
    known = decoder.known(pb.RankTimelineRequest, body)
    if known is None:
        return False
    slow = parse(pb.RankTimelineRequest, body)
    assert all_of(known[1]) == all_of(Decoder(LIMITS).candidates(slow.candidates))
    for ids in (known[1].tweet_ids, known[1].created_at_ms, known[1].author_index):
        assert ids.dtype == np.int64
    slow.ClearField("candidates")
    assert known[0] == slow
    return True


def test_a_form_is_known_once_it_was_seen() -> None:
    """Other ids, other numbers, another number of Tweets and authors: the same form, so the fast way."""
    decoder = Reader(LIMITS)
    assert decoder.known(pb.RankTimelineRequest, request().SerializeToString()) is None
    decoder.candidates(request().candidates)

    for other in (request(), request(500, 100), request(1, 1), request(300, 200), request(2, 2, first_id=127)):
        assert assert_same(decoder, other.SerializeToString())


def test_a_request_for_scores_too() -> None:
    """Its candidates have another number."""
    decoder = Reader(LIMITS)
    decoder.candidates(request().candidates)
    asked = pb.ScoreTweetsRequest(viewer_id=1, candidates=request().candidates, raw=True)

    known = decoder.known(pb.ScoreTweetsRequest, asked.SerializeToString())

    assert known is not None
    assert known[0] == pb.ScoreTweetsRequest(viewer_id=1, raw=True)
    assert len(known[1]) == 3


def test_ids_as_they_came_on_the_wire() -> None:
    """Of one width they are kept for the answer; of several they are not."""
    decoder = Reader(LIMITS)
    decoder.candidates(request().candidates)
    known = decoder.known(pb.RankTimelineRequest, request(first_id=300).SerializeToString())
    mixed = decoder.known(pb.RankTimelineRequest, request(first_id=127).SerializeToString())

    assert known is not None
    assert known[1].tweet_id_varints is not None
    assert known[1].tweet_id_varints.tolist() == [[0xAC, 2], [0xAD, 2], [0xAE, 2]]  # 300 = 0b10_0101100
    assert mixed is not None
    assert mixed[1].tweet_id_varints is None


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.candidates.tweets.columns.__setitem__(0, "loves"),
        lambda r: r.candidates.tweets.columns.append("more"),
        lambda r: r.candidates.tweets.categorical[0].vocabulary.append("z"),
        lambda r: r.candidates.tweets.categorical[0].indices.__setitem__(0, 3),
        lambda r: r.candidates.tweets.categorical.add(name="d"),
        lambda r: r.candidates.tweets.vectors.add(name="w", width=1),
        lambda r: r.candidates.tweets.values.__setitem__(1, float("inf")),
        lambda r: r.candidates.tweets.vectors[0].values.__setitem__(1, float("nan")),
        lambda r: r.candidates.tweets.sparse_row_lengths.append(1),
        lambda r: r.candidates.tweet_ids.__setitem__(0, r.candidates.tweet_ids[1]),
        lambda r: r.candidates.author_ids.__setitem__(0, r.candidates.author_ids[1]),
        lambda r: r.candidates.author_index.__setitem__(0, 2),
        lambda r: r.candidates.created_at_ms.append(1),
        lambda r: r.candidates.ClearField("created_at_ms"),
        lambda r: r.candidates.ClearField("author_index"),
        lambda r: r.candidates.ClearField("author_ids"),
        lambda r: r.candidates.ClearField("tweet_ids"),
        lambda r: r.ClearField("candidates"),
    ],
)
def test_what_is_new_or_wrong_is_left_to_the_other_decoder(change: Any) -> None:
    """Which knows what to make of it, or what to say."""
    decoder = Reader(LIMITS)
    decoder.candidates(request().candidates)
    changed = request()
    change(changed)

    assert decoder.known(pb.RankTimelineRequest, changed.SerializeToString()) is None


def test_too_much_is_left_to_the_other_decoder() -> None:
    """Which knows the limits by name."""
    decoder = Reader(Limits(rows_max=4, authors_max=4))
    decoder.candidates(request().candidates)

    assert decoder.known(pb.RankTimelineRequest, request(4, 4).SerializeToString()) is not None
    assert decoder.known(pb.RankTimelineRequest, request(5, 4).SerializeToString()) is None
    assert decoder.known(pb.RankTimelineRequest, request(4, 5).SerializeToString()) is None


def test_bytes_without_end_are_not_walked() -> None:
    """Numbers that never end and fields by the million: the other decoder refuses them sooner than they are read."""
    decoder = Reader(LIMITS)
    decoder.candidates(request().candidates)
    endless = bytes([0x80]) * 3_000_000
    ids = pb.Candidates(tweet_ids=[1]).SerializeToString()[:1] + b"\xc0\x8d\xb7\x01" + endless
    for body in (
        b"\x10" + endless,  # a number
        b"\x2a" + endless,  # a length
        b"\x2a" + b"\xc5\x8d\xb7\x01" + ids,  # an id
        b"\x30\x01" * 1_500_000 + request().SerializeToString(),
    ):
        assert decoder.known(pb.RankTimelineRequest, body) is None
    assert not assert_same(decoder, b"\x10" + bytes([0x80]) * 10 + b"\x01" + request().SerializeToString())


def test_a_request_is_opened_before_its_numbers_are_read() -> None:
    """In a form that is new and in one that is known: who asks and how many there are, then the candidates."""
    decoder = RequestDecoder(LIMITS)
    for _ in range(2):
        opened = decoder.open(pb.RankTimelineRequest, request(300, 20).SerializeToString())
        assert (opened.message.request_id, opened.message.viewer_id, opened.rows) == ("r", -5, 300)
        assert opened.candidates().tweet_ids.tolist() == list(request(300, 20).candidates.tweet_ids)


def test_wrong_numbers_are_found_when_they_are_read() -> None:
    """Not before: a call that is turned away costs no look at them. The error is that of the other decoder."""
    decoder = RequestDecoder(LIMITS)
    decoder.open(pb.RankTimelineRequest, request().SerializeToString()).candidates()
    wrong = request()
    wrong.candidates.tweets.values[1] = float("inf")

    opened = decoder.open(pb.RankTimelineRequest, wrong.SerializeToString())

    assert opened.rows == 3
    with pytest.raises(InvalidRequest, match=r"candidates.tweets.values: an infinity"):
        opened.candidates()


def test_too_many_rows_are_refused_unread() -> None:
    """Whether the form is known or not: no gate has room for them."""
    decoder = RequestDecoder(Limits(rows_max=4))
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"candidates.tweet_ids: 5 Tweets, more than 4"):
            decoder.open(pb.RankTimelineRequest, request(5).SerializeToString())
        decoder.open(pb.RankTimelineRequest, request(4).SerializeToString()).candidates()


@pytest.mark.parametrize("categories", [127, 128, 300])
def test_vocabularies_of_any_size(categories: int) -> None:
    """Up to 127 categories an index is always a byte, absent included; with more it may be two."""
    decoder = Reader(LIMITS)
    for rows in (1, 2, 40):
        asked = request(rows)
        column = asked.candidates.tweets.categorical[0]
        del column.vocabulary[:], column.indices[:]
        column.vocabulary.extend(f"category {i}" for i in range(categories))
        column.indices.extend(max(0, categories - i) for i in range(rows))
        decoder.candidates(asked.candidates)
        assert assert_same(decoder, asked.SerializeToString())


def test_forms_are_forgotten() -> None:
    """A caller who makes up columns costs no more memory than FORMS_MAX of them; the one that still calls is known."""
    decoder = Reader(LIMITS)
    decoder.candidates(request().candidates)
    assert decoder.known(pb.RankTimelineRequest, request().SerializeToString()) is not None
    for i in range(FORMS_MAX):
        made_up = request()
        made_up.candidates.tweets.columns[0] = str(i)
        decoder.candidates(made_up.candidates)
    assert decoder.known(pb.RankTimelineRequest, made_up.SerializeToString()) is not None
    assert decoder.known(pb.RankTimelineRequest, request().SerializeToString()) is None


@settings(max_examples=150)
@given(drawn_requests(), st.data())
def test_any_request_is_read_alike(drawn: Drawn, data: st.DataObject) -> None:
    """Any legal request, as it is, cut, with bytes changed, put in or taken out."""
    decoder = Reader(LIMITS)
    candidates = decoder.candidates(drawn.request.candidates)
    body = drawn.request.SerializeToString()
    tables = (candidates.viewer, candidates.authors, candidates.tweets)
    dense = not any(isinstance(table.values, Sparse) for table in tables)  # of one that is not, nothing is learned
    if dense and drawn.request.HasField("candidates"):
        assert assert_same(decoder, body)
    for _ in range(10):
        start = data.draw(st.integers(0, len(body)))
        taken = data.draw(st.integers(0, 3))
        changed = body[:start] + data.draw(st.binary(max_size=3)) + body[start + taken :]
        assert_same(decoder, changed)


@settings(max_examples=100)
@given(drawn_requests(), st.sampled_from(SPOILERS))
def test_nothing_wrong_is_taken(drawn: Drawn, spoiler: Spoiler) -> None:
    """A request that the other decoder refuses is not known, even by one that knew it before it was spoilt."""
    decoder = Reader(LIMITS)
    decoder.candidates(drawn.request.candidates)
    spoiler.spoil(drawn.request)
    try:
        decoder.candidates(drawn.request.candidates)
    except InvalidRequest:
        assert decoder.known(pb.RankTimelineRequest, drawn.request.SerializeToString()) is None


def test_a_form_does_not_remember_every_number_of_rows() -> None:
    """What it keeps for those that came lately is bounded in bytes."""
    form = Form(Reader(LIMITS).candidates(request().candidates).tweets)
    steps_max = -(-LITERAL_BYTES_MAX // max(form.size, 64))
    first = form.steps(1)
    for rows in range(2, steps_max + 1):
        form.steps(rows)
    assert form.steps(1) is first
    form.steps(steps_max + 1)

    assert form.steps(1) is not first
    assert form.steps(1) == first


def test_a_form_of_many_bytes_is_not_remembered() -> None:
    """Nor are its categories: 64 KiB and no more are kept of a table."""
    decoder = Reader(LIMITS)
    asked = request()
    column = asked.candidates.tweets.categorical[0]
    del column.vocabulary[:]
    column.vocabulary.extend(f"{i:05}{'x' * 200}" for i in range(FORM_BYTES_MAX // 200))
    decoder.candidates(asked.candidates)

    assert decoder.known(pb.RankTimelineRequest, asked.SerializeToString()) is None
