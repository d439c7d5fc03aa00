"""The same arrays as service/decode.py makes, several times as fast, from requests in a form that came before.

A request is read in two steps. Opening it looks at its lengths only, so that a call without a chance is turned away for
little; its numbers are read when it is the call's turn. service/known_forms.py finds out where they lie. What is not as
expected, there or here, is left to service/decode.py: another order, a form not seen yet, anything that is to be
refused. So that module remains the only one to say what a request means or what is wrong with it; tests hold the two
against each other.

All this runs on a processor whose caches a run of the model has just filled, and costs by the code that it touches:
hence few and plain steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from service.decode import Candidates, Categorical, Decoder, Floats, Ints, Table, has_infinity, has_part, parse
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.known_forms import (
    AUTHOR_IDS,
    AUTHOR_INDEX,
    CREATED_AT_MS,
    INDICES,
    TWEET_IDS,
    Form,
    Integers,
    KnownForms,
    Layout,
    M,
    Span,
    Unknown,
)
from service.limits import Limits
from service.wire import field as wire_field

# For the varints of one width: what all but the last byte carry on top of seven bits, and what each byte counts.
_CONTINUED = [np.array([0x80] * (width - 1) + [0], np.uint8) for width in range(1, 10)]
_PLACE_VALUES = [1 << np.arange(0, 7 * width, 7) for width in range(1, 10)]
_LOW = bytes(range(0x80))


class Opened(NamedTuple, Generic[M]):
    """A request whose numbers are not read yet.

    Attributes:
        message: All of it but, perhaps, its candidates.
        rows: Number of candidates.
        candidates: Reads them; raises InvalidRequest.
    """

    message: M
    rows: int
    candidates: Callable[[], Candidates]


class RequestDecoder:
    """From the bytes of a request to its message and its candidates. May be shared by threads.

    Attributes:
        limits: What a request may ask for.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._decoder = Decoder(limits)
        self._forms = KnownForms(limits)

    def open(self, kind: type[M], body: bytes) -> Opened[M]:
        """Opens a RankTimelineRequest or ScoreTweetsRequest; raises InvalidRequest where it is none, or too large."""
        found = self._forms.find(kind, body)
        if found is not None:
            message, layout = found
            return Opened(message, layout.rows, functools.partial(self._read, kind, body, layout))
        message = parse(kind, body)
        candidates: pb.Candidates = message.candidates  # type: ignore[attr-defined]  # both kinds have it
        rows = len(candidates.tweet_ids)
        if rows > self.limits.rows_max:
            self._learn(candidates)  # says what is wrong
        return Opened(message, rows, functools.partial(self._learn, candidates))

    def _read(self, kind: type[M], body: bytes, layout: Layout) -> Candidates:
        try:
            return read(body, layout)
        except Unknown:
            return self._learn(parse(kind, body).candidates)  # type: ignore[attr-defined]

    def _learn(self, message: pb.Candidates) -> Candidates:
        candidates = self._decoder.candidates(message)
        self._forms.learn(candidates)
        return candidates


def read(body: bytes, layout: Layout) -> Candidates:
    """The candidates that lie like this; raises Unknown where the other decoder is to see to them."""
    rows, authors = layout.rows, layout.authors
    tweet_ids, varints = _ids(body, layout.tweet_ids, rows, TWEET_IDS)
    created_at_ms, _ = _ids(body, layout.created_at_ms, rows, CREATED_AT_MS)
    author_ids, _ = _ids(body, layout.author_ids, authors, AUTHOR_IDS)
    author_index = _indices(body, layout.author_index, rows, authors, AUTHOR_INDEX).astype(np.int64)
    if not (_distinct(tweet_ids) and _distinct(author_ids)):
        raise Unknown
    viewer, of_authors, tweets = layout.tables
    return Candidates(
        tweet_ids,
        created_at_ms,
        author_index,
        _table(body, 1, *viewer),
        _table(body, authors, *of_authors),
        _table(body, rows, *tweets),
        varints,
    )


def _table(body: bytes, rows: int, form: Form, spans: list[Span]) -> Table:
    header = form.header
    values = _floats(body, spans[0], rows, len(header.columns))
    columns = 1 + len(form.vocabularies)
    categorical = tuple(
        [
            Categorical(vocabulary, _indices(body, span, rows, len(vocabulary) + 1, INDICES))
            for vocabulary, span in zip(form.vocabularies, spans[1:columns], strict=True)
        ]
    )
    vectors = []
    for (_, width), span in zip(header.vectors, spans[columns:], strict=True):
        vector = _floats(body, span, rows, width)
        if has_part(vector):
            raise Unknown
        vectors.append(vector)
    return Table(rows, header, values, categorical, tuple(vectors))


def _floats(body: bytes, span: Span, rows: int, columns: int) -> Floats:
    """float32 [rows, columns] without an infinity."""
    begin, end = span
    # Cut out, for the body's floats need not lie where a processor likes them.
    values = np.frombuffer(body[begin:end], "<f4").reshape(rows, columns)
    if has_infinity(values):
        raise Unknown
    return values


def _ids(body: bytes, span: Span, count: int, field: Integers) -> tuple[Ints, NDArray[np.uint8] | None]:
    """int64 [count]; where all have the same width, their varints too, uint8 [count, width]."""
    begin, end = span
    if count:
        width, rest = divmod(end - begin, count)
        if not rest and 0 < width <= field.width_max:
            varints = np.frombuffer(body, np.uint8, end - begin, begin).reshape(count, width)
            digits = varints ^ _CONTINUED[width - 1]
            if digits.tobytes().isascii():
                return digits @ _PLACE_VALUES[width - 1], varints
    ids = _parsed(body, span, field)
    if len(ids) != count:
        raise Unknown
    return ids, None


def _indices(body: bytes, span: Span, rows: int, size: int, field: Integers) -> NDArray[np.integer[Any]]:
    """[rows] numbers below `size`."""
    begin, end = span
    if end - begin == rows:  # a byte each
        content = body[begin:end]
        if content.translate(None, _LOW[:size]):  # what is left is out of range
            raise Unknown
        return np.frombuffer(content, np.uint8)
    indices = _parsed(body, span, field)
    if len(indices) != rows or indices.max() >= size:
        raise Unknown
    return indices


def _parsed(body: bytes, span: Span, field: Integers) -> Ints:
    """A packed field by protobuf's own parser; raises Unknown."""
    try:
        message = field.message.FromString(wire_field(field.tag >> 3, body[slice(*span)]))
    except DecodeError:
        raise Unknown from None
    return np.asarray(getattr(message, field.name), dtype=np.int64)


def _distinct(ids: Ints) -> bool:
    ordered = np.sort(ids)
    return not np.count_nonzero(ordered[1:] == ordered[:-1])
