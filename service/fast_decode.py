"""The same arrays as service/decode.py makes, several times as fast, from requests in a form that came before.

Who calls once calls again with the same columns, categories and widths, and protobuf's libraries write fields by their
numbers: then a request differs from the last one in lengths and numbers only. `KnownForms` remembers the bytes that
stay, compares them as a whole, and takes the arrays from where they must lie. Whatever it does not recognise is None:
another order, a form not seen yet, anything that service/decode.py would refuse. So that module remains the only one to
say what a request means or what is wrong with it; tests hold the two against each other.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from service.decode import Candidates, Categorical, Decoder, Floats, Header, Ints, Sparse, Table, has_infinity, has_part
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.limits import Limits

M = TypeVar("M", bound=Message)

FORMS_MAX = 24  # of tables: eight callers who each have their own three
FORM_BYTES_MAX = 1 << 16
# Wire types of protobuf, the low three bits of a tag.
_VARINT, _FIXED_64, _LENGTH, _FIXED_32 = 0, 1, 2, 5
# For the varints of one width: what all but the last byte carry on top of seven bits, and what each byte counts.
_CONTINUED = [np.array([0x80] * (width - 1) + [0], np.uint8) for width in range(1, 10)]
_VARINT_BYTES_MAX = 10
# What a request has beside its candidates is a handful. Bytes that spell millions of fields are not walked here.
_FIELDS_MAX = 64
_LENGTH_BYTES_MAX = 4  # enough for any message that is taken; longer ones may be more than protobuf reads
_BYTES = bytes(range(0x80))
_PLACE_VALUES = [1 << np.arange(0, 7 * width, 7) for width in range(1, 10)]


class _Unknown(Exception):  # noqa: N818 - not an error: the other decoder will see to it
    """The bytes are not as expected."""


class _Integers(NamedTuple):
    """A packed field of integers.

    Attributes:
        message: Whose field it is.
        name: What it is called there.
        number: What it is on the wire.
        width_max: The longest varints that have no bits that count for nothing.
    """

    message: type[Message]
    name: str
    number: int
    width_max: int


_TWEET_IDS = _Integers(pb.Candidates, "tweet_ids", pb.Candidates.TWEET_IDS_FIELD_NUMBER, 9)
_CREATED_AT_MS = _Integers(pb.Candidates, "created_at_ms", pb.Candidates.CREATED_AT_MS_FIELD_NUMBER, 9)
_AUTHOR_INDEX = _Integers(pb.Candidates, "author_index", pb.Candidates.AUTHOR_INDEX_FIELD_NUMBER, 4)
_AUTHOR_IDS = _Integers(pb.Candidates, "author_ids", pb.Candidates.AUTHOR_IDS_FIELD_NUMBER, 9)
_INDICES = _Integers(pb.CategoricalColumn, "indices", pb.CategoricalColumn.INDICES_FIELD_NUMBER, 4)


class _Column(NamedTuple):
    """A categorical column: its bytes up to the indices, and the vocabulary that they spell."""

    prefix: bytes
    vocabulary: tuple[str, ...]


class _Form(NamedTuple):
    """A table but for its numbers.

    Attributes:
        header: Its columns.
        columns: The bytes that name its scalar columns.
        categorical: Its categorical columns.
        vectors: For each vector column the bytes up to its values, and the width.
    """

    header: Header
    columns: bytes
    categorical: tuple[_Column, ...]
    vectors: tuple[tuple[bytes, int], ...]

    @staticmethod
    def of(table: Table) -> _Form:
        """As protobuf itself writes it."""
        return _Form(
            table.header,
            pb.FeatureTable(columns=table.header.columns).SerializeToString(),
            tuple(
                _Column(pb.CategoricalColumn(name=name, vocabulary=c.vocabulary).SerializeToString(), c.vocabulary)
                for name, c in zip(table.header.categorical, table.categorical, strict=True)
            ),
            tuple(
                (pb.VectorColumn(name=name, width=width).SerializeToString(), width)
                for name, width in table.header.vectors
            ),
        )

    @property
    def size(self) -> int:
        """Bytes to remember."""
        return len(self.columns) + sum(len(c.prefix) for c in self.categorical) + sum(len(v) for v, _ in self.vectors)


class RequestDecoder:
    """From the bytes of a request to its message and its candidates. May be shared by threads.

    Attributes:
        limits: What a request may ask for.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._decoder = Decoder(limits)
        self._forms = KnownForms(limits)

    def known(self, kind: type[M], body: bytes) -> tuple[M, Candidates] | None:
        """The request, its field `candidates` left out, and the candidates; None: `candidates` will tell."""
        return self._forms.decode(kind, body)

    def candidates(self, message: pb.Candidates) -> Candidates:
        """The candidates of a request; raises InvalidRequest. Known from now on."""
        candidates = self._decoder.candidates(message)
        self._forms.learn(candidates)
        return candidates


class KnownForms:
    """The forms of tables that came lately."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # Replaced as a whole under the lock, read without.
        self._forms: tuple[_Form, ...] = ()
        self._lock = threading.Lock()

    def learn(self, candidates: Candidates) -> None:
        """Remembers the forms of a good request's tables, the latest first; a sparse one is never read here."""
        tables = (candidates.viewer, candidates.authors, candidates.tweets)
        if any(isinstance(table.values, Sparse) for table in tables):
            return
        for table in tables:
            form = _Form.of(table)
            if form.size <= FORM_BYTES_MAX:
                with self._lock:
                    others = [known for known in self._forms if known.header != form.header]
                    self._forms = (form, *others)[:FORMS_MAX]

    def decode(self, kind: type[M], body: bytes) -> tuple[M, Candidates] | None:
        """The message of a request but for its candidates, and these; None if anything is out of the ordinary."""
        number = kind.DESCRIPTOR.fields_by_name["candidates"].number
        try:
            before, begin, end = _find(body, number)
            candidates = self._candidates(body, begin, end)
            return kind.FromString(body[:before] + body[end:]), candidates
        except (_Unknown, IndexError, DecodeError):  # IndexError: a number that the end of the body cuts off
            return None

    def _candidates(self, body: bytes, pos: int, end: int) -> Candidates:
        tweet_ids, varints, pos = _ids(body, pos, end, _TWEET_IDS)
        created_at_ms, _, pos = _ids(body, pos, end, _CREATED_AT_MS)
        index_pos = pos
        _, pos = _optional_span(body, pos, end, _AUTHOR_INDEX.number)
        author_ids, _, pos = _ids(body, pos, end, _AUTHOR_IDS)
        rows, authors = len(tweet_ids), len(author_ids)
        author_index, _ = _indices(body, index_pos, end, _AUTHOR_INDEX, rows, authors)
        if not (rows <= self._limits.rows_max and authors <= self._limits.authors_max):
            raise _Unknown
        if not (len(created_at_ms) == rows and _distinct(tweet_ids) and _distinct(author_ids)):
            raise _Unknown
        viewer, pos = self._table(body, pos, end, 5, 1)
        author_table, pos = self._table(body, pos, end, 6, authors)
        tweets, pos = self._table(body, pos, end, 7, rows)
        if pos != end:
            raise _Unknown
        index = author_index.astype(np.int64)
        return Candidates(tweet_ids, created_at_ms, index, viewer, author_table, tweets, varints)

    def _table(self, body: bytes, pos: int, end: int, number: int, rows: int) -> tuple[Table, int]:
        begin, after = _optional_span(body, pos, end, number)
        for form in self._forms:
            if body.startswith(form.columns, begin):
                try:
                    return _read_table(body, begin + len(form.columns), after, rows, form), after
                except _Unknown:
                    continue
        raise _Unknown


def _read_table(body: bytes, pos: int, end: int, rows: int, form: _Form) -> Table:
    """A table of this form from behind its column names; raises _Unknown."""
    columns = len(form.header.columns)
    values, pos = _floats(body, pos, end, 2, rows, columns)
    categorical = []
    for prefix, vocabulary in form.categorical:
        begin, after = _span(body, pos, end, 6)
        if not body.startswith(prefix, begin):
            raise _Unknown
        indices, pos = _indices(body, begin + len(prefix), after, _INDICES, rows, len(vocabulary) + 1)
        if pos != after:
            raise _Unknown
        categorical.append(Categorical(vocabulary, indices))
    vectors = []
    for prefix, width in form.vectors:
        begin, after = _span(body, pos, end, 7)
        if not body.startswith(prefix, begin):
            raise _Unknown
        vector, pos = _floats(body, begin + len(prefix), after, 3, rows, width)
        if pos != after or has_part(vector):
            raise _Unknown
        vectors.append(vector)
    if pos != end:  # more columns, or fields that only sparse tables have
        raise _Unknown
    return Table(rows, form.header, values, tuple(categorical), tuple(vectors))


def _find(body: bytes, number: int) -> tuple[int, int, int]:
    """Where the only field of this number stands: its tag, its content, and what follows it."""
    wanted = number << 3 | _LENGTH
    found = None
    pos, end, fields = 0, len(body), 0
    while pos < end:
        fields += 1
        if fields > _FIELDS_MAX:
            raise _Unknown
        tag, before = body[pos], pos
        kind = tag & 7
        if tag == wanted:
            if found:
                raise _Unknown
            begin, pos = _span(body, pos, end, number)
            found = before, begin, pos
        elif tag >= 0x80:
            raise _Unknown
        elif kind == _LENGTH:
            _, pos = _span(body, pos, end, tag >> 3)
        elif kind == _VARINT:
            _, pos = _varint(body, pos + 1)
        elif kind in (_FIXED_32, _FIXED_64):
            pos += 5 if kind == _FIXED_32 else 9
        else:
            raise _Unknown
    if found is None or pos != end:
        raise _Unknown
    return found


def _varint(body: bytes, pos: int) -> tuple[int, int]:
    """The number at `pos` and where it ends."""
    value = 0
    for shift in range(0, 7 * _VARINT_BYTES_MAX, 7):
        byte = body[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
    raise _Unknown


def _span(body: bytes, pos: int, end: int, number: int) -> tuple[int, int]:
    """Where the content of a field with a length begins and ends."""
    if pos >= end or body[pos] != number << 3 | _LENGTH:
        raise _Unknown
    length, begin = _varint(body, pos + 1)
    if begin + length > end or begin - pos > 1 + _LENGTH_BYTES_MAX:
        raise _Unknown
    return begin, begin + length


def _optional_span(body: bytes, pos: int, end: int, number: int) -> tuple[int, int]:
    """As `_span`; nothing where the field is not there: protobuf writes no empty one."""
    if pos >= end or body[pos] != number << 3 | _LENGTH:
        return pos, pos
    return _span(body, pos, end, number)


def _floats(body: bytes, pos: int, end: int, number: int, rows: int, columns: int) -> tuple[Floats, int]:
    """[rows, columns] of a packed float field without an infinity, and where it ends."""
    if not rows * columns:  # protobuf writes no empty field
        return np.empty((rows, columns), np.float32), pos
    begin, after = _span(body, pos, end, number)
    if after - begin != rows * columns * 4:
        raise _Unknown
    # Cut out, for the body's floats need not lie where a processor likes them.
    values = np.frombuffer(body[begin:after], "<f4").reshape(rows, columns)
    if has_infinity(values):
        raise _Unknown
    return values, after


def _ids(body: bytes, pos: int, end: int, field: _Integers) -> tuple[Ints, NDArray[np.uint8] | None, int]:
    """The numbers of a packed field, [n]; where all have the same width, their varints too, [n, width]; and its end."""
    begin, after = _optional_span(body, pos, end, field.number)
    if begin == after:
        return np.empty(0, np.int64), None, after
    width = 1
    while width <= field.width_max and body[begin + width - 1] > 0x7F:
        width += 1
    if width <= field.width_max and not (after - begin) % width:
        varints = np.frombuffer(body[begin:after], np.uint8).reshape(-1, width)
        digits = varints ^ _CONTINUED[width - 1]
        if digits.tobytes().isascii():
            return digits @ _PLACE_VALUES[width - 1], varints, after
    return _parsed(body[pos:after], field), None, after


def _indices(
    body: bytes, pos: int, end: int, field: _Integers, rows: int, size: int
) -> tuple[NDArray[np.integer[Any]], int]:
    """[rows] numbers below `size` of a packed field, and its end."""
    begin, after = _optional_span(body, pos, end, field.number)
    content = body[begin:after]
    if len(content) == rows:  # a byte each
        if content.translate(None, _BYTES[: min(size, 0x80)]):  # what is left is out of range
            raise _Unknown
        return np.frombuffer(content, np.uint8), after
    indices = _parsed(body[pos:after], field)
    if len(indices) != rows or indices.max() >= size:
        raise _Unknown
    return indices, after


def _parsed(field_bytes: bytes, field: _Integers) -> Ints:
    """A field by protobuf's own parser."""
    return np.asarray(getattr(field.message.FromString(field_bytes), field.name), dtype=np.int64)


def _distinct(ids: Ints) -> bool:
    ordered = np.sort(ids)
    return not np.count_nonzero(ordered[1:] == ordered[:-1])
