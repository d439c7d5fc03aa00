"""From protobuf to arrays, and every check that does not depend on a model.

What is wrong raises InvalidRequest with the path of the field. Repeated fields become arrays by one memcpy each
(`np.asarray` of a repeated scalar, protobuf's upb); nothing here walks rows in Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from service.cache import Cache, string_weight
from service.errors import InvalidRequest
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.limits import Limits

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
M = TypeVar("M", bound=Message)

FORCED_ARMS_MAX = 100  # far above the number of experiments that run at a time
# For each of the two memories of a Decoder: hundreds of ordinary headers.
CACHE_BYTES_MAX = 4 << 20


class Sparse(NamedTuple):
    """Scalars in coordinate form: `values[i]` stands at [rows[i], columns[i]], no place twice."""

    rows: Ints
    columns: NDArray[np.uint32]
    values: Floats


class Header(NamedTuple):
    """The columns of a table; all names are different.

    Attributes:
        columns: Names of the scalar columns.
        categorical: Names of the categorical columns.
        vectors: Names and widths of the vector columns.
    """

    columns: tuple[str, ...]
    categorical: tuple[str, ...]
    vectors: tuple[tuple[str, int], ...]


class Categorical(NamedTuple):
    """A categorical column: `indices` [rows] into `vocabulary`; its size means absent."""

    vocabulary: tuple[str, ...]
    indices: NDArray[np.integer[Any]]


class Table(NamedTuple):
    """A feature table in the caller's columns.

    Attributes:
        rows: Number of rows; may be 0.
        header: Its columns.
        values: float32 [rows, scalar columns], NaN = absent; or the same as Sparse.
        categorical: The categorical columns, in the header's order.
        vectors: The vector columns, in the header's order: float32 [rows, width], a row all NaN (absent) or without.
    """

    rows: int
    header: Header
    values: Floats | Sparse
    categorical: tuple[Categorical, ...]
    vectors: tuple[Floats, ...]


@dataclass(slots=True)  # never changed; frozen, it would take four times as long to make
class Candidates:
    """N Tweets by A authors.

    Attributes:
        tweet_ids: int64 [N], no two alike.
        created_at_ms: int64 [N], Unix ms.
        author_index: int64 [N], in [0, A).
        viewer: 1 row.
        authors: A rows.
        tweets: N rows.
        tweet_id_varints: uint8 [N, width], the ids as protobuf writes them, where all are equally long; else None.
    """

    tweet_ids: Ints
    created_at_ms: Ints
    author_index: Ints
    viewer: Table
    authors: Table
    tweets: Table
    tweet_id_varints: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.tweet_ids)


def parse(kind: type[M], body: bytes) -> M:
    """The message in `body`."""
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise InvalidRequest("", f"the body is not a {kind.DESCRIPTOR.full_name}") from error


def check_header(message: pb.RankTimelineRequest | pb.ScoreTweetsRequest, limits: Limits) -> None:
    """Checks what every request to score something has beside its candidates."""
    if message.viewer_id == 0:
        raise InvalidRequest("viewer_id", "must not be 0")
    _check_strings("request_id", (message.request_id,), limits)
    check_model(message.model, limits)


def check_model(model: str, limits: Limits) -> None:
    """Whether such a model is served is another question."""
    _check_strings("model", (model,), limits)


def check_times(last_visit_ms: int, request_time_ms: int) -> None:
    """Nobody's last visit lies after the request."""
    if last_visit_ms > request_time_ms:
        raise InvalidRequest("last_visit_ms", f"{last_visit_ms} is after the request's time, {request_time_ms}")


def check_forced_arms(arms: Mapping[str, str], limits: Limits) -> None:
    """Whether there are such experiments and arms is another question."""
    if len(arms) > FORCED_ARMS_MAX:
        raise InvalidRequest("forced_arms", f"{len(arms)} arms, more than {FORCED_ARMS_MAX}")
    _check_strings("forced_arms", (*arms, *arms.values()), limits)


class Decoder:
    """Checks and converts candidates. May be shared by threads.

    Remembers which headers and vocabularies it found good: callers send the same ones over and over.

    Attributes:
        limits: What a request may ask for.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._headers: Cache[Header, Header] = Cache(CACHE_BYTES_MAX)
        self._vocabularies: Cache[tuple[str, ...], tuple[str, ...]] = Cache(CACHE_BYTES_MAX)

    def candidates(self, message: pb.Candidates) -> Candidates:
        """The candidates of a request."""
        limits = self.limits
        rows = len(message.tweet_ids)
        authors = len(message.author_ids)
        if rows > limits.rows_max:
            raise InvalidRequest("candidates.tweet_ids", f"{rows} Tweets, more than {limits.rows_max}")
        if authors > limits.authors_max:
            raise InvalidRequest("candidates.author_ids", f"{authors} authors, more than {limits.authors_max}")
        for name in ("created_at_ms", "author_index"):
            if len(getattr(message, name)) != rows:
                raise InvalidRequest(f"candidates.{name}", f"{len(getattr(message, name))} values for {rows} Tweets")

        tweet_ids = np.asarray(message.tweet_ids, dtype=np.int64)
        author_index = np.asarray(message.author_index, dtype=np.int64)
        _check_distinct("candidates.tweet_ids", tweet_ids)
        _check_distinct("candidates.author_ids", np.asarray(message.author_ids, dtype=np.int64))
        if rows and (largest := author_index.max()) >= authors:
            raise InvalidRequest("candidates.author_index", f"{largest} is out of range: there are {authors} authors")
        return Candidates(
            tweet_ids=tweet_ids,
            created_at_ms=np.asarray(message.created_at_ms, dtype=np.int64),
            author_index=author_index,
            viewer=self.table(message.viewer, 1, "candidates.viewer"),
            authors=self.table(message.authors, authors, "candidates.authors"),
            tweets=self.table(message.tweets, rows, "candidates.tweets"),
        )

    def table(self, message: pb.FeatureTable, rows: int, where: str) -> Table:
        """A feature table of `rows` rows; `where` is its path in the request."""
        # Before anything is made of them: an empty column is two bytes for its sender, and an object here.
        columns = len(message.columns) + len(message.categorical) + len(message.vectors)
        if columns > self.limits.columns_max:
            raise InvalidRequest(where, f"{columns} columns, more than {self.limits.columns_max}")
        categorical = tuple(message.categorical)
        vectors = tuple(message.vectors)
        header = Header(
            tuple(message.columns), tuple([c.name for c in categorical]), tuple([(v.name, v.width) for v in vectors])
        )
        known = self._headers.get(header)
        if known is None:
            _check_names(where, header, self.limits)
            self._headers.put(header, header, string_weight(names_in(header)))
            known = header
        return Table(
            rows=rows,
            header=known,  # the same object each time: whoever looks it up again finds it at once
            values=_decode_scalars(message, rows, len(header.columns), where),
            categorical=tuple(
                [self._categorical(column, rows, f"{where}.categorical[{i}]") for i, column in enumerate(categorical)]
            ),
            vectors=tuple([_decode_vector(column, rows, f"{where}.vectors[{i}]") for i, column in enumerate(vectors)]),
        )

    def _categorical(self, message: pb.CategoricalColumn, rows: int, where: str) -> Categorical:
        if len(message.vocabulary) > self.limits.vocabulary_max:
            raise InvalidRequest(
                f"{where}.vocabulary",
                f"{len(message.vocabulary)} categories, more than {self.limits.vocabulary_max}",
            )
        vocabulary = tuple(message.vocabulary)
        known = self._vocabularies.get(vocabulary)
        if known is None:
            _check_vocabulary(where, vocabulary, self.limits)
            self._vocabularies.put(vocabulary, vocabulary, string_weight(vocabulary))
            known = vocabulary
        if len(message.indices) != rows:
            raise InvalidRequest(f"{where}.indices", f"{len(message.indices)} indices for {rows} rows")
        indices = np.asarray(message.indices, dtype=np.uint32)
        if rows and (largest := indices.max()) > len(known):
            raise InvalidRequest(f"{where}.indices", f"{largest} is out of range: there are {len(known)} categories")
        return Categorical(known, indices)


def has_infinity(values: Floats) -> bool:
    """Whether one of the values is infinite."""
    return bool(np.count_nonzero(np.isinf(values)))


def has_part(values: Floats) -> bool:
    """Whether a row of [rows, width] has values and NaN as well."""
    absent = np.isnan(values)
    return bool(np.count_nonzero(absent != absent[:, :1]))


def _decode_scalars(message: pb.FeatureTable, rows: int, columns: int, where: str) -> Floats | Sparse:
    sparse = message.sparse_row_lengths or message.sparse_column_indices or message.sparse_values
    if not sparse:
        if len(message.values) != rows * columns:
            raise InvalidRequest(f"{where}.values", f"{len(message.values)} values for {rows} rows x {columns} columns")
        values = np.asarray(message.values, dtype=np.float32).reshape(rows, columns)
        _check_no_infinity(f"{where}.values", values)
        return values
    if message.values:
        raise InvalidRequest(f"{where}.values", "filled, and the sparse form as well")
    return _decode_sparse(message, rows, columns, where)


def _decode_sparse(message: pb.FeatureTable, rows: int, columns: int, where: str) -> Sparse:
    lengths = np.asarray(message.sparse_row_lengths, dtype=np.int64)
    column_indices = np.asarray(message.sparse_column_indices, dtype=np.uint32)
    values = np.asarray(message.sparse_values, dtype=np.float32)
    total = int(lengths.sum())
    if len(lengths) != rows:
        raise InvalidRequest(f"{where}.sparse_row_lengths", f"{len(lengths)} lengths for {rows} rows")
    if len(column_indices) != total:
        raise InvalidRequest(
            f"{where}.sparse_column_indices", f"{len(column_indices)} indices, but the row lengths add up to {total}"
        )
    if len(values) != total:
        raise InvalidRequest(f"{where}.sparse_values", f"{len(values)} values, but the row lengths add up to {total}")
    if total and (largest := int(column_indices.max())) >= columns:
        raise InvalidRequest(
            f"{where}.sparse_column_indices", f"{largest} is out of range: there are {columns} columns"
        )
    _check_no_infinity(f"{where}.sparse_values", values)
    row_indices = np.repeat(np.arange(rows), lengths)
    filled = np.zeros(rows * columns, np.bool_)
    filled[row_indices * columns + column_indices] = True
    if np.count_nonzero(filled) != total:
        raise InvalidRequest(f"{where}.sparse_column_indices", "a column twice in one row")
    return Sparse(row_indices, column_indices, values)


def _decode_vector(message: pb.VectorColumn, rows: int, where: str) -> Floats:
    width = message.width
    if width == 0:
        raise InvalidRequest(f"{where}.width", "must not be 0")
    if len(message.values) != rows * width:
        raise InvalidRequest(f"{where}.values", f"{len(message.values)} values for {rows} rows of width {width}")
    values = np.asarray(message.values, dtype=np.float32).reshape(rows, width)
    _check_no_infinity(f"{where}.values", values)
    if has_part(values):
        raise InvalidRequest(f"{where}.values", "a row that is partly NaN: a vector is there as a whole or not at all")
    return values


def names_in(header: Header) -> tuple[str, ...]:
    """The names of all columns."""
    return (*header.columns, *header.categorical, *(name for name, _ in header.vectors))


def _check_names(where: str, header: Header, limits: Limits) -> None:
    width = len(header.columns) + len(header.categorical) + sum(width for _, width in header.vectors)
    if width > limits.columns_max:
        raise InvalidRequest(where, f"{width} columns, more than {limits.columns_max}")
    seen: set[str] = set()
    for part, names in (
        ("columns", header.columns),
        ("categorical", header.categorical),
        ("vectors", tuple(name for name, _ in header.vectors)),
    ):
        _check_strings(f"{where}.{part}", names, limits)
        _check_new(f"{where}.{part}", names, seen)


def _check_vocabulary(where: str, vocabulary: Sequence[str], limits: Limits) -> None:
    _check_strings(f"{where}.vocabulary", vocabulary, limits)
    _check_new(f"{where}.vocabulary", vocabulary, set())


def _check_new(where: str, strings: Sequence[str], seen: set[str]) -> None:
    """No string is in `seen` already, nor twice among `strings`; adds them to `seen`."""
    for string in strings:
        if string in seen:
            raise InvalidRequest(where, f"{string!r} twice")
        seen.add(string)


def _check_strings(where: str, strings: Sequence[str], limits: Limits) -> None:
    for string in strings:
        if (size := len(string.encode())) > limits.string_bytes_max:
            raise InvalidRequest(where, f"a string of {size} bytes, longer than {limits.string_bytes_max}")


def _check_distinct(where: str, ids: Ints) -> None:
    ordered = np.sort(ids)
    same = ordered[1:] == ordered[:-1]
    if same.any():
        raise InvalidRequest(where, f"{ordered[int(same.argmax())]} twice")


def _check_no_infinity(where: str, values: Floats) -> None:
    if has_infinity(values):
        raise InvalidRequest(where, "an infinity; what is absent is NaN")
