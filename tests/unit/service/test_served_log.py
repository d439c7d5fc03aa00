"""The served log on real files: rotation, full and stuck disks, kill -9."""

from __future__ import annotations

import errno
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from service.generated.timelines.ranking.v1.served_log_pb2 import ServedRecord
from service.served_log import CorruptLogError, LogFiles, ServedLog, logs_features, read_log
from tests.rlimits import limited


def record(number: int, request_bytes: int = 0) -> ServedRecord:
    return ServedRecord(viewer_id=number, request=b"r" * request_bytes)


def viewers(path: Path) -> list[int]:
    return [r.viewer_id for r in read_log(path)]


def append_all(files: LogFiles, numbers: range, request_bytes: int = 0) -> None:
    for number in numbers:
        files.append(record(number, request_bytes).SerializeToString())


def files_of_at_most(size: int) -> AbstractContextManager[None]:
    """The kernel takes no byte of a file beyond `size`: a short write first, then EFBIG."""
    return limited(resource.RLIMIT_FSIZE, size)


class StuckDisk(LogFiles):
    """Takes nothing until it is released."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.reached = threading.Event()
        self.released = threading.Event()

    def append(self, payload: bytes) -> None:
        self.reached.set()
        self.released.wait()
        super().append(payload)


class Drops:
    """Counts calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    """A file that was put together by hand from the documented layout is read; the writer writes the same bytes."""
    payload = bytes([0x08, 0x07])  # Field 1 (viewer_id), varint 7.
    head = struct.pack("<I", 2) + struct.pack("<I", zlib.crc32(payload))
    by_hand = b"TRSLOG\r\n" + head + struct.pack("<I", zlib.crc32(head)) + payload
    (tmp_path / "by_hand").write_bytes(by_hand)

    files = LogFiles(tmp_path / "log")
    append_all(files, range(7, 8))
    files.close()

    assert viewers(tmp_path / "by_hand") == [7]
    assert (tmp_path / "log" / "served-00000001.log").read_bytes() == by_hand


def test_a_file_ends_before_it_grows_too_large(tmp_path: Path) -> None:
    """No file of several records exceeds its limit, and the records come back in the order of writing."""
    files = LogFiles(tmp_path, file_bytes_max=200)
    append_all(files, range(100), request_bytes=20)
    files.close()

    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) > 10
    assert max(sizes) <= 200
    assert viewers(tmp_path) == list(range(100))


def test_a_record_larger_than_a_file_has_one_of_its_own(tmp_path: Path) -> None:
    """A record beyond the limit is written whole, alone in its file."""
    files = LogFiles(tmp_path, file_bytes_max=200)
    append_all(files, range(2))
    append_all(files, range(2, 3), request_bytes=1000)
    append_all(files, range(3, 5))
    files.close()

    assert [viewers(path) for path in sorted(tmp_path.iterdir())] == [[0, 1], [2], [3, 4]]


def test_files_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Nine digits come after eight, and a stranger's file is neither read nor in the way."""
    (tmp_path / "served-notes.log").write_text("not ours")
    (tmp_path / "served-99999999.log").write_bytes(b"")
    files = LogFiles(tmp_path, file_bytes_max=30)
    append_all(files, range(4))
    files.close()

    assert (tmp_path / "served-100000000.log").exists()
    assert viewers(tmp_path) == [0, 1, 2, 3]


def test_a_new_process_appends_to_no_old_file(tmp_path: Path) -> None:
    """After a crash in the middle of a record the log goes on in a file of its own, and all else is read."""
    before = LogFiles(tmp_path)
    append_all(before, range(3))
    before.close()
    torn = tmp_path / "served-00000001.log"
    os.truncate(torn, torn.stat().st_size - 1)

    after = LogFiles(tmp_path)
    append_all(after, range(10, 12))
    after.close()

    assert viewers(tmp_path) == [0, 1, 10, 11]


def test_no_two_writers_share_a_file(tmp_path: Path) -> None:
    """However close together servers on one directory begin their files, each record is in one of them, whole."""
    start = threading.Barrier(8)

    def write(writer: int) -> None:
        for turn in range(20):
            start.wait()
            files = LogFiles(tmp_path)
            append_all(files, range(100 * writer + turn, 100 * writer + turn + 1))
            files.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))

    assert sorted(viewers(tmp_path)) == [100 * writer + turn for writer in range(8) for turn in range(20)]


def test_a_half_written_record_is_cut_off_and_writing_goes_on(tmp_path: Path) -> None:
    """Where the disk takes only a part of a record, the log stays readable, before and after space returns."""
    files = LogFiles(tmp_path)
    append_all(files, range(3), request_bytes=100)
    with files_of_at_most(500), pytest.raises(OSError, match="large") as refused:
        append_all(files, range(3, 5), request_bytes=100)
    while_full = viewers(tmp_path)
    append_all(files, range(10, 12))
    files.close()

    assert refused.value.errno == errno.EFBIG
    assert while_full == [0, 1, 2, 3]
    assert viewers(tmp_path) == [0, 1, 2, 3, 10, 11]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_can_not_be_cut_back_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where half a record can not be removed either, it stays as a torn tail and the next file takes over."""

    def refuse(_fd: int, _length: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    files = LogFiles(tmp_path)
    append_all(files, range(3), request_bytes=100)
    monkeypatch.setattr(os, "ftruncate", refuse)
    with files_of_at_most(400), pytest.raises(OSError, match="too large"):
        append_all(files, range(3, 4), request_bytes=100)
    append_all(files, range(10, 12))
    files.close()

    assert [viewers(path) for path in sorted(tmp_path.iterdir())] == [[0, 1, 2], [10, 11]]


FULL_DISK = """
import errno, os, sys
from pathlib import Path
from service.generated.timelines.ranking.v1.served_log_pb2 import ServedRecord
from service.served_log import LogFiles, ServedLog, read_log

disk, drops, payload = Path(sys.argv[1]), [], b"r" * 3000
(disk / "ballast").write_bytes(b"b" * 100_000)
log = ServedLog(LogFiles(disk / "log"), on_drop=lambda: drops.append(1))
for number in range(40):
    log.offer(ServedRecord(viewer_id=number, request=payload))
log.close()
written = [r.viewer_id for r in read_log(disk / "log")]
assert 5 < len(written) < 40 and written == list(range(len(written))), written
assert len(drops) == 40 - len(written), drops

files = LogFiles(disk / "log")
try:
    files.append(payload)
    raise SystemExit("the disk was not full")
except OSError as error:
    assert error.errno == errno.ENOSPC, error
(disk / "ballast").unlink()
files.append(ServedRecord(viewer_id=99).SerializeToString())
files.close()
assert [r.viewer_id for r in read_log(disk / "log")] == [*written, 99]
print("good")
"""


@pytest.mark.foreign
def test_a_full_disk_drops_records_until_there_is_space(tmp_path: Path) -> None:
    """On a real file system without space records are counted and dropped, and the log goes on when some is freed."""
    mount = 'mount -t tmpfs -o size=160k tmpfs "$1" && exec "$2" -c "$3" "$1"'
    run = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, FULL_DISK]
    try:
        answer = subprocess.run(run, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("needs unshare of util-linux")
    if "unshare" in answer.stderr or "mount" in answer.stderr:
        pytest.skip(f"needs the right to mount in a user namespace: {answer.stderr.strip()}")

    assert (answer.stdout, answer.stderr.count("No space left"), answer.returncode) == ("good\n", 1, 0)


def test_a_stuck_disk_holds_nobody_up(tmp_path: Path) -> None:
    """With the writer blocked, offers return, the queue fills to its bound, and what is beyond is counted."""
    disk, drops = StuckDisk(tmp_path), Drops()
    log = ServedLog(disk, on_drop=drops, queue_bytes_max=1000)
    log.offer(record(0))
    assert disk.reached.wait(10)
    for number in range(1, 21):
        log.offer(record(number, request_bytes=90))
    dropped_while_stuck = drops.count
    disk.released.set()
    log.close()

    payload_bytes = len(record(1, request_bytes=90).SerializeToString())
    assert dropped_while_stuck == 20 - 1000 // payload_bytes
    assert viewers(tmp_path) == list(range(1 + 1000 // payload_bytes))
    assert drops.count == dropped_while_stuck


def test_the_queue_has_room_again_once_it_was_written(tmp_path: Path) -> None:
    """The bound is on what waits, not on all that was ever offered."""
    disk, drops = StuckDisk(tmp_path), Drops()
    disk.released.set()
    log = ServedLog(disk, on_drop=drops, queue_bytes_max=200)
    for number in range(50):
        disk.reached.clear()
        log.offer(record(number, request_bytes=150))
        assert disk.reached.wait(10)
    log.close()

    assert drops.count == 0
    assert viewers(tmp_path) == list(range(50))


def test_closing_gives_up_on_a_disk_that_stays_stuck(tmp_path: Path) -> None:
    """A drain does not wait for ever: what is still queued is counted as dropped, and so is what comes later."""
    disk, drops = StuckDisk(tmp_path), Drops()
    log = ServedLog(disk, on_drop=drops)
    for number in range(5):
        log.offer(record(number))
    assert disk.reached.wait(10)
    log.close(timeout_s=0.01)
    log.offer(record(5))
    disk.released.set()

    assert drops.count == 5


def test_a_disk_that_fails_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A thousand failed records are a thousand in the counter and one line in the operator's log."""
    (tmp_path / "gone").mkdir()
    drops = Drops()
    files = LogFiles(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    log = ServedLog(files, on_drop=drops)
    for number in range(1000):
        log.offer(record(number))
    log.close()

    assert drops.count == 1000
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "No such file or directory" in caplog.text


def test_a_directory_that_can_not_be_made_is_refused_at_once(tmp_path: Path) -> None:
    """A log under a file, not a directory, is an error before anything is served."""
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        LogFiles(tmp_path / "file" / "log")


KILLED = """
import sys
from pathlib import Path
from service.generated.timelines.ranking.v1.served_log_pb2 import ServedRecord
from service.served_log import LogFiles, ServedLog

directory = Path(sys.argv[1])
log = ServedLog(LogFiles(directory, file_bytes_max=1 << 20), on_drop=lambda: None)
number = 0
while True:
    log.offer(ServedRecord(viewer_id=number, request=b"r" * 50_000))
    number += 1
    if number % 100 == 0 and len(list(directory.iterdir())) >= 3:
        print("writing", flush=True)
"""


def test_reading_ends_where_the_log_ended_when_it_began(tmp_path: Path) -> None:
    """A reader that causes a record for each that it reads comes to an end."""
    files = LogFiles(tmp_path, file_bytes_max=100)
    append_all(files, range(10))
    seen = []
    for found in read_log(tmp_path):
        seen.append(found.viewer_id)
        append_all(files, range(100 + len(seen), 101 + len(seen)))
        assert len(seen) <= 10
    files.close()

    assert seen == list(range(10))
    assert len(viewers(tmp_path)) == 20


def test_a_file_that_is_removed_is_not_written_to(tmp_path: Path) -> None:
    """Somebody cleared the directory: what is served from then on is in a new file, not in one that nobody can open."""
    files = LogFiles(tmp_path)
    append_all(files, range(3))
    (tmp_path / "served-00000001.log").unlink()
    append_all(files, range(3, 5))
    files.close()

    assert viewers(tmp_path) == [3, 4]


def test_kill_9_leaves_a_readable_log(tmp_path: Path) -> None:
    """A process that is killed while it writes leaves whole records, in order, in all of its files."""
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    numbers = viewers(tmp_path)

    assert len(numbers) >= 2 * 20
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(("content", "reason"), [(b"PAR1", "not a served log"), (b"TRSLOG\n" + b"x" * 20, "not a ser")])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    """A file that never was a served log, or went through a line-end translation, is named as such."""
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(CorruptLogError, match=reason):
        viewers(tmp_path / "other")


def test_the_features_of_a_stated_share_of_requests_are_kept() -> None:
    """Of 20,000 requests about a tenth is chosen (5 standard deviations are 212), always the same ones."""

    def choose(share: float) -> list[bool]:
        return [logs_features(f"r{i}", share) for i in range(20_000)]

    chosen = choose(0.1)

    assert abs(sum(chosen) - 2000) < 212
    assert chosen == choose(0.1)
    assert all(tenth <= half for tenth, half in zip(chosen, choose(0.5), strict=True))
    assert (sum(choose(0.0)), sum(choose(1.0))) == (0, 20_000)
