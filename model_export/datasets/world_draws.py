"""Random numbers of the simulated world.

Two kinds: streams, for what is drawn once in a fixed order, and hashes of keys such as (viewer, author, day), for what
must be the same whichever request asks for it, in whatever order.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def stream(seed: int, name: str, *keys: int) -> np.random.Generator:
    """The generator of one purpose, independent of every other one's; all keys are >= 0."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), *keys])


def uniform(seed: int, name: str, *keys: Ints) -> Floats:
    """Uniform numbers in [0, 1), a function of seed, name and keys; float64 [n] for keys [n]."""
    return np.asarray((_hash(seed, name, keys) >> np.uint64(11)) * 2.0**-53)


def bell(seed: int, name: str, *keys: Ints) -> Floats:
    """Bell-shaped numbers of mean 0 and variance 1 within +-3.5: four uniform ones of 16 bits, added."""
    pieces = _hash(seed, name, keys).view(np.uint16).reshape(-1, 4)
    return np.asarray((pieces.sum(axis=1, dtype=np.int64) / 65_536 - 2 + 2 / 65_536) * np.sqrt(3))


def _hash(seed: int, name: str, keys: tuple[Ints, ...]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014) over the seed and the name, and each key in turn."""
    mixed = np.full(len(keys[0]), np.uint64((seed * _GOLDEN + zlib.crc32(name.encode())) & _MASK))
    for key in keys:
        mixed = (mixed ^ key.astype(np.uint64)) + np.uint64(_GOLDEN)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def count(mean: Floats, draw: Floats) -> Floats:
    """A whole number near `mean`, right on average over `draw` in [0, 1); rises with `mean`."""
    return np.floor(mean + draw)


def part_of(total: Floats, kept_days: Floats, days: int, draw: Floats) -> Floats:
    """How much of a count over `kept_days` fell into the last `days` of them.

    Windows nest: for the same `draw`, more days never hold less, nor does a larger total.
    """
    share = np.minimum(days / np.maximum(kept_days, 1), 1.0)
    # An exponent off 1 stands for activity that grew (below) or faded (above) over the whole time.
    return np.minimum(np.floor(total * share ** (0.5 + 1.5 * draw) + draw), total)
