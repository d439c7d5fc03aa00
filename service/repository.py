"""The model repository: a directory of bundles by version, and labels that say which of them serve.

    <root>/<version>/    a bundle; versions are whole numbers from 1, never used twice
    <root>/labels.json   {"stable": {"version": 3, "previous": [2, 1]}, "canary": ...}
    <root>/.lock         held by whoever changes anything; says the highest version that there ever was

Bundles and labels.json appear by renaming, so a reader, which takes no lock, sees each of them whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.bundle import Bundle, BundleError, copy_bundle, read_bundle, sync_directory

STABLE = "stable"
LABELS_FILE = "labels.json"
LOCK_FILE = ".lock"
# How many former versions a label remembers: as many rollbacks in a row are possible.
PREVIOUS_MAX = 10
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_PARTIAL = re.compile(r"\.[1-9][0-9]{0,17}\..+|\.labels\.json\..+")
# A label is told from a version by its first letter.
_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,63}")


class RepositoryError(ValueError):
    """The repository is not in a state for what was asked; the text says why in one line."""


@dataclass(frozen=True, slots=True)
class Label:
    """Where a label points.

    Attributes:
        version: What serves under it.
        previous: What did before, the latest first; at most PREVIOUS_MAX.
    """

    version: int
    previous: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"version {self.version}, before it {', '.join(map(str, self.previous)) or 'none'}"

    def to_json(self) -> dict[str, Any]:
        """As in labels.json."""
        return {"version": self.version, "previous": list(self.previous)}


Labels = Mapping[str, Label]


def promoted(labels: Labels, name: str, version: int) -> Labels:
    """The labels with `name` moved to `version`; unchanged if it is there already.

    Raises:
        RepositoryError: `name` is no name for a label.
    """
    if not _LABEL.fullmatch(name):
        raise RepositoryError(f"{name!r} is not a label: a letter a-z, then letters, digits, _ and -, 64 at most")
    before = labels.get(name)
    if before is None:
        return {**labels, name: Label(version)}
    if before.version == version:
        return labels
    return {**labels, name: Label(version, (before.version, *before.previous)[:PREVIOUS_MAX])}


def rolled_back(labels: Labels, name: str) -> Labels:
    """The labels with `name` moved back to what it was before; the version it leaves is forgotten by the label.

    Raises:
        RepositoryError: There is no such label, or nothing was before.
    """
    if name not in labels:
        raise RepositoryError(f"there is no label {name!r}; {_listed(labels)}")
    previous = labels[name].previous
    if not previous:
        raise RepositoryError(
            f"label {name!r} is at version {labels[name].version} and has none before it to go back to"
        )
    return {**labels, name: Label(previous[0], previous[1:])}


def parse_labels(text: str) -> Labels:
    """The content of labels.json; raises RepositoryError naming what is wrong."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RepositoryError(f"{LABELS_FILE}: is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RepositoryError(f"{LABELS_FILE}: is not a JSON object")
    return {name: _parse_label(name, value) for name, value in document.items()}


def format_labels(labels: Labels) -> str:
    """The content of labels.json; `parse_labels` reads it back."""
    return json.dumps({name: label.to_json() for name, label in labels.items()}, indent=1, sort_keys=True) + "\n"


class Repository:
    """A repository on disk. Any number of processes may read and change it at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def versions(self) -> tuple[int, ...]:
        """All versions that there are, ascending; what else lies in the directory is passed over."""
        try:
            names = [entry.name for entry in self.root.iterdir()]
        except OSError as error:
            raise RepositoryError(f"{self.root}: {error.strerror}") from error
        return tuple(sorted(int(name) for name in names if _VERSION.fullmatch(name)))

    def labels(self) -> Labels:
        """All labels; none where nothing was promoted yet. Raises RepositoryError naming what is wrong."""
        try:
            return parse_labels((self.root / LABELS_FILE).read_text())
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise RepositoryError(f"{LABELS_FILE}: {error}") from error

    def bundle(self, version: int) -> Path:
        """Where the bundle of a version stands, or would."""
        return self.root / str(version)

    def read(self, version: int) -> Bundle:
        """The bundle of a version; raises BundleError with all that is wrong with it."""
        if self.bundle(version).is_symlink():
            raise BundleError(["is a link"])
        return read_bundle(self.bundle(version))

    def faults(self, version: int) -> tuple[str, ...]:
        """What is wrong with the files of a version, a line each."""
        try:
            self.read(version)
        except BundleError as error:
            return error.faults
        return ()

    def publish(self, bundle: Path) -> int:
        """Copies a bundle into the repository, under no label; returns its version.

        Raises:
            BundleError: The bundle is not to be served.
            RepositoryError: labels.json can not be read: a version that it still names might be given out again.
            OSError: The disk refuses.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._remove_partial()
            labelled = [v for label in self.labels().values() for v in (label.version, *label.previous)]
            version = max((self._highest(), *self.versions(), *labelled)) + 1
            copy_bundle(bundle, self.bundle(version))
            # Whole or not at all, up to a crash in between: then the version itself is there.
            (self.root / LOCK_FILE).write_text(f"{version}\n")
        return version

    def _highest(self) -> int:
        """The highest version that was ever published; 0 where the file does not say."""
        text = (self.root / LOCK_FILE).read_text(errors="replace").strip()
        return int(text) if _VERSION.fullmatch(text) else 0

    def promote(self, version: int, name: str) -> Label:
        """Moves a label to a version; returns where it points now.

        Raises:
            RepositoryError: There is no such version, it is not sound, or the label's name or labels.json is no good.
            OSError: The disk refuses.
        """
        with self._locked():
            return self._write(promoted(self.labels(), name, version), name)

    def rollback(self, name: str) -> Label:
        """Moves a label back to where it was before; returns where it points now.

        Raises:
            RepositoryError: It was nowhere before, that version is gone or not sound, or labels.json is no good.
            OSError: The disk refuses.
        """
        with self._locked():
            return self._write(rolled_back(self.labels(), name), name)

    def _write(self, labels: Labels, name: str) -> Label:
        """Writes labels.json if the version under the changed label is sound."""
        label = labels[name]
        if label.version not in self.versions():
            there = ", ".join(map(str, self.versions())) or "none"
            raise RepositoryError(f"there is no version {label.version}; there are {there}")
        if faults := self.faults(label.version):
            raise RepositoryError(f"version {label.version}: {'; '.join(faults)}")
        partial = self.root / f".{LABELS_FILE}.{os.getpid()}"
        with partial.open("w") as file:
            file.write(format_labels(labels))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.root / LABELS_FILE)
        sync_directory(self.root)
        return label

    def _remove_partial(self) -> None:
        """Removes what a killed process left: whoever holds the lock is the only one at work."""
        for entry in self.root.iterdir():
            if _PARTIAL.fullmatch(entry.name):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Waits for its turn to change the repository; the system lets go of the lock of a process that dies."""
        try:
            descriptor = os.open(self.root / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RepositoryError(f"{self.root}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _parse_label(name: str, value: Any) -> Label:
    if not _LABEL.fullmatch(name):
        raise RepositoryError(f"{LABELS_FILE}: {name!r} is not a label")
    if not isinstance(value, dict) or not {"version"} <= value.keys() <= {"version", "previous"}:
        raise RepositoryError(f"{LABELS_FILE}: {name}: must be an object of version and, if it has any, previous")
    previous = value.get("previous", [])
    if not isinstance(previous, list) or not all(map(_is_version, (value["version"], *previous))):
        raise RepositoryError(f"{LABELS_FILE}: {name}: versions must be whole numbers from 1")
    return Label(value["version"], tuple(previous))


def _is_version(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 10**18


def _listed(labels: Labels) -> str:
    return f"there are {', '.join(sorted(labels))}" if labels else "there are none"
