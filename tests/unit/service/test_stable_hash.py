"""The stable hash against vectors that other tools worked out."""

from __future__ import annotations

import pytest

from service.stable_hash import uniform

# printf '%s\0%s' SALT KEY | sha256sum | head -c 16, then in JavaScript Number(BigInt("0x...") >> 11n) / 2 ** 53.
VECTORS = [
    ("like-weight", "1", 0.21965794586441068),
    ("like-weight", "2", 0.021291086171170592),
    ("like-weight", "9223372036854775807", 0.0837054476260427),
    ("like-weight", "-1", 0.39611168873625535),
    ("größe", "42", 0.4178591955677531),
    ("", "0", 0.8562645261336234),
]


@pytest.mark.parametrize(("salt", "key", "expected"), VECTORS)
def test_other_languages_compute_the_same_number(salt: str, key: str, expected: float) -> None:
    """The number is exactly the one that sha256sum and JavaScript arrive at."""
    assert uniform(salt, key) == expected
