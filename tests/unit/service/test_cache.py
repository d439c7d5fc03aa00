"""The cache finds what was put, and never holds more than it may."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.cache import Cache, string_weight


def test_finds_what_was_put() -> None:
    """A key that was never put has nothing."""
    cache: Cache[str, int] = Cache(10)
    cache.put("a", 1, weight=4)

    assert cache.get("a") == 1
    assert cache.get("b") is None


def test_starts_over_when_full() -> None:
    """The newest always fits."""
    cache: Cache[str, int] = Cache(10)
    cache.put("a", 1, weight=4)
    cache.put("b", 2, weight=6)
    assert len(cache) == 2
    cache.put("c", 3, weight=1)

    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (None, None, 3)


def test_what_is_too_heavy_is_not_kept_and_costs_nothing() -> None:
    """A giant does not push everybody else out."""
    cache: Cache[str, int] = Cache(10)
    cache.put("a", 1, weight=4)
    cache.put("b", 2, weight=11)

    assert (cache.get("a"), cache.get("b")) == (1, None)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 12)), unique_by=lambda put: put[0]))
def test_never_holds_more_than_it_may(puts: list[tuple[int, int]]) -> None:
    """Whatever is put: the weights of what is found sum to no more than the limit."""
    cache: Cache[int, int] = Cache(10)
    for key, weight in puts:
        cache.put(key, weight, weight)
        assert cache.get(key) == (weight if weight <= 10 else None)

    assert sum(cache.get(key) or 0 for key, _ in puts) <= 10


def test_string_weight() -> None:
    """Characters, what Python takes for each string, and what an entry takes: none weighs nothing."""
    assert string_weight(["abc", ""]) == 3 + 64 + 64 + 256
    assert string_weight([]) == 256
