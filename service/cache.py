"""A bounded memory for what follows from strings that callers send over and over."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Generic, TypeVar

# About what an entry takes beside its strings. Without it, entries that have none would never fill a cache.
ENTRY_BYTES = 256

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Keys with what was worked out for them, shared by all threads.

    When full it starts over: callers send a handful of different keys, so a full cache means one who makes them up.
    """

    def __init__(self, weight_max: int) -> None:
        """Keeps at most `weight_max`, in the unit of `put`'s `weight`."""
        self._weight_max = weight_max
        self._weight = 0
        # Readers take no lock: a dict's get is one step under the GIL, and a full dict is replaced, not emptied.
        self._values: dict[K, V] = {}
        # Guards writing; held for a dict assignment.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """What was put for `key`, or None."""
        return self._values.get(key)

    def put(self, key: K, value: V, weight: int) -> None:
        """Keeps `value` for `key`, unless it weighs more than all of the cache may."""
        if weight > self._weight_max:
            return
        with self._lock:
            if self._weight + weight > self._weight_max:
                self._values, self._weight = {}, 0
            self._values[key] = value
            self._weight += weight


def string_weight(strings: Iterable[str]) -> int:
    """About the bytes that an entry of these strings takes in memory."""
    return ENTRY_BYTES + sum(len(string) + 64 for string in strings)
