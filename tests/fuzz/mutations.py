"""Bytes that are nearly a message: what a careless or hostile writer of protobuf might send."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

# Varints at the edges: 0, one byte's most, 2^31, 2^32 - 1, 2^63, 2^64 - 1; one that does not end; one that is too long.
VARINTS = [
    b"\x00",
    b"\x7f",
    b"\x80\x80\x80\x80\x08",
    b"\xff\xff\xff\xff\x0f",
    b"\x80" * 9 + b"\x01",
    b"\xff" * 9 + b"\x01",
    b"\x80",
    b"\x80" * 10 + b"\x01",
]
FLOATS = [
    struct.pack("<f", value) for value in (float("nan"), float("inf"), float("-inf"), -0.0, 1e-45, 3.4028235e38, 1e30)
]


def flip_bit(body: bytearray, rng: random.Random) -> None:
    body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)


def put_byte(body: bytearray, rng: random.Random) -> None:
    body[rng.randrange(len(body))] = rng.randrange(256)


def cut_off(body: bytearray, rng: random.Random) -> None:
    del body[rng.randrange(len(body)) :]


def leave_out(body: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(body))
    del body[at : at + rng.randint(1, 16)]


def repeat(body: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(body))
    body[at:at] = body[at : at + rng.randint(1, 64)]


def put_varint(body: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(body))
    body[at : at + rng.randint(0, 2)] = rng.choice(VARINTS)


def put_float(body: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(body))
    body[at : at + 4] = rng.choice(FLOATS)


def merge_with_itself(body: bytearray, _rng: random.Random) -> None:
    """To protobuf a message behind another one is the two merged: every repeated field twice."""
    body += bytes(body)


def add_unknown_field(body: bytearray, rng: random.Random) -> None:
    body += b"\xc2\x3e" + bytes([4]) + rng.randbytes(4)  # field 1000


def nest(body: bytearray, rng: random.Random) -> None:
    """Groups in groups."""
    depth = rng.choice([10, 100, 1_000])
    body += b"\xc3\x3e" * depth + b"\xc4\x3e" * depth


def swap(body: bytearray, rng: random.Random) -> None:
    """Two stretches change places: fields in another order, or in each other."""
    first, second = sorted(rng.randrange(len(body)) for _ in range(2))
    length = rng.randint(1, 32)
    body[first : first + length], body[second : second + length] = (
        body[second : second + length],
        body[first : first + length],
    )


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    flip_bit,
    put_byte,
    cut_off,
    leave_out,
    repeat,
    put_varint,
    put_float,
    merge_with_itself,
    add_unknown_field,
    nest,
    swap,
]


def mutant(body: bytes, rng: random.Random) -> bytes:
    """The body with one to four things done to it; it may be any bytes at all."""
    changed = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        if not changed:
            break
        rng.choice(MUTATIONS)(changed, rng)
    return bytes(changed)
