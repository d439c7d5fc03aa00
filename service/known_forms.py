"""Where the numbers of a request lie in its bytes, for requests in a form that came before.

Who calls once calls again with the same columns, categories and widths, and protobuf's libraries write fields by their
numbers: then a request differs from the last one in lengths and numbers only. `KnownForms` remembers the bytes that
stay, compares them as a whole, and finds where the arrays must lie; lengths are compared as bytes where it is known
what they must be. service/fast_decode.py reads the arrays.
"""

from __future__ import annotations

import threading
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from service.decode import Candidates, Sparse, Table
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.limits import Limits
from service.wire import head

M = TypeVar("M", bound=Message)

FORMS_MAX = 8  # of the tables of a group: so many callers who each have their own
FORM_BYTES_MAX = 1 << 16
LITERAL_BYTES_MAX = 1 << 18  # that a form keeps for the numbers of rows that came lately
_VARINT_BYTES_MAX = 10
# What a request has beside its candidates is a handful. Bytes that spell millions of fields are not walked here.
_FIELDS_MAX = 64
_HIGH = bytes(range(0x80, 0x100))
# Wire types of protobuf, the low three bits of a tag.
_VARINT, _FIXED_64, _LENGTH, _FIXED_32 = 0, 1, 2, 5
_VALUES, _CATEGORICAL, _VECTORS = 2, 6, 7  # fields of a table
_INDICES_IN_COLUMN, _VALUES_IN_VECTOR = 3, 3


class Unknown(Exception):  # noqa: N818 - not an error: the other decoder will see to it
    """The bytes are not as expected."""


class Integers(NamedTuple):
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


TWEET_IDS = Integers(pb.Candidates, "tweet_ids", 0x0A, 9)
CREATED_AT_MS = Integers(pb.Candidates, "created_at_ms", 0x12, 9)
AUTHOR_INDEX = Integers(pb.Candidates, "author_index", 0x1A, 4)
AUTHOR_IDS = Integers(pb.Candidates, "author_ids", 0x22, 9)
INDICES = Integers(pb.CategoricalColumn, "indices", 0x1A, 4)
_TABLE_TAGS = (0x2A, 0x32, 0x3A)  # viewer, authors, tweets

Span = tuple[int, int]  # of bytes of the body: from where to where


class Form:
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
            # Every index, that of an absent one included, is a varint of one byte, unless there are many.
            fits = len(vocabulary) < 0x80
            steps.append(_nested(_CATEGORICAL, prefix, _INDICES_IN_COLUMN, rows) if fits else (prefix, -1))
        for prefix, (_, width) in zip(self._vectors, self.header.vectors, strict=True):
            steps.append(_nested(_VECTORS, prefix, _VALUES_IN_VECTOR, rows * width * 4))
        return tuple(steps)


class Layout(NamedTuple):
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
    tables: list[tuple[Form, list[Span]]]


class KnownForms:
    """The forms of tables that came lately."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # Of viewer, authors and Tweets. Replaced as a whole under the lock, read without.
        self._forms: tuple[tuple[Form, ...], ...] = ((), (), ())
        self._lock = threading.Lock()

    def learn(self, candidates: Candidates) -> None:
        """Remembers the forms of a good request's tables, the latest first; a sparse one is never read here."""
        tables = (candidates.viewer, candidates.authors, candidates.tweets)
        if any(isinstance(table.values, Sparse) for table in tables):
            return
        made = [Form(table) for table in tables]
        if any(form.size > FORM_BYTES_MAX for form in made):
            return
        with self._lock:
            self._forms = tuple(
                (form, *(known for known in before if known.header != form.header))[:FORMS_MAX]
                for form, before in zip(made, self._forms, strict=True)
            )

    def find(self, kind: type[M], body: bytes) -> tuple[M, Layout] | None:
        """The message of a request but for its candidates, and where these lie; None: out of the ordinary."""
        try:
            before, begin, end = _find_candidates(body, kind.DESCRIPTOR.fields_by_name["candidates"].number)
            layout = self._layout(body, begin, end)
            return kind.FromString(body[:before] + body[end:]), layout
        except (Unknown, IndexError, DecodeError):  # IndexError: a number that the end of the body cuts off
            return None

    def _layout(self, body: bytes, pos: int, end: int) -> Layout:
        spans = []
        for field in (TWEET_IDS, CREATED_AT_MS, AUTHOR_INDEX, AUTHOR_IDS):
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
        return Layout(rows, authors, tweet_ids, created_at_ms, author_index, author_ids, tables)


def _find_table(body: bytes, begin: int, end: int, rows: int, forms: tuple[Form, ...]) -> tuple[Form, list[Span]]:
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
    if body[begin] != INDICES.tag:
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
