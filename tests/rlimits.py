"""Limits that the system sets a process, for a while."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def limited(kind: int, limit: int) -> Iterator[None]:
    """The soft limit of a `resource.RLIMIT_*` is `limit`."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Nothing can be opened."""
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with limited(resource.RLIMIT_NOFILE, lowest_free):
        yield
