r"""The served log: what was served, written off the request path, readable after any crash.

A directory of files `served-00000001.log`, numbered in the order of writing. A file is

    8 bytes   b"TRSLOG\r\n", so that a transfer that translates line ends shows
    then for each record, integers little-endian:
    4 bytes   length of the payload
    4 bytes   CRC-32 (zlib's) of the payload
    4 bytes   CRC-32 of the 8 bytes before it, so that a damaged length can not pass for a torn tail
    payload   a ServedRecord in protobuf

A process that is killed leaves at most one record cut short, at the end of its file: the torn tail, which a reader
ignores. A new process never appends to a file of an old one. Nothing is synced: a machine that loses power may lose
the last seconds.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from service.generated.timelines.ranking.v1 import served_log_pb2
from service.stable_hash import uniform

MAGIC = b"TRSLOG\r\n"
FILE_BYTES_MAX = 128 << 20
QUEUE_BYTES_MAX = 64 << 20  # Room for two requests of the largest legal size, or for seconds of usual ones.
CLOSE_TIMEOUT_S = 5.0

_FILE_NAME = re.compile(r"served-([0-9]{8,})\.log")
_LENGTH_AND_CRC = struct.Struct("<II")
_CRC = struct.Struct("<I")
_HEADER_BYTES = _LENGTH_AND_CRC.size + _CRC.size
_FEATURES_SALT = "timeline-ranker/log-features"

logger = logging.getLogger(__name__)


class CorruptLogError(ValueError):
    """A served log holds what no writer, killed at any moment, leaves behind."""


def logs_features(request_id: str, share: float) -> bool:
    """Whether the request as received goes into the log.

    Args:
        request_id: Decides: the same on every replica, and in a replay.
        share: Of the requests, 0 to 1.
    """
    return uniform(_FEATURES_SALT, request_id) < share


def read_log(path: Path) -> Iterator[served_log_pb2.ServedRecord]:
    """Reads the records of a log, oldest first.

    Args:
        path: A directory of a log, or one file of it. It may be in use by a writer: what comes after the first record
            is asked for is not read, lest a reader whose work is written to the same log never ends.

    Raises:
        OSError: The path can not be read.
        CorruptLogError: A byte is not what was written. All records before it were yielded.
    """
    paths = [p for _, p in _files(path)] if path.is_dir() else [path]
    sizes = [p.stat().st_size for p in paths]
    for file_path, size in zip(paths, sizes, strict=True):
        with file_path.open("rb") as file:
            for payload in _read_payloads(file, size, str(file_path)):
                yield served_log_pb2.ServedRecord.FromString(payload)


class LogFiles:
    """The files of one writer in a directory; not for several threads."""

    def __init__(self, directory: Path, *, file_bytes_max: int = FILE_BYTES_MAX) -> None:
        """Writes nothing yet.

        Args:
            directory: Made if missing.
            file_bytes_max: A file ends before the record that would make it larger; a record that is larger by
                itself has a file of its own.

        Raises:
            OSError: The directory can not be made or written to.
        """
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(f"{directory} can not be written to")
        self._directory = directory
        self._file_bytes_max = file_bytes_max
        self._fd: int | None = None
        self._size = 0

    def append(self, payload: bytes) -> None:
        """Writes one record.

        Raises:
            OSError: It is not in the log; the log is as if it had not been tried, and the next one may succeed.
        """
        head = _LENGTH_AND_CRC.pack(len(payload), zlib.crc32(payload))
        record = b"".join((head, _CRC.pack(zlib.crc32(head)), payload))
        if self._size + len(record) > self._file_bytes_max or (self._fd is not None and _is_gone(self._fd)):
            self.close()
        if self._fd is None:
            self._fd = _create_next(self._directory)
        if not self._size:
            record = MAGIC + record
        try:
            _write_all(self._fd, record)
        except OSError:
            self._cut_back(self._fd)
            raise
        self._size += len(record)

    def close(self) -> None:
        """Ends the file; a later record begins a new one."""
        if self._fd is not None:
            fd, self._fd, self._size = self._fd, None, 0
            os.close(fd)

    def _cut_back(self, fd: int) -> None:
        """Removes half a record, which would hide all that follow it; failing that, lets it be the file's torn tail."""
        try:
            os.ftruncate(fd, self._size)
        except OSError:
            with suppress(OSError):
                self.close()


class ServedLog:
    """Hands records to a thread of its own that writes them, and never waits for it."""

    def __init__(
        self, files: LogFiles, *, on_drop: Callable[[], object], queue_bytes_max: int = QUEUE_BYTES_MAX
    ) -> None:
        """Starts the thread.

        Args:
            files: Belongs to the log from here on.
            on_drop: Called once for each record that does not make it into the log, on any thread.
            queue_bytes_max: Records beyond it are dropped.
        """
        self._files = files
        self._on_drop = on_drop
        self._queue_bytes_max = queue_bytes_max
        # Guards the three below. Held for a few instructions, never while writing.
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._queue_bytes = 0
        self._closed = False
        self._thread = threading.Thread(target=self._write_queued, name="served-log", daemon=True)
        self._thread.start()

    def offer(self, record: served_log_pb2.ServedRecord) -> None:
        """Queues the record, or drops it: the queue is full, or the log closed."""
        payload = record.SerializeToString()
        with self._changed:
            taken = not self._closed and self._queue_bytes + len(payload) <= self._queue_bytes_max
            if taken:
                self._queue.append(payload)
                self._queue_bytes += len(payload)
                self._changed.notify()
        if not taken:
            self._on_drop()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Writes what is queued, and drops what a stuck disk did not take in `timeout_s`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            left = len(self._queue)
            self._queue.clear()
        for _ in range(left):
            self._on_drop()

    def _write_queued(self) -> None:
        failing = False
        while (payload := self._take()) is not None:
            try:
                self._files.append(payload)
            except OSError as error:
                self._on_drop()
                if not failing:
                    logger.warning("served log: %s; dropping records until it can be written to again", error)
                failing = True
                continue
            if failing:
                logger.warning("served log: can be written to again")
            failing = False
        with suppress(OSError):
            self._files.close()

    def _take(self) -> bytes | None:
        """Waits for a record; None when the log is closed and nothing left."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if not self._queue:
                return None
            payload = self._queue.popleft()
            self._queue_bytes -= len(payload)
            return payload


def _files(directory: Path) -> list[tuple[int, Path]]:
    """The log's files with their numbers, in order; whatever else lies there is not ours."""
    return sorted((int(m[1]), path) for path in directory.iterdir() if (m := _FILE_NAME.fullmatch(path.name)))


def _create_next(directory: Path) -> int:
    """Creates the file after the last, open for writing; another process may be at it as well."""
    files = _files(directory)
    number = files[-1][0] + 1 if files else 1
    while True:
        try:
            path = directory / f"served-{number:08d}.log"
            return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        except FileExistsError:
            number += 1


def _is_gone(fd: int) -> bool:
    """Whether somebody removed the file: nobody would ever read what goes there."""
    return os.fstat(fd).st_nlink == 0


def _write_all(fd: int, content: bytes) -> None:
    written = os.write(fd, content)
    while written < len(content):  # A disk that is nearly full takes a part.
        written += os.write(fd, memoryview(content)[written:])


def _read_payloads(file: BinaryIO, size: int, name: str) -> Iterator[bytes]:
    """The payloads in the first `size` bytes."""
    magic = file.read(len(MAGIC))
    if not MAGIC.startswith(magic):
        raise CorruptLogError(f"{name}: not a served log")
    offset = len(magic)
    while offset + _HEADER_BYTES <= size and len(header := file.read(_HEADER_BYTES)) == _HEADER_BYTES:
        length, payload_crc = _LENGTH_AND_CRC.unpack_from(header)
        if _CRC.unpack_from(header, _LENGTH_AND_CRC.size)[0] != zlib.crc32(header[: _LENGTH_AND_CRC.size]):
            raise CorruptLogError(f"{name}: damaged record header at byte {offset}")
        if offset + _HEADER_BYTES + length > size or len(payload := file.read(length)) < length:
            return
        if zlib.crc32(payload) != payload_crc:
            raise CorruptLogError(f"{name}: damaged record at byte {offset}")
        yield payload
        offset += _HEADER_BYTES + length
