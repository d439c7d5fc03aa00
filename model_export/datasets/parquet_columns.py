"""Columns of a user's Parquet batch as arrays, with a clear word for what does not fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model_export.datasets.records import DataError
from service.schema import Feature, Kind

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def _column(batch: pa.RecordBatch, name: str, takes: Callable[[pa.DataType], bool], what: str) -> pa.Array:
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not takes(column.type):
        raise DataError(f"column {name!r} is of type {column.type}, not {what}")
    return column


def _complete(column: pa.Array, name: str) -> pa.Array:
    if column.null_count:
        raise DataError(f"column {name!r} has nulls")
    return column


def ids(batch: pa.RecordBatch, name: str) -> Ints:
    """Whole numbers, none missing; [n]."""
    column = _complete(_column(batch, name, pa.types.is_integer, "a whole number"), name)
    values: Ints = column.cast(pa.int64()).to_numpy()
    return values


def times(batch: pa.RecordBatch, name: str) -> Ints:
    """Unix ms of whole numbers, which are taken to be that, or of timestamps, none missing; [n]."""
    column = _complete(_column(batch, name, _is_time, "a whole number or a timestamp"), name)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", column.type.tz), safe=False)
    values: Ints = column.cast(pa.int64()).to_numpy()
    return values


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_timestamp(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _numbers(column: pa.Array, name: str) -> Floats:
    """float32 [n], NaN for null."""
    with np.errstate(over="ignore"):
        values: Floats = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float32)
    if np.isinf(values).any():
        raise DataError(f"column {name!r} has infinite values, or ones too large for float32")
    return values


def labels(batch: pa.RecordBatch, name: str) -> NDArray[np.uint8]:
    """0 and 1, none missing; [n]."""
    values = _numbers(_complete(_column(batch, name, _is_number, "a number or boolean"), name), name)
    if not np.isin(values, (0, 1)).all():
        raise DataError(f"column {name!r} is a label and has values other than 0 and 1")
    return values.astype(np.uint8)


def _continuous(batch: pa.RecordBatch, name: str, _: Feature) -> Floats:
    return _numbers(_column(batch, name, _is_number, "a number"), name)[:, np.newaxis]


def _binary(batch: pa.RecordBatch, name: str, feature: Feature) -> Floats:
    values = _continuous(batch, name, feature)
    if not (np.isin(values, (0, 1)) | np.isnan(values)).all():
        raise DataError(f"column {name!r} is binary and has values other than 0 and 1")
    return values


def texts(batch: pa.RecordBatch, name: str) -> list[str | None]:
    """Texts, or whole numbers as text; None = absent; [n]."""
    column = _column(batch, name, _is_text, "text or a whole number")
    values: list[str | None] = column.cast(pa.string()).to_pylist()
    return values


def _categorical(batch: pa.RecordBatch, name: str, feature: Feature) -> Floats:
    index = {text: i for i, text in enumerate(feature.vocabulary)}
    codes = [np.nan if text is None else index.get(text, np.nan) for text in texts(batch, name)]
    return np.array(codes, np.float32)[:, np.newaxis]


def _vector(batch: pa.RecordBatch, name: str, feature: Feature) -> Floats:
    column = _column(batch, name, _is_list, "a list of numbers")
    values = np.full((len(column), feature.width), np.nan, np.float32)
    lengths = pc.list_value_length(column)
    present = lengths.is_valid().to_numpy(zero_copy_only=False)
    if not pc.all(pc.equal(lengths.drop_null(), feature.width), min_count=0).as_py():
        raise DataError(f"column {name!r} has lists of another length than {feature.width}")
    values[present] = _numbers(column.flatten(), name).reshape(-1, feature.width)
    missing = np.isnan(values).sum(axis=1)
    if ((missing > 0) & (missing < feature.width)).any():
        raise DataError(f"column {name!r} has vectors that are partly missing")
    return values


def _is_list(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and _is_number(kind.value_type))


# What reads a feature of each kind: float32 [n, width], NaN = absent.
READERS: dict[Kind, Callable[[pa.RecordBatch, str, Feature], Floats]] = {
    "continuous": _continuous,
    "binary": _binary,
    "categorical": _categorical,
    "vector": _vector,
}
