"""What a server does about a change in its model repository: a pure function from what is there to what is next."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from service.repository import STABLE, Repository

# Name, size, inode and the times in ns of the last change of content and of anything, rights included, of each file of
# a version; empty where there is no directory.
Fingerprint = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A repository, as far as serving goes.

    Attributes:
        labels: Label -> version.
        fingerprints: One for each version that a label names.
    """

    labels: Mapping[str, int]
    fingerprints: Mapping[int, Fingerprint]


@dataclass(frozen=True, slots=True)
class Held:
    """What a server has.

    Attributes:
        loaded: Versions that are ready to serve.
        serving: Label -> version that serves under it; each of them is loaded.
        failed: Versions that could not be loaded -> what they looked like.
    """

    loaded: Set[int] = frozenset()
    serving: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[int, Fingerprint] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What comes next.

    Attributes:
        serving: Label -> version from now on; each of them is loaded.
        load: Versions to load, in this order; then plan anew.
        drop: Loaded versions that nothing needs any more.
    """

    serving: Mapping[str, int]
    load: tuple[int, ...]
    drop: frozenset[int]


def look(repository: Repository) -> Found:
    """Looks at a repository; raises RepositoryError where its labels can not be read."""
    labels = {name: label.version for name, label in repository.labels().items()}
    return Found(labels, {version: _fingerprint(repository.bundle(version)) for version in labels.values()})


def plan(found: Found, held: Held, needed: Set[str] = frozenset({STABLE})) -> Plan:
    """Decides what to load, what to serve and what to let go.

    A label whose version is not there yet, or failed, stays where it is. What failed is tried again when one of its
    files changed, were it only touched. A label that vanished goes with it, unless it is needed.

    Args:
        found: The repository.
        held: What the server has.
        needed: Labels that the server can not be without.
    """
    kept = {name: version for name, version in held.serving.items() if name in found.labels or name in needed}
    ready = {name: version for name, version in found.labels.items() if version in held.loaded}
    wanted = sorted(set(found.labels.values()) - held.loaded, key=lambda v: (v != found.labels.get(STABLE), v))
    serving = {**kept, **ready}
    load = tuple(v for v in wanted if v not in held.failed or held.failed[v] != found.fingerprints[v])
    return Plan(serving, load, frozenset(held.loaded - set(serving.values())))


def _fingerprint(directory: Path) -> Fingerprint:
    files = []
    try:
        for entry in sorted(directory.iterdir()):
            stat = entry.lstat()
            files.append((entry.name, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns))
    except OSError:  # not there, or going away while we look: whatever it becomes, it will look different
        return ()
    return tuple(files)
