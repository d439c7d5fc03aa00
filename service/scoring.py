"""One model in one onnxruntime session."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from service.align import Tables
from service.bundle import BundleError
from service.decode import Floats, Ints
from service.schema import Group, Schema
from service.sparse_table import CHUNK, sparse_feeds, split

OUTPUTS = ["probabilities", "raw_probabilities"]
# The rows that a session is warmed up with: one, and sizes that a timeline has.
WARM_UP_ROWS = (1, 100, 500, 1_500)
# Far more than any of them takes, on the busiest machine: only a graph that does not end gets there.
TRY_S_MAX = 30.0
_TABLES: tuple[tuple[str, Group], ...] = (("viewer", "viewer"), ("authors", "author"), ("tweets", "tweet"))
# Name -> dtype and shape; "*" is a size known only when the graph runs.
Signature = dict[str, tuple[str, list[int | str]]]
_DTYPES = {"tensor(float)": "float32", "tensor(int32)": "int32", "tensor(int64)": "int64"}
_SPARSE: Signature = {
    "tweets_values": ("float32", ["*", "*", CHUNK]),
    "tweets_columns": ("int32", ["*", "*", CHUNK]),
    "tweets_rows": ("int64", ["*", "*"]),
    "tweets_ends": ("int64", ["*"]),
}


class Scores(NamedTuple):
    """What the model says of N Tweets, in the order of the schema's heads.

    Attributes:
        probabilities: float32 [N, heads], calibrated, in [0, 1].
        raw: float32 [N, heads], before calibration.
    """

    probabilities: Floats
    raw: Floats


class Scorer:
    """Scores tables. Shared by all threads: a session may run many calls at a time, and releases the GIL in each.

    Attributes:
        cost_points: Rows and nanoseconds of each run of the warm-up; empty before it.
        sparse_tweets: Whether the model takes the Tweets' scalars as entries; see `Tables`.
    """

    def __init__(self, model: bytes, schema: Schema, stated: Mapping[str, Any], threads: int) -> None:
        """Loads a model.

        Args:
            model: An ONNX file that service/onnx_file.py found sound.
            schema: What it is for.
            stated: Its `inputs` and `outputs` as the manifest has them.
            threads: That a single run may use.

        Raises:
            BundleError: onnxruntime refuses the model, or its inputs and outputs are not the schema's or not those
                stated.
        """
        self.cost_points: list[tuple[int, float]] = []
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Threads that spin after a run would burn the cores that other requests need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Else onnxruntime finds out by itself what the bytes are, and may see another model in them than was checked.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.log_severity_level = 3  # errors: its warnings about unused constants mean nothing to an operator
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a class of its own per kind of failure
            raise BundleError([f"model.onnx: onnxruntime refuses it: {_first_line(error)}"]) from error
        self._schema = schema
        inputs = {i.name for i in self._session.get_inputs()}
        self._dense = [name for name in Tables._fields if name in inputs]
        self.sparse_tweets = "tweets_values" in inputs
        self._check_signature(stated)

    def score(self, tables: Tables) -> Scores:
        """Scores N >= 1 Tweets."""
        return self._run(tables, None)

    def _run(self, tables: Tables, options: onnxruntime.RunOptions | None) -> Scores:
        feeds = {name: getattr(tables, name) for name in self._dense}
        if tables.tweet_scalars is not None:
            scalars = len(self._schema.layouts["tweet"].scalars)
            feeds |= sparse_feeds("tweets", tables.tweet_scalars, len(tables.author_index), scalars)
        return Scores(*self._session.run(OUTPUTS, feeds, options))

    def try_out(self, tables: Tables) -> Scores:
        """As `score`, of a model that is yet to be trusted; raises BundleError where it fails or does not end."""
        options = onnxruntime.RunOptions()
        end = threading.Timer(TRY_S_MAX, setattr, (options, "terminate", True))
        end.start()
        try:
            return self._run(tables, options)
        except Exception as error:  # onnxruntime raises a class of its own per kind of failure
            why = f"takes more than {TRY_S_MAX:g} s" if options.terminate else f"fails: {_first_line(error)}"
            raise BundleError([f"model.onnx: a run for {len(tables.author_index)} Tweets {why}"]) from error
        finally:
            end.cancel()
            end.join()

    def warm_up(self) -> None:
        """Runs the session on typical sizes, so that no caller pays for first allocations, and notes what they cost.

        Raises:
            BundleError: The model fails, or answers with something other than probabilities.
        """
        rng = np.random.default_rng(0)
        layouts = self._schema.layouts
        for rows in WARM_UP_ROWS:
            sizes: dict[Group, int] = {"viewer": 1, "author": max(1, rows // 4), "tweet": rows}
            tables = {}
            for group, size in sizes.items():
                shape = (size, layouts[group].width)
                table = rng.integers(0, 2, shape).astype(np.float32)  # in range for any category
                table[rng.random(shape) < 1 / 3] = np.nan
                tables[group] = table
            author_index = rng.integers(0, sizes["author"], rows)
            begun_ns = time.perf_counter_ns()
            scores = self.try_out(self._tables(tables, author_index))
            self.cost_points.append((rows, time.perf_counter_ns() - begun_ns))
            for name, values in zip(OUTPUTS, scores, strict=True):
                if values.shape != (rows, len(self._schema.heads)):
                    raise BundleError([f"model.onnx: {name} of {rows} Tweets have shape {values.shape}"])
                if not ((values >= 0) & (values <= 1)).all():
                    raise BundleError([f"model.onnx: {name} outside of [0, 1]"])

    def _tables(self, tables: Mapping[Group, Floats], author_index: Ints) -> Tables:
        """Whole tables in the form that the model takes."""
        tweets, entries = tables["tweet"], None
        if self.sparse_tweets:
            tweets, entries = split(tweets, len(self._schema.layouts["tweet"].scalars))
        return Tables(tables["viewer"], tables["author"], author_index, tweets, entries)

    def _check_signature(self, stated: Mapping[str, Any]) -> None:
        """Holds the graph's inputs and outputs against the schema, and the manifest's against the graph's."""
        inputs: Signature = {name: ("float32", ["*", self._schema.layouts[group].width]) for name, group in _TABLES}
        inputs["viewer"][1][0] = 1
        if self.sparse_tweets:
            layout = self._schema.layouts["tweet"]
            inputs["tweets"] = ("float32", ["*", layout.width - len(layout.scalars)])
        inputs = {name: signature for name, signature in inputs.items() if signature[1][1]}
        if self.sparse_tweets:
            inputs |= _SPARSE
        inputs["author_index"] = ("int64", ["*"])
        outputs: Signature = {name: ("float32", ["*", len(self._schema.heads)]) for name in OUTPUTS}
        faults = []
        for side, wanted, values in (
            ("inputs", inputs, self._session.get_inputs()),
            ("outputs", outputs, self._session.get_outputs()),
        ):
            found = [_describe(value) for value in values]
            signature = _signature(found)
            if signature != wanted:
                faults.append(f"model.onnx: {side} are {_show(signature)}, the schema wants {_show(wanted)}")
            if _by_name(stated.get(side)) != _by_name(found):
                faults.append(f"manifest.json: graph {side} are not those of model.onnx")
        if faults:
            raise BundleError(faults)


def _describe(value: Any) -> dict[str, Any]:
    """An input or output as the manifest describes it."""
    return {"name": value.name, "dtype": _DTYPES.get(value.type, value.type), "shape": list(value.shape)}


def _signature(descriptions: list[dict[str, Any]]) -> Signature:
    """Without the names of the sizes that are known only when the graph runs."""
    return {
        d["name"]: (d["dtype"], [size if isinstance(size, int) else "*" for size in d["shape"]]) for d in descriptions
    }


def _by_name(descriptions: Any) -> Any:
    try:
        return sorted(descriptions, key=lambda d: str(d["name"]))
    except (TypeError, KeyError):  # not even a list of descriptions
        return None


def _show(signature: Signature) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in sorted(signature.items()))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
