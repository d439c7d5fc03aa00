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

from service.bundle import Bundle, BundleError, UnreadableBundleError
from service.model import LoadResult, Model
from service.model_loader import step_back
from service.repository import LABELS_FILE, STABLE, Repository, RepositoryError
from service.serving import ServingError
from service.watch import Fingerprint, Found, Held, Plan, look, plan

logger = logging.getLogger(__name__)

# A version whose files could not be read is tried again after so long, though they look as they did.
UNREADABLE_PAUSE_S = 30.0


class LiveModels:
    """The models of one server. For one thread at a time.

    Attributes:
        serving: Label -> version that serves under it; empty until all that is needed is there.
        complaint: What is wrong with the repository itself; empty: nothing.
    """

    def __init__(
        self,
        repository: Repository,
        load: Callable[[Bundle, str, Model | None], Model],
        serve: Callable[[Mapping[str, Model]], None],
        report: Callable[[str, LoadResult], object],
        needed: Set[str] = frozenset({STABLE}),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Looks at nothing yet.

        Args:
            repository: Where the models are.
            load: From a bundle, a version, and the model that serves, to one that may; raises BundleError.
            serve: Serves these models, by label, from now on; or raises ServingError and changes nothing.
            report: Told of each try to load a version, and what became of it.
            needed: Labels that there must be; they serve on where the repository has them no more.
            clock: Seconds of a clock that never goes back.
        """
        self.serving: Mapping[str, int] = {}
        self.complaint = ""
        self._repository = repository
        self._load = load
        self._serve = serve
        self._report = report
        self._needed = needed
        self._models: dict[int, Model] = {}
        self._refused: Mapping[str, int] = {}
        self._failed: dict[int, Fingerprint] = {}
        self._retry_at_s: dict[int, float] = {}  # for those of them that could not be read
        self._clock = clock

    def watch(self, stop: threading.Event, interval_s: float) -> None:
        """Updates until told to stop, at low priority."""
        step_back()
        while not stop.wait(interval_s):
            try:
                self.update()
            except Exception:  # whatever it was, the next version must not go unseen for it
                logger.exception("model repository")

    def update(self) -> None:
        """Looks at the repository once and does all that follows."""
        try:
            found = look(self._repository)
            if self.serving and not found.labels:
                raise RepositoryError(f"{LABELS_FILE}: has no labels any more")
        except RepositoryError as error:
            self._complain(f"{error}; all models stay")
            return
        self._complain(self._settle(found))
        for version in [v for v, at_s in self._retry_at_s.items() if self._clock() >= at_s]:
            del self._retry_at_s[version]
            self._failed.pop(version, None)
        held_back: dict[int, str] = {}
        for version in self._plan(found).load:
            if fault := self._try(version, found):
                held_back[version] = fault
        # Those loaded after it may have been what it lacked.
        for version, fault in held_back.items():
            self._tell(version, LoadResult.now(fault) if self._refused else LoadResult.now())
        if missing := self._needed - self._plan(found).serving.keys():
            hint = "" if found.labels else "; there are no labels: publish and promote a version"
            self._complain(f"{self._repository.root}: no model is ready under {', '.join(sorted(missing))}{hint}")

    def _try(self, version: int, found: Found) -> str:
        """Loads a version and has it serve, or remembers what it looked like.

        Returns: Why it does not serve though it was loaded; nothing was told then. Empty: all was.
        """
        beside = self._models.get(self.serving.get(STABLE, 0))
        try:
            self._models[version] = self._load(self._repository.read(version), str(version), beside)
            if fault := self._settle(found):
                return fault
            result = LoadResult.now()
        except UnreadableBundleError as error:
            self._retry_at_s[version] = self._clock() + UNREADABLE_PAUSE_S
            result = LoadResult.now(*error.faults)
        except BundleError as error:
            result = LoadResult.now(*error.faults)
        except Exception as error:  # whatever else a bundle manages to trip over must not end the watch either
            logger.exception("version %d", version)
            result = LoadResult.now(f"{type(error).__name__}: {error}")
        if version not in self._models:
            self._failed[version] = found.fingerprints[version]
        self._tell(version, result)
        return ""

    def _tell(self, version: int, result: LoadResult) -> None:
        for line in result.faults:
            logger.error("version %d: refused: %s", version, line)
        if not result.faults:
            logger.info("version %d: loaded", version)
        self._report(str(version), result)

    def _settle(self, found: Found) -> str:
        """Serves what is loaded under the labels that there are, and lets go of the rest; returns why not, if not."""
        next_ = self._plan(found)
        if next_.serving == self._refused or not self._needed <= next_.serving.keys():
            return ""
        self._refused = {}
        if next_.serving != self.serving:
            try:
                self._serve({label: self._models[version] for label, version in next_.serving.items()})
            except ServingError as error:
                self._refused = next_.serving
                return str(error)
            self.serving = next_.serving
            logger.info("serving %s", ", ".join(f"{label}: {version}" for label, version in next_.serving.items()))
        for version in next_.drop:
            del self._models[version]
        return ""

    def _plan(self, found: Found) -> Plan:
        return plan(found, Held(self._models.keys(), self.serving, self._failed), self._needed)

    def _complain(self, complaint: str) -> None:
        """Says what is wrong once, and not again until something else is."""
        if complaint and complaint != self.complaint:
            logger.error("model repository: %s", complaint)
        self.complaint = complaint
