"""Keeps what serves in step with a model repository. A version that fails any step leaves everything as it is.

look    at labels.json and the versions that it names
read    the bundle, verified
load    a session beside the serving one
try     warm-up, golden answers, speed
swap    one reference; a request under way ends on the version that it began on
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from service.bundle import Bundle, BundleError
from service.model import Model
from service.model_loader import step_back
from service.repository import LABELS_FILE, STABLE, Repository, RepositoryError
from service.serving import ServingError
from service.watch import Fingerprint, Found, Held, Plan, look, plan

RESULTS_MAX = 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What became of the latest try to load a version.

    Attributes:
        faults: Why it was refused, a line each; none: it was loaded.
        at_ms: When, Unix ms.
    """

    faults: tuple[str, ...]
    at_ms: int


class LiveModels:
    """The models of one server. `update` and `watch` are for one thread at a time; `results` is for any.

    Attributes:
        results: Version -> what became of it, the RESULTS_MAX latest. Replaced, never changed.
    """

    def __init__(
        self,
        repository: Repository,
        load: Callable[[Bundle, str, Model | None], Model],
        serve: Callable[[Mapping[str, Model]], None],
        report: Callable[[LoadResult], object],
        needed: Set[str] = frozenset({STABLE}),
    ) -> None:
        """Looks at nothing yet.

        Args:
            repository: Where the models are.
            load: From a bundle, a version, and the model that serves, to one that may; raises BundleError.
            serve: Serves these models, by label, from now on; or raises ServingError and changes nothing.
            report: Told of each try to load a version.
            needed: Labels that there must be; they serve on where the repository has them no more.
        """
        self.results: Mapping[int, LoadResult] = {}
        self._repository = repository
        self._load = load
        self._serve = serve
        self._report = report
        self._needed = needed
        self._models: dict[int, Model] = {}
        self._serving: Mapping[str, int] = {}
        self._refused: Mapping[str, int] = {}
        self._failed: dict[int, Fingerprint] = {}
        self._complaint = ""

    def watch(self, stop: threading.Event, interval_s: float) -> None:
        """Updates until told to stop, at low priority."""
        step_back()
        while not stop.wait(interval_s):
            self.update()

    def update(self) -> None:
        """Looks at the repository once and does all that follows."""
        try:
            found = look(self._repository)
            if self._serving and not found.labels:
                raise RepositoryError(f"{LABELS_FILE}: has no labels any more")
        except RepositoryError as error:
            self._complain(f"{error}; all models stay")
            return
        self._complain(self._settle(found))
        for version in self._plan(found).load:
            self._try(version, found)

    def _try(self, version: int, found: Found) -> None:
        """Loads a version and has it serve, or remembers what it looked like."""
        beside = self._models.get(self._serving.get(STABLE, 0))
        try:
            self._models[version] = self._load(self._repository.read(version), str(version), beside)
            fault = self._settle(found)
            result = LoadResult((fault,) if fault else (), _now_ms())
        except BundleError as error:
            result = LoadResult(error.faults, _now_ms())
        except Exception as error:  # whatever else a bundle manages to trip over must not end the watch either
            logger.exception("version %d", version)
            result = LoadResult((f"{type(error).__name__}: {error}",), _now_ms())
        if version not in self._models:
            self._failed[version] = found.fingerprints[version]
        for line in result.faults:
            logger.error("version %d: refused: %s", version, line)
        if not result.faults:
            logger.info("version %d: loaded", version)
        others = [(v, r) for v, r in self.results.items() if v != version]
        self.results = dict([*others, (version, result)][-RESULTS_MAX:])
        self._report(result)

    def _settle(self, found: Found) -> str:
        """Serves what is loaded under the labels that there are, and lets go of the rest; returns why not, if not."""
        next_ = self._plan(found)
        if next_.serving == self._refused or not self._needed <= next_.serving.keys():
            return ""
        self._refused = {}
        if next_.serving != self._serving:
            try:
                self._serve({label: self._models[version] for label, version in next_.serving.items()})
            except ServingError as error:
                self._refused = next_.serving
                return str(error)
            self._serving = next_.serving
            logger.info("serving %s", ", ".join(f"{label}: {version}" for label, version in next_.serving.items()))
        for version in next_.drop:
            del self._models[version]
        return ""

    def _plan(self, found: Found) -> Plan:
        return plan(found, Held(self._models.keys(), self._serving, self._failed), self._needed)

    def _complain(self, complaint: str) -> None:
        """Says what is wrong once, and not again until something else is."""
        if complaint and complaint != self._complaint:
            logger.error("model repository: %s", complaint)
        self._complaint = complaint


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
