from __future__ import annotations

import numpy as np
import pytest

from model_export.fidelity import (
    TOP,
    VIEW_TWEETS_MIN,
    Answers,
    difference,
    fidelity,
    joined,
    rce_points_lost,
    top_overlap,
)

WEIGHTS = np.array([1.0])


def answers(net: list[float], graph: list[float], truth: list[float], view_starts: list[int]) -> Answers:
    by_graph, by_net, true = (np.array(values, np.float32)[:, np.newaxis] for values in (graph, net, truth))
    return Answers(by_graph, by_net, true, np.array(view_starts))


def test_the_difference_is_that_of_one_row_in_a_thousand_of_the_worst_head() -> None:
    """2,001 rows: two are further off than the 99.9th percentile, the third sets it, at half of what is allowed."""
    net = np.full((2_001, 2), 0.1, np.float32)
    graph = net.copy()
    graph[:2, 0] += 0.09
    graph[2, 0] += 0.5 * (0.05 * 0.1 + 1e-4)
    both = Answers(graph, net, net, np.array([0, 2_001]))

    assert difference(both) == pytest.approx(0.5, rel=1e-4)


def test_rce_lost_is_in_points_and_worked_by_hand() -> None:
    """Two rows of p = 0.8 and 0.2: the net says that and reaches 1 - H(0.2) / H(0.5); the graph says 0.5 and gets 0."""
    found = rce_points_lost(answers(net=[0.8, 0.2], graph=[0.5, 0.5], truth=[0.8, 0.2], view_starts=[0, 2]))

    entropy = -(0.8 * np.log2(0.8) + 0.2 * np.log2(0.2))
    assert found == pytest.approx(100 * (1 - entropy), rel=1e-5)


def test_the_overlap_is_of_the_best_ten_of_views_that_are_large_enough() -> None:
    """One large view, of whose best ten the graph puts two elsewhere; a small view upside down counts for nothing."""
    large = np.linspace(0.9, 0.1, VIEW_TWEETS_MIN).tolist()
    swapped = [*large]
    swapped[8:10], swapped[20:22] = large[20:22], large[8:10]
    small = [0.4, 0.3, 0.2]

    found = top_overlap(
        answers([*large, *small], [*swapped, *small[::-1]], [0.5] * 33, [0, VIEW_TWEETS_MIN, VIEW_TWEETS_MIN + 3]),
        WEIGHTS,
    )

    assert found == (TOP - 2) / TOP


def test_figures_over_all_days_stand_with_those_of_single_days() -> None:
    """Value of all, lowest and highest of a day; views stay apart when days are joined; what is unknown is left out."""
    same, off = [0.2] * 40, [0.3] * 40
    first = answers(same, same, [0.2] * 40, [0, 20, 40])
    second = answers(same, off, [0.2] * 40, [0, 40])

    assert joined([first, second]).view_starts.tolist() == [0, 20, 40, 80]
    found = fidelity([first, second], WEIGHTS)
    assert found["Q4_difference"].min == 0
    assert found["Q4_difference"].value == found["Q4_difference"].max == pytest.approx(0.1 / 0.0101, rel=1e-4)
    assert found["Q4_rce_points_lost"].min == 0 < found["Q4_rce_points_lost"].value < found["Q4_rce_points_lost"].max
    assert "Q4_top10_overlap" not in found
