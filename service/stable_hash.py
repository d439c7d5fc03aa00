"""A number in [0, 1) out of a text: the same in every process, on every machine and in every language.

What a viewer is assigned to and what is sampled must come out the same after a restart, on every replica and in an
offline analysis, so Python's own salted `hash` will not do.
"""

from __future__ import annotations

import hashlib


def uniform(salt: str, key: str) -> float:
    """Draws a number that is uniform over keys and independent between salts.

    It is the first 8 bytes of SHA-256(salt in UTF-8, one zero byte, key in UTF-8), read as a big-endian unsigned
    integer, shifted right by 11 bits and divided by 2^53. All of it is exact in IEEE double precision.

    Args:
        salt: What the number is drawn for; holds no zero byte, so that salt and key can not run into each other.
        key: Whom it is drawn for; numbers in decimal.

    Returns:
        A multiple of 2^-53 in [0, 1).
    """
    digest = hashlib.sha256(salt.encode() + b"\0" + key.encode()).digest()
    return float(int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53
