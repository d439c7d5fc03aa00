"""Loads a model beside the one that serves, in the way of nobody."""

from __future__ import annotations

import math
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from service.align import Tables
from service.bundle import Bundle, BundleError
from service.decode import Decoder
from service.limits import Limits
from service.model import Model, check_answers, make_model
from service.scoring import Scorer

# Linux's nice value of whoever loads: 19 is the lowest priority, 10 still gets on while requests keep a core busy.
LOADING_NICENESS = 10
# What a new model is timed on: its golden Tweets, repeated to a timeline's worth, in the best of so many runs. One that
# looks slow has some seconds more to be fast in: who loads gives way to requests, so on a busy server all those runs of
# one model may have been interrupted, and a run of the other not.
TIMING_ROWS = 500
TIMING_RUNS = 20
TIMING_PATIENCE_S = 3.0


class ModelLoader:
    """Turns bundles into models that may serve. For one thread at a time."""

    def __init__(self, threads: int, slowdown_max: float) -> None:
        """Makes a loader; call it from a thread of usual priority.

        Args:
            threads: That a single run of a model may use.
            slowdown_max: How many times the time of the serving model a new one may take for the same Tweets.
        """
        self._threads = threads
        self._slowdown_max = slowdown_max
        # A session's threads inherit the priority of the thread that makes it, and keep it: sessions are made in a
        # thread that was there before the loading one stepped back.
        self._sessions = ThreadPoolExecutor(1, "session")
        self._sessions.submit(int).result()

    def load(self, bundle: Bundle, version: str, beside: Model | None) -> Model:
        """Loads, warms up and tries a model.

        Args:
            bundle: As read.
            version: What the model is called in answers.
            beside: What serves, to compare with; None: nothing yet.

        Raises:
            BundleError: The model is not to serve, and why.
        """
        stated = bundle.manifest["graph"]
        session = self._sessions.submit(Scorer, bundle.model, bundle.schema, stated, self._threads)
        model = make_model(bundle, session.result(), version)
        check_answers(model, bundle)
        if beside is not None:
            self._check_speed(model, beside, bundle)
        return model

    def _check_speed(self, model: Model, beside: Model, bundle: Bundle) -> None:
        golden = Decoder(Limits()).candidates(bundle.golden.cases[0].request.candidates)
        rows = np.resize(np.arange(len(golden)), TIMING_ROWS)
        tables, tables_beside = (each.aligner.align(golden)[0].take(rows) for each in (model, beside))
        taken_ns = beside_ns = math.inf
        runs, give_up_s = 0, time.monotonic() + TIMING_PATIENCE_S
        while runs < TIMING_RUNS or (taken_ns > self._slowdown_max * beside_ns and time.monotonic() < give_up_s):
            # In turns, so that whatever else happens on the machine happens to both.
            taken_ns = min(taken_ns, _time_ns(model, tables))
            beside_ns = min(beside_ns, _time_ns(beside, tables_beside))
            runs += 1
        if taken_ns > self._slowdown_max * beside_ns:
            raise BundleError(
                [
                    f"model.onnx: takes {taken_ns / 1e6:.3g} ms for {TIMING_ROWS} Tweets, {taken_ns / beside_ns:.3g} "
                    f"times as long as version {beside.version}; {self._slowdown_max:g} times is the most"
                ]
            )


def step_back() -> None:
    """Lowers the priority of the calling thread, for good: getting it back would take rights that servers lack."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOADING_NICENESS)


def _time_ns(model: Model, tables: Tables) -> int:
    begun_ns = time.perf_counter_ns()
    model.score(tables)
    return time.perf_counter_ns() - begun_ns
