"""A Tweet's score is its own: it does not depend on which other Tweets and authors stand in the request, or where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from service.config import DEFAULT_BUNDLE
from service.decode import Candidates, Decoder
from service.demo import SAMPLE_REQUEST
from service.generated.timelines.ranking.v1 import ranking_pb2 as pb
from service.limits import Limits
from service.model import Model, load_model

# On a processor with AVX2 no bit differs. Others may have kernels that add in another order for a few rows than for
# many: some units in the last place of a float32, which a steep piece of a calibration curve widens.
RAW_TOLERANCE = 1e-6
CALIBRATED_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model() -> Model:
    """The embedded model."""
    return load_model(DEFAULT_BUNDLE, threads=1)


REQUEST = json_format.Parse(SAMPLE_REQUEST.read_bytes(), pb.RankTimelineRequest())
TWEETS, AUTHORS = len(REQUEST.candidates.tweet_ids), len(REQUEST.candidates.author_ids)


def take_rows(table: pb.FeatureTable, rows: Sequence[int]) -> pb.FeatureTable:
    """Some rows of a dense table, in that order."""
    width = len(table.columns)
    taken = pb.FeatureTable(columns=table.columns)
    for row in rows:
        taken.values.extend(table.values[row * width : (row + 1) * width])
    for categorical in table.categorical:
        indices = [categorical.indices[row] for row in rows]
        taken.categorical.add(name=categorical.name, vocabulary=categorical.vocabulary, indices=indices)
    for vector in table.vectors:
        values = [x for row in rows for x in vector.values[row * vector.width : (row + 1) * vector.width]]
        taken.vectors.add(name=vector.name, width=vector.width, values=values)
    return taken


def part(rows: Sequence[int], authors: Sequence[int]) -> Candidates:
    """The Tweets in `rows` of the sample request, its authors in the order of `authors`."""
    whole = REQUEST.candidates
    place = {author: i for i, author in enumerate(authors)}
    return Decoder(Limits()).candidates(
        pb.Candidates(
            tweet_ids=[whole.tweet_ids[row] for row in rows],
            created_at_ms=[whole.created_at_ms[row] for row in rows],
            author_index=[place[whole.author_index[row]] for row in rows],
            author_ids=[whole.author_ids[author] for author in authors],
            viewer=whole.viewer,
            authors=take_rows(whole.authors, authors),
            tweets=take_rows(whole.tweets, rows),
        )
    )


@settings(max_examples=50)
@given(
    rows=st.lists(st.integers(0, TWEETS - 1), min_size=1, max_size=TWEETS, unique=True),
    authors=st.permutations(range(AUTHORS)),
    unused=st.booleans(),
)
def test_a_score_does_not_depend_on_its_neighbours(
    model: Model, rows: list[int], authors: list[int], unused: bool
) -> None:
    """Any of the Tweets in any order, with or without the authors that none of them needs: scores as among all."""
    if not unused:
        needed = {REQUEST.candidates.author_index[row] for row in rows}
        authors = [author for author in authors if author in needed]
    everything = model.score(model.aligner.align(part(range(TWEETS), range(AUTHORS)))[0])
    some = model.score(model.aligner.align(part(rows, authors))[0])

    np.testing.assert_allclose(some.raw, everything.raw[rows], rtol=0, atol=RAW_TOLERANCE)
    np.testing.assert_allclose(
        some.probabilities, everything.probabilities[rows], rtol=CALIBRATED_TOLERANCE, atol=CALIBRATED_TOLERANCE
    )
