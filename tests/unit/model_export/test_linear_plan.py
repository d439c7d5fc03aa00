"""A linear net is a citizen of the same plan, bundle and server as a deep one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import torch

from model_export.datasets.records import RecordSet
from model_export.examples import Examples
from model_export.plan import Plan
from model_export.requests import candidates
from model_export.run import run_plan
from model_export.steps.train import load_trained
from model_export.steps.verify import BUNDLE
from model_export.train import batch_tensors
from service.bundle import read_bundle
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.generated.timelines.ranking.v1 import ranking_pb2_grpc
from tests.server_process import serving


def test_a_linear_plan_is_trained_and_served(small_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """Its first layer is its logits; the server answers what torch says of the same rows, and it has learned."""
    tables = {
        "train": "epochs = 4\nbatch_rows = 256\nthreads = 1\nlearning_rate = 0.05",
        "train.network": 'trunk = "linear"',
    }
    artifacts = run_plan(small_plan(**tables), tmp_path / "out")
    directory = artifacts["verify"] / BUNDLE
    schema = read_bundle(directory).schema
    records = replace(RecordSet.open(artifacts["data"]), schema=schema)
    session = next(records.batches(records.days[-1:])).take(np.arange(10))  # one timeline, ten Tweets
    network = load_trained(artifacts["train"], schema)
    assert network.towers is None
    assert network.first.bias.shape == (2,)

    bins, raw = network.encoding.encode(session.tables)
    nothing = np.zeros_like(session.labels)
    with torch.inference_mode():
        expected = network(*batch_tensors(Examples(bins, raw, nothing, nothing), network.encoding)).sigmoid()
    request = pb.ScoreTweetsRequest(
        viewer_id=1,
        raw=True,
        candidates=candidates(
            schema,
            {**session.tables, "viewer": session.tables["viewer"][:1]},
            tweet_ids=np.arange(1, 11),
            created_at_ms=np.ones(10, np.int64),
            author_index=np.arange(10),
            author_ids=np.arange(1, 11),
        ),
    )
    with serving(directory) as addresses, grpc.insecure_channel(addresses.grpc) as channel:
        response = ranking_pb2_grpc.TimelineRankingServiceStub(channel).ScoreTweets(request)
    np.testing.assert_allclose(np.array(response.raw_probabilities).reshape(10, 2), expected, atol=1e-5)

    metrics = json.loads((artifacts["test"] / "metrics.json").read_text())
    assert all(figures["share"] > 0.3 for figures in metrics.values())
