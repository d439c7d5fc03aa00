"""From feature tables to bins and raw values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from model_export.datasets.records import Impressions
from model_export.discretize import Discretizer, FeatureBins
from model_export.encode import Encoding, make_encoding, select_features
from model_export.plan import FeaturePlan
from service.schema import Group, Schema

NAN = float("nan")
INF = float("inf")


def bins_of(*boundaries: float) -> FeatureBins:
    return FeatureBins(boundaries, (1.0,) * (len(boundaries) + 1), 0.0, 0.1, 0.0, 1.0)


DISCRETIZER = Discretizer(
    {
        "tweet.likes": bins_of(1, 10),
        "tweet.has_image": bins_of(1),
        "author.strength": bins_of(),
        "author.never": FeatureBins(None, (), 1.0, 1.0, None, None),
        "viewer.hours_away": bins_of(5),
    }
)


@pytest.fixture
def encoding(small_schema: Schema) -> Encoding:
    return make_encoding(small_schema, FeaturePlan(raw_log=("tweet.likes",), raw=("viewer.hours_away",)), DISCRETIZER)


def tables_of(
    tweet: list[float],
    author: list[float],
    viewer: list[float],
    style: tuple[float, ...] = (NAN,) * 4,
    tastes: tuple[float, ...] = (NAN,) * 4,
) -> dict[Group, np.ndarray]:
    return {
        "tweet": np.array([tweet], np.float32),
        "author": np.array([[*author, *style]], np.float32),
        "viewer": np.array([[*viewer, *tastes]], np.float32),
    }


def test_one_row_by_hand(encoding: Encoding) -> None:
    """Slots by group: viewer hours and device, author strength, Tweet likes, image and topic; bins count from 1."""
    tables = tables_of([10, 0, 2, 0.1, 0.2, 0.3, 0.4], [0.5, NAN], [4, 1])

    bins, raw = encoding.encode(tables)

    assert [slot.name for slot in encoding.slots] == [
        "viewer.hours_away",
        "viewer.device",
        "author.strength",
        "tweet.likes",
        "tweet.has_image",
        "tweet.topic",
    ]
    assert bins.tolist() == [[1, 2, 1, 3, 1, 3]]
    by_name: dict[str, list[float]] = {}
    for name, value in zip(encoding.raw_names, raw[0].tolist(), strict=True):
        by_name.setdefault(name, []).append(value)
    assert by_name["viewer.hours_away"] == [4]
    assert by_name["tweet.likes"] == [pytest.approx(np.log(11))]
    assert by_name["tweet.text"] == np.array([0.1, 0.2, 0.3, 0.4], np.float32).tolist()
    assert encoding.offsets.tolist() == [0, 2, 4, 5, 8, 10]
    assert encoding.rows == 13


def test_absent_is_bin_zero_and_raw_nan(encoding: Encoding) -> None:
    """Absence is not a value."""
    bins, raw = encoding.encode(tables_of([NAN] * 7, [NAN] * 2, [NAN] * 2))

    assert bins.tolist() == [[0] * 6]
    assert np.isnan(raw).all()


def test_logarithm_keeps_the_sign(small_schema: Schema) -> None:
    """sign(x) * log(1 + |x|)."""
    schema = small_schema.select([("author", "strength")])
    encoding = make_encoding(schema, FeaturePlan(use=("author.strength",), binned=(), raw_log=("*",)), DISCRETIZER)

    _bins, raw = encoding.encode({"author": np.array([[-9.0], [0.0], [9.0]], np.float32)})

    assert raw.ravel().tolist() == [pytest.approx(-np.log(10)), 0, pytest.approx(np.log(10))]


def test_feature_never_present_is_not_read(encoding: Encoding, make_impressions: Callable[..., Impressions]) -> None:
    """It has no bins, so whatever it holds later changes nothing."""
    impressions = make_impressions(5, 0)
    bins, raw = encoding.encode(impressions.tables)
    impressions.tables["author"][:, 1] = 7.0

    assert (encoding.encode(impressions.tables)[0] == bins).all()
    assert np.array_equal(encoding.encode(impressions.tables)[1], raw, equal_nan=True)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (tables_of([INF, 0, 0, 0, 0, 0, 0], [0, 0], [0, 0]), r"tweet\.likes: infinite"),
        (tables_of([0, 0, 0, 0, -INF, 0, 0], [0, 0], [0, 0]), r"tweet\.text: infinite"),
        (tables_of([0, 0, 3, 0, 0, 0, 0], [0, 0], [0, 0]), r"tweet\.topic: a category outside 0 to 2"),
        (tables_of([0, 0, -1, 0, 0, 0, 0], [0, 0], [0, 0]), r"tweet\.topic: a category outside"),
    ],
)
def test_what_is_no_value_is_refused(encoding: Encoding, tables: dict[Group, np.ndarray], message: str) -> None:
    """The error names the feature."""
    with pytest.raises(ValueError, match=message):
        encoding.encode(tables)


def test_selection_by_patterns(small_schema: Schema) -> None:
    """What is used and not left out, in the schema's order."""
    selected = select_features(small_schema, FeaturePlan(use=("tweet.*", "viewer.device"), leave_out=("*.topic",)))

    assert [(f.group, f.name) for f in selected.features] == [
        ("tweet", "likes"),
        ("tweet", "has_image"),
        ("tweet", "text"),
        ("viewer", "device"),
    ]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (FeaturePlan(use=("tweet.like",)), r"'tweet\.like' is not known; did you mean 'tweet\.likes'"),
        (FeaturePlan(raw=("tweet.dislikes",)), r"'tweet\.dislikes' is not known; did you mean 'tweet\.likes'"),
        (FeaturePlan(leave_out=("*",)), "nothing is left"),
        (FeaturePlan(binned=("tweet.*", "viewer.*")), r"author\.strength is used, but neither binned nor raw"),
    ],
)
def test_plans_that_make_no_sense_are_refused(small_schema: Schema, plan: FeaturePlan, message: str) -> None:
    """A typo in a pattern would otherwise silently drop a feature."""
    with pytest.raises(ValueError, match=message):
        select_features(small_schema, plan)


def test_discretizer_must_know_what_is_binned(small_schema: Schema) -> None:
    """One taken from another run may not."""
    with pytest.raises(ValueError, match=r"does not know viewer\.hours_away"):
        make_encoding(small_schema, FeaturePlan(), Discretizer({}))


DOTS = FeaturePlan(dots=(("tweet.text", "viewer.tastes"), ("author.style", "tweet.text")))


def test_inner_products_by_hand(small_schema: Schema) -> None:
    """After the raw columns, in the plan's order, whichever of a pair is named first; absent where either is."""
    encoding = make_encoding(small_schema, DOTS, DISCRETIZER)
    text: list[float] = [0, 0, 0, 1, 2, 3, 4]

    _, raw = encoding.encode(tables_of(text, [0, 0], [0, 0], style=(1, 1, 1, 1), tastes=(1, 0, -1, 0.5)))
    _, without_style = encoding.encode(tables_of(text, [0, 0], [0, 0], tastes=(1, 0, -1, 0.5)))

    assert encoding.raw_names[-2:] == ("tweet.text x viewer.tastes", "author.style x tweet.text")
    assert raw[0, -2:].tolist() == [0.0, 10.0]
    assert without_style[0, -2] == 0.0
    assert np.isnan(without_style[0, -1])


def test_inner_products_are_part_of_an_encoding_s_identity(small_schema: Schema) -> None:
    """Examples encoded without them are not those encoded with them."""
    with_dots, without = (make_encoding(small_schema, plan, DISCRETIZER) for plan in (DOTS, FeaturePlan()))

    assert with_dots.hash != without.hash


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("tweet.text", "viewer.taste"), r"'viewer\.taste' is no vector that is used"),
        (("tweet.text", "tweet.likes"), r"'tweet\.likes' is no vector"),
        (("author.style", "viewer.tastes"), "wants a vector of the Tweet and one of the viewer or author"),
        (("tweet.text", "tweet.text"), "wants a vector of the Tweet"),
        (("tweet.text",), "wants a vector of the Tweet"),
    ],
)
def test_pairs_that_make_no_product_are_refused(small_schema: Schema, pair: tuple[str, ...], message: str) -> None:
    """The error names the pair."""
    with pytest.raises(ValueError, match=message):
        select_features(small_schema, FeaturePlan(dots=(pair,)))
