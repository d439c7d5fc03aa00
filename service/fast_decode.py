"""The same arrays as service/decode.py makes, several times as fast, from requests in a form that came before.

Who calls once calls again with the same columns, categories and widths, and protobuf's libraries write fields by their
numbers: then a request differs from the last one in lengths and numbers only. `KnownForms` remembers the bytes that
stay, compares them as a whole, and finds where the arrays must lie. Whatever it does not recognise is left to
service/decode.py: another order, a form not seen yet, anything that is to be refused. So that module remains the only
one to say what a request means or what is wrong with it; tests hold the two against each other.

A request is read in two steps. Opening it looks at its lengths only, so that a call without a chance is turned away for
little; its numbers are read when it is the call's turn.

All this runs on a processor whose caches a run of the model has just filled, and costs by the code that it touches:
hence few and plain steps, and lengths that are compared as bytes where it is known what they must be.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from service.decode import (
    Candidates,
    Categorical,
    Decoder,
    Floats,
    Ints,
    Sparse,
    Table,
    has_infinity,
    has_part,
    parse,
)
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.limits import Limits
from service.wire import field as wire_field
from service.wire import head

M = TypeVar("M", bound=Message)

FORMS_MAX = 8  # of the tables of a group: so many callers who each have their own
FORM_BYTES_MAX = 1 << 16
LITERAL_BYTES_MAX = 1 << 18  # that a form keeps for the numbers of rows that came lately
# For the varints of one width: what all but the last byte carry on top of seven bits, and what each byte counts.
_CONTINUED = [np.array([0x80] * (width - 1) + [0], np.uint8) for width in range(1, 10)]
_PLACE_VALUES = [1 << np.arange(0, 7 * width, 7) for width in range(1, 10)]
_VARINT_BYTES_MAX = 10
# What a request has beside its candidates is a handful. Bytes that spell millions of fields are not walked here.
_FIELDS_MAX = 64
_LOW = bytes(range(0x80))
_HIGH = bytes(range(0x80, 0x100))
# Wire types of protobuf, the low three bits of a tag.
_VARINT, _FIXED_64, _LENGTH, _FIXED_32 = 0, 1, 2, 5
_VALUES, _CATEGORICAL, _VECTORS = 2, 6, 7  # fields of a table
_INDICES_IN_COLUMN, _VALUES_IN_VECTOR = 3, 3


class Unknown(Exception):  # noqa: N818 - not an error: the other decoder will see to it
    """The bytes are not as expected."""


class _Integers(NamedTuple):
    """A packed field of integers.

    Attributes:
        message: Whose field it is.
        name: What it is called there.
        tag: How it begins on the wire.
        width_max: The longest varints that have no bits that count for nothing.
    """

    message: type[Message]
    name: str
    tag: int
    width_max: int


_TWEET_IDS = _Integers(pb.Candidates, "tweet_ids", 0x0A, 9)
_CREATED_AT_MS = _Integers(pb.Candidates, "created_at_ms", 0x12, 9)
_AUTHOR_INDEX = _Integers(pb.Candidates, "author_index", 0x1A, 4)
_AUTHOR_IDS = _Integers(pb.Candidates, "author_ids", 0x22, 9)
_TABLE_TAGS = (0x2A, 0x32, 0x3A)  # viewer, authors, tweets
_INDICES = _Integers(pb.CategoricalColumn, "indices", 0x1A, 4)

Span = tuple[int, int]  # of bytes of the body: from where to where


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

    def _read(self, kind: type[M], body: bytes, layout: _Layout) -> Candidates:
        try:
            return read(body, layout)
        except Unknown:
            return self._learn(parse(kind, body).candidates)  # type: ignore[attr-defined]

    def _learn(self, message: pb.Candidates) -> Candidates:
        candidates = self._decoder.candidates(message)
        self._forms.learn(candidates)
        return candidates


class _Form:
    """A table but for its numbers, as protobuf writes it.

    Attributes:
        header: Its columns.
        columns: The bytes that name its scalar columns.
        size: Bytes that spell it.
        vocabularies: Of its categorical columns.
    """

    def __init__(self, table: Table) -> None:
        self.header = table.header
        self.vocabularies = tuple(c.vocabulary for c in table.categorical)
        self.columns = pb.FeatureTable(columns=table.header.columns).SerializeToString()
        self._categorical = [
            pb.CategoricalColumn(name=name, vocabulary=vocabulary).SerializeToString()
            for name, vocabulary in zip(table.header.categorical, self.vocabularies, strict=True)
        ]
        self._vectors = [
            pb.VectorColumn(name=name, width=width).SerializeToString() for name, width in table.header.vectors
        ]
        self.size = sum(map(len, (self.columns, *self._categorical, *self._vectors)))
        # Rows -> steps. Replaced when full; looking up and adding are single steps under the GIL.
        self._steps: dict[int, tuple[tuple[bytes, int], ...]] = {}

    def steps(self, rows: int) -> tuple[tuple[bytes, int], ...]:
        """What follows the names in a table of so many rows: literal bytes, and how many bytes of numbers then.

        -1: as many as the lengths say; the literal stands between the length of the column and that of the numbers.
        """
        steps = self._steps.get(rows)
        if steps is None:
            steps = self._make_steps(rows)
            if len(self._steps) * max(self.size, 64) >= LITERAL_BYTES_MAX:
                self._steps = {}
            self._steps[rows] = steps
        return steps

    def _make_steps(self, rows: int) -> tuple[tuple[bytes, int], ...]:
        size = rows * len(self.header.columns) * 4
        steps = [(_head(_VALUES, size), size)]
        for prefix, vocabulary in zip(self._categorical, self.vocabularies, strict=True):
            # Every index is a byte, unless there are many.
            fits = len(vocabulary) < len(_LOW)
            steps.append(_nested(_CATEGORICAL, prefix, _INDICES_IN_COLUMN, rows) if fits else (prefix, -1))
        for prefix, (_, width) in zip(self._vectors, self.header.vectors, strict=True):
            steps.append(_nested(_VECTORS, prefix, _VALUES_IN_VECTOR, rows * width * 4))
        return tuple(steps)


class _Layout(NamedTuple):
    """Where the numbers of a request's candidates lie.

    Attributes:
        rows: Number of Tweets.
        authors: Number of authors.
        tweet_ids: Their bytes, like those of the next three.
        tables: For viewer, authors and Tweets the form, and the bytes of values, indices and vectors in its order.
    """

    rows: int
    authors: int
    tweet_ids: Span
    created_at_ms: Span
    author_index: Span
    author_ids: Span
    tables: list[tuple[_Form, list[Span]]]


class KnownForms:
    """The forms of tables that came lately."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # Of viewer, authors and Tweets. Replaced as a whole under the lock, read without.
        self._forms: tuple[tuple[_Form, ...], ...] = ((), (), ())
        self._lock = threading.Lock()

    def learn(self, candidates: Candidates) -> None:
        """Remembers the forms of a good request's tables, the latest first; a sparse one is never read here."""
        tables = (candidates.viewer, candidates.authors, candidates.tweets)
        if any(isinstance(table.values, Sparse) for table in tables):
            return
        made = [_Form(table) for table in tables]
        if any(form.size > FORM_BYTES_MAX for form in made):
            return
        with self._lock:
            self._forms = tuple(
                (form, *(known for known in before if known.header != form.header))[:FORMS_MAX]
                for form, before in zip(made, self._forms, strict=True)
            )

    def find(self, kind: type[M], body: bytes) -> tuple[M, _Layout] | None:
        """The message of a request but for its candidates, and where these lie; None: out of the ordinary."""
        try:
            before, begin, end = _find_candidates(body, kind.DESCRIPTOR.fields_by_name["candidates"].number)
            layout = self._layout(body, begin, end)
            return kind.FromString(body[:before] + body[end:]), layout
        except (Unknown, IndexError, DecodeError):  # IndexError: a number that the end of the body cuts off
            return None

    def _layout(self, body: bytes, pos: int, end: int) -> _Layout:
        spans = []
        for field in (_TWEET_IDS, _CREATED_AT_MS, _AUTHOR_INDEX, _AUTHOR_IDS):
            begin = pos
            if pos < end and body[pos] == field.tag:  # protobuf writes no empty one
                length, begin = _length(body, pos + 1)
                pos = begin + length
            spans.append((begin, pos))
        # As many numbers as bytes that end one.
        tweet_ids, created_at_ms, author_index, author_ids = spans
        rows = len(body[slice(*tweet_ids)].translate(None, _HIGH))
        authors = len(body[slice(*author_ids)].translate(None, _HIGH))
        if rows > self._limits.rows_max or authors > self._limits.authors_max:
            raise Unknown
        tables = []
        for tag, forms, table_rows in zip(_TABLE_TAGS, self._forms, (1, authors, rows), strict=True):
            begin = pos
            if pos < end and body[pos] == tag:
                length, begin = _length(body, pos + 1)
                pos = begin + length
            tables.append(_find_table(body, begin, pos, table_rows, forms))
        if pos != end:
            raise Unknown
        return _Layout(rows, authors, tweet_ids, created_at_ms, author_index, author_ids, tables)


def _find_table(body: bytes, begin: int, end: int, rows: int, forms: tuple[_Form, ...]) -> tuple[_Form, list[Span]]:
    """The form of a table, and where its numbers lie."""
    for form in forms:
        if body.startswith(form.columns, begin):
            spans = _find_spans(body, begin + len(form.columns), end, form.steps(rows))
            if spans is not None:
                return form, spans
    raise Unknown


def _find_spans(body: bytes, pos: int, end: int, steps: tuple[tuple[bytes, int], ...]) -> list[Span] | None:
    """Where the numbers of a table lie; None: it has another form."""
    spans = []
    for literal, size in steps:
        if size < 0:
            found = _find_indices(body, pos, literal)
            if found is None:
                return None
            pos, size = found
        elif body.startswith(literal, pos):
            pos += len(literal)
        else:
            return None
        spans.append((pos, pos + size))
        pos += size
    return spans if pos == end else None  # otherwise there are more columns, or fields that only sparse tables have


def _find_indices(body: bytes, pos: int, prefix: bytes) -> Span | None:
    """Where the indices of a categorical column begin, and how many bytes they take; None: it is another column."""
    if body[pos] != _CATEGORICAL << 3 | _LENGTH:
        return None
    length, begin = _length(body, pos + 1)
    end = begin + length
    if not body.startswith(prefix, begin):
        return None
    begin += len(prefix)
    if begin == end:
        return begin, 0
    if body[begin] != _INDICES.tag:
        return None
    length, begin = _length(body, begin + 1)
    return (begin, length) if begin + length == end else None


def _find_candidates(body: bytes, number: int) -> tuple[int, int, int]:
    """Where the only field of this number stands: its tag, its content, and what follows it."""
    wanted = number << 3 | _LENGTH
    found = None
    pos, end, fields = 0, len(body), 0
    while pos < end:
        fields += 1
        if fields > _FIELDS_MAX:
            raise Unknown
        tag, before = body[pos], pos
        pos += 1
        kind = tag & 7
        if tag >= 0x80:
            raise Unknown
        if kind == _LENGTH:
            length, begin = _length(body, pos)
            pos = begin + length
            if tag == wanted:
                if found:
                    raise Unknown
                found = before, begin, pos
        elif kind == _VARINT:
            while body[pos] > 0x7F:
                pos += 1
            pos += 1
            if pos - before > 1 + _VARINT_BYTES_MAX:
                raise Unknown
        elif kind in (_FIXED_32, _FIXED_64):
            pos += 4 if kind == _FIXED_32 else 8
        else:
            raise Unknown
    if found is None or pos != end:
        raise Unknown
    return found


def _length(body: bytes, pos: int) -> Span:
    """The length that is written at `pos`, and where it ends; longer ones may be more than protobuf reads."""
    a = body[pos]
    if a < 0x80:
        return a, pos + 1
    b = body[pos + 1]
    if b < 0x80:
        return a - 0x80 | b << 7, pos + 2
    c = body[pos + 2]
    if c < 0x80:
        return a - 0x80 | (b - 0x80) << 7 | c << 14, pos + 3
    d = body[pos + 3]
    if d < 0x80:
        return a - 0x80 | (b - 0x80) << 7 | (c - 0x80) << 14 | d << 21, pos + 4
    raise Unknown


def _head(number: int, size: int) -> bytes:
    """How a field of `size` bytes begins; protobuf writes no empty one."""
    return head(number, size) if size else b""


def _nested(number: int, prefix: bytes, inner: int, size: int) -> tuple[bytes, int]:
    """How a field begins that ends in a field of `size` bytes, and that size."""
    content = prefix + _head(inner, size)
    return head(number, len(content) + size) + content, size


def read(body: bytes, layout: _Layout) -> Candidates:
    """The candidates that lie like this; raises Unknown where the other decoder is to see to them."""
    rows, authors = layout.rows, layout.authors
    tweet_ids, varints = _ids(body, layout.tweet_ids, rows, _TWEET_IDS)
    created_at_ms, _ = _ids(body, layout.created_at_ms, rows, _CREATED_AT_MS)
    author_ids, _ = _ids(body, layout.author_ids, authors, _AUTHOR_IDS)
    author_index = _indices(body, layout.author_index, rows, authors, _AUTHOR_INDEX).astype(np.int64)
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


def _table(body: bytes, rows: int, form: _Form, spans: list[Span]) -> Table:
    header = form.header
    values = _floats(body, spans[0], rows, len(header.columns))
    columns = 1 + len(form.vocabularies)
    categorical = tuple(
        [
            Categorical(vocabulary, _indices(body, span, rows, len(vocabulary) + 1, _INDICES))
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


def _ids(body: bytes, span: Span, count: int, field: _Integers) -> tuple[Ints, NDArray[np.uint8] | None]:
    """int64 [count]; where all have the same width, their varints too, uint8 [count, width]."""
    begin, end = span
    if count:
        width, rest = divmod(end - begin, count)
        if not rest and width <= field.width_max:
            varints = np.frombuffer(body, np.uint8, end - begin, begin).reshape(count, width)
            digits = varints ^ _CONTINUED[width - 1]
            if digits.tobytes().isascii():
                return digits @ _PLACE_VALUES[width - 1], varints
    ids = _parsed(body, span, field)
    if len(ids) != count:
        raise Unknown
    return ids, None


def _indices(body: bytes, span: Span, rows: int, size: int, field: _Integers) -> NDArray[np.integer[Any]]:
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


def _parsed(body: bytes, span: Span, field: _Integers) -> Ints:
    """A packed field by protobuf's own parser; raises Unknown."""
    try:
        message = field.message.FromString(wire_field(field.tag >> 3, body[slice(*span)]))
    except DecodeError:
        raise Unknown from None
    return np.asarray(getattr(message, field.name), dtype=np.int64)


def _distinct(ids: Ints) -> bool:
    ordered = np.sort(ids)
    return not np.count_nonzero(ordered[1:] == ordered[:-1])
