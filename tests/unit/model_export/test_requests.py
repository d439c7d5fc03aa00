from __future__ import annotations

import numpy as np

from model_export.datasets.world import SCHEMA, sessions
from model_export.requests import feature_table, rank_timeline_request
from service.schema import Feature, GroupLayout

NAN = np.nan


def test_a_table_is_sent_by_name_with_absence_in_each_kind() -> None:
    """Scalars go row-major with NaN, categories with a dictionary of those used, vectors flat."""
    layout = GroupLayout(
        scalars=(Feature("age", "tweet", "continuous"), Feature("has_image", "tweet", "binary")),
        categoricals=(Feature("language", "tweet", "categorical", vocabulary=("en", "ja", "pt")),),
        vectors=(Feature("text", "tweet", "vector", width=2),),
    )
    table = np.array(
        [[1.5, NAN, 2.0, 0.25, 0.5], [NAN, 1.0, NAN, NAN, NAN], [0.0, 0.0, 0.0, -1.0, 0.0]],
        np.float32,
    )

    message = feature_table(layout, table)

    assert list(message.columns) == ["age", "has_image"]
    np.testing.assert_array_equal(message.values, [1.5, NAN, NAN, 1.0, 0.0, 0.0])
    (language,) = message.categorical
    assert (language.name, list(language.vocabulary), list(language.indices)) == ("language", ["en", "pt"], [1, 2, 0])
    (text,) = message.vectors
    assert (text.name, text.width) == ("text", 2)
    np.testing.assert_array_equal(text.values, [0.25, 0.5, NAN, NAN, -1.0, 0.0])


def test_a_visit_of_the_world_becomes_a_request_for_it() -> None:
    """Ids, times and every table's row count are those of the visit."""
    session = next(sessions(seed=5, candidates_min=20, candidates_max=60))

    request = rank_timeline_request(session, SCHEMA)

    assert (request.viewer_id, request.last_visit_ms) == (session.viewer_id, session.last_visit_ms)
    assert list(request.candidates.tweet_ids) == session.tweet_ids.tolist()
    assert list(request.candidates.author_index) == session.author_index.tolist()
    rows = {"viewer": 1, "authors": len(session.author_ids), "tweets": len(session.tweet_ids)}
    for name, count in rows.items():
        message = getattr(request.candidates, name)
        assert len(message.values) == count * len(message.columns)
