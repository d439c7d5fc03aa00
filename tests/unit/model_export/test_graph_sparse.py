"""Sparse tables of Tweets: the same scores as from dense ones, at the cost of what is present."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.graph import build, signature
from model_export.score import make_feeds, open_graph
from model_export.weights import Floats
from service import onnx_file
from service.align import Tables
from service.scoring import Scorer
from service.sparse_table import split
from tests.nets import RandomNet, nets, reference_raw


def run_sparse(model: bytes, case: RandomNet, rows: list[int] | None = None, threads: int = 1) -> tuple[Floats, Floats]:
    """(probabilities, raw probabilities) of a sparse graph on the case's tables, or on these Tweets of it."""
    chosen = np.arange(len(case.author_index)) if rows is None else np.array(rows)
    session = open_graph(model, threads)
    tables = {**case.tables, "tweet": case.tables["tweet"][chosen]}
    probabilities, raw = session.run(None, make_feeds(session, tables, case.author_index[chosen]))
    return probabilities, raw


@settings(max_examples=60)
@given(nets)
def test_entries_say_what_the_table_says(case: RandomNet) -> None:
    """The slow reference's probabilities, whatever the net and the values; rows without any entry are among them."""
    case.tables["tweet"][::3, : len(case.schema.layouts["tweet"].scalars)] = np.nan
    expected = reference_raw(case.net, case.tables, case.author_index)

    _, raw = run_sparse(build(case.schema, case.net, case.calibration, sparse_tweets=True), case)

    np.testing.assert_allclose(raw, expected, rtol=0, atol=1e-5)


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_int8_rounds_each_row_by_half_a_step(seed: int) -> None:
    """A linear net's logits are off by at most half a scale for each feature, a scale being 2 / 126 of the largest row.

    Categories stand as bits, whose steps may be twice as large as their rows.
    """
    case = RandomNet(seed=seed, linear=True, crosses=0, counts=[0, 0, 6], rows=30)
    dense = build(case.schema, case.net, case.calibration)
    int8 = build(case.schema, case.net, case.calibration, "int8", sparse_tweets=True)
    session = onnxruntime.InferenceSession(dense, providers=["CPUExecutionProvider"])
    exact = session.run(None, make_feeds(session, case.tables, case.author_index))[1]
    tweet = case.net.groups["tweet"]
    matrices = [b.weights for b in tweet.binned] + [c.weights for c in tweet.categoricals]
    largest = max((float(np.abs(rows).max()) for rows in matrices), default=0.0)

    found = run_sparse(int8, case)[1]

    def logit(p: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.asarray(np.log(p.astype(np.float64)) - np.log1p(-p.astype(np.float64)))

    allowed = len(matrices) * largest / 126 + 1e-4
    assert np.abs(logit(found) - logit(exact)).max() <= allowed


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_score_depends_neither_on_neighbours_nor_on_threads(precision: str) -> None:
    """Enough rows for several blocks; one, a few, all reversed; two threads, run again and again."""
    case = RandomNet(seed=11, linear=False, crosses=0, counts=[4, 5, 30], rows=400)
    model = build(case.schema, case.net, case.calibration, precision, sparse_tweets=True)  # type: ignore[arg-type]  # one of two words
    whole = run_sparse(model, case)[1]

    for rows in ([399], [3, 200], list(range(400))[::-1]):
        np.testing.assert_allclose(run_sparse(model, case, rows)[1], whole[rows], rtol=0, atol=2e-6)
    for _ in range(10):
        np.testing.assert_array_equal(run_sparse(model, case, threads=2)[1], whole)


def test_a_server_takes_what_the_graph_says_of_itself() -> None:
    """Its inputs are sound and known from the manifest; it warms up, and scores as `score` of the trainer does."""
    case = RandomNet(seed=5, linear=False, crosses=1, counts=[5, 5, 6], rows=40)
    model = build(case.schema, case.net, case.calibration, "int8", sparse_tweets=True)
    stated = signature(model)
    names = [described["name"] for described in stated["inputs"]]
    layout = case.schema.layouts["tweet"]
    scalars = len(layout.scalars)

    assert [name for name in names if name.startswith("tweets_")] == [
        "tweets_values", "tweets_columns", "tweets_rows", "tweets_ends",
    ]  # fmt: skip
    assert onnx_file.faults(model) == []
    scorer = Scorer(model, case.schema, stated, threads=1)
    assert scorer.sparse_tweets
    scorer.warm_up()
    tweets, entries = split(case.tables["tweet"], scalars)
    tables = Tables(case.tables["viewer"], case.tables["author"], case.author_index, tweets, entries)
    np.testing.assert_array_equal(scorer.score(tables).raw, run_sparse(model, case)[1])
    chosen = [7, 3]
    np.testing.assert_array_equal(
        scorer.score(tables.take(np.array(chosen))).raw, run_sparse(model, case, rows=chosen)[1]
    )
