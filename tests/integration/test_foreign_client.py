from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import npm, toy
from tests.server_process import Addresses

pytestmark = pytest.mark.foreign

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("client.js")
INVALID_ARGUMENT = 3


@pytest.fixture(scope="module")
def answers(toy_server: Addresses, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the Node client got."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    packages = npm.install(tmp_path_factory.mktemp("node"), "@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1")
    done = subprocess.run(
        [node, SCRIPT, ROOT / "proto", toy_server.grpc],
        env=os.environ | {"NODE_PATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    got: dict[str, Any] = json.loads(done.stdout)
    return got


def test_a_client_in_another_language_gets_the_right_timeline(answers: dict[str, Any]) -> None:
    """Order, exact ids, probabilities and scores, against the slow reference of the toy model."""
    response = answers["response"]

    assert response["requestId"] == "from-node"
    assert (response["icymiDecision"], response["degradation"]) == (
        "ICYMI_DECISION_TOO_FEW_CANDIDATES",
        "DEGRADATION_NONE",
    )
    # Newest first: the second Tweet, the third, the first.
    assert response["ranked"]["tweetIds"] == ["9007199254740995", "2", "9007199254740993"]
    assert response["icymi"]["tweetIds"] == response["remainder"]["tweetIds"] == []
    nan = math.nan
    # In the toy's layout: likes, is_reply, language (en 0, ja 1), text of width 2; absent is NaN.
    expected = toy.raw_probabilities(
        viewer=np.array([[nan, nan]]),
        authors=np.array([[0.0, nan], [2.0, nan]]),
        author_index=np.array([1, 1, 0]),
        tweets=np.array([[nan, nan, 1.0, nan, nan], [99.0, nan, nan, nan, nan], [0.0, nan, 0.0, nan, nan]]),
    )
    probabilities = np.array(response["ranked"]["probabilities"]).reshape(3, 3)
    np.testing.assert_allclose(probabilities, expected / 2, atol=1e-6)
    np.testing.assert_allclose(response["ranked"]["scores"], expected / 2 @ [1.0, 2.0, -3.0], atol=1e-6)


def test_it_learns_how_its_columns_fared(answers: dict[str, Any]) -> None:
    """likes and language are known, is_reply and text absent, one column unknown."""
    assert answers["response"]["features"]["tweets"] == {
        "present": 2, "absent": 2, "unknown": 1, "unknownCategories": 0,
    }  # fmt: skip


def test_it_gets_the_rich_error_of_a_bad_request(answers: dict[str, Any]) -> None:
    """Code and the details in the trailers."""
    assert answers["refusal"]["code"] == INVALID_ARGUMENT
    assert "viewer_id" in answers["refusal"]["details"]
