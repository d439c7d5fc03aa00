"""HTTP/2 frame by frame, for what no gRPC client lets one do."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
ACK = END_STREAM = 1
END_HEADERS = 4
# In a SETTINGS frame: two bytes of this and four of the value.
MAX_CONCURRENT_STREAMS = (3).to_bytes(2)
PATIENCE_S = 60


class Frame(NamedTuple):
    """One frame as it came in."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """The bytes of a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


# What every client says first.
GREETING = PREFACE + frame(SETTINGS)


def call_headers(path: str, stream: int = 1) -> bytes:
    """The frame that begins a gRPC call; its headers are literal, as HPACK has them without compression."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(b"\x00" + _hpack_string(name) + _hpack_string(value) for name, value in fields.items())
    return frame(HEADERS, END_HEADERS, stream, block)


def call_body(message: bytes, stream: int = 1) -> bytes:
    """The frames of a call's only message, which ends it."""
    content = struct.pack(">BI", 0, len(message)) + message
    parts = [content[i : i + 16_384] for i in range(0, len(content), 16_384)]
    return b"".join(frame(DATA, END_STREAM if i == len(parts) - 1 else 0, stream, part) for i, part in enumerate(parts))


def _hpack_string(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()


@contextmanager
def connect(address: str) -> Iterator[socket.socket]:
    """A connection to HOST:PORT on which nothing was said yet."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        yield connection


def frames(connection: socket.socket) -> Iterator[Frame]:
    """What the other side sends until it closes the connection."""
    buffer = b""
    while True:
        while len(buffer) < 9 or len(buffer) < 9 + int.from_bytes(buffer[:3]):
            try:
                received = connection.recv(65_536)
            except ConnectionResetError:
                return
            if not received:
                return
            buffer += received
        end = 9 + int.from_bytes(buffer[:3])
        yield Frame(buffer[3], buffer[4], int.from_bytes(buffer[5:9]), buffer[9:end])
        buffer = buffer[end:]


def last_words(connection: socket.socket, answers_pings: bool = True, with_its_answer: bytes = b"") -> str:
    """Reads until the other side closes the connection; gives the reason of its last GOAWAY, or nothing."""
    reason = ""
    for received in frames(connection):
        if received.kind == GOAWAY:
            reason = received.payload[8:].decode()
        elif received.kind == PING and not received.flags & ACK and answers_pings:
            connection.sendall(frame(PING, ACK, payload=received.payload) + with_its_answer)
    return reason
