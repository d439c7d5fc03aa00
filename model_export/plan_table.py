"""Reads TOML tables into frozen dataclasses, strictly: no key is unknown, no value of another type."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class PlanError(ValueError):
    """A plan says something that can not be carried out."""


def parse_table(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """A table as an instance of the dataclass `kind`; keys that it does not give keep their defaults.

    Args:
        kind: Its fields may be int, float, str, bool, Literal, a dataclass, tuple[X, ...], dict[str, X] or `X | None`.
        table: From TOML.
        where: Names the table in errors, such as "train.network".

    Raises:
        PlanError: A key is unknown (the nearest known one is named) or missing, or a value does not fit.
    """
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # T is a dataclass
    for key in table:
        if key not in fields:
            raise PlanError(f"{where}: {unknown(key, fields)}")
    for name, field in fields.items():
        if name not in table and field.default is field.default_factory is dataclasses.MISSING:
            raise PlanError(f"{where}: {name} is missing")
    values = {key: _parse(hints[key], value, f"{where}.{key}") for key, value in table.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise error if isinstance(error, PlanError) else PlanError(f"{where}: {error}") from error


def unknown(name: str, known: Collection[str]) -> str:
    """What to say of a name that is none of the known ones."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"{name!r} is not known" + (f"; did you mean {nearest[0]!r}?" if nearest else "")


def _parse(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return parse_table(kind, _of_type(dict, value, where, "a table"), where)
    if origin is Literal:
        if value not in arguments:
            raise PlanError(f"{where}: {unknown(str(value), [str(a) for a in arguments])}")
        return value
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _parse(inner, value, where)
    if origin is tuple:
        items = _of_type(list, value, where, "a list")
        return tuple(_parse(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        entries = _of_type(dict, value, where, "a table")
        return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in entries.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _of_type(kind, value, where, f"of type {kind.__name__}")


def _of_type(kind: type[T], value: Any, where: str, expected: str) -> T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise PlanError(f"{where}: {value!r} is not {expected}")
    return value
