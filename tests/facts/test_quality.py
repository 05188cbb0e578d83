"""Curves of quality: what is known at their points, between them, and nothing beyond."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import ScenarioError
from moesim.facts.catalog import shipped
from moesim.facts.quality import Curve, load_curve

CONTENT: dict[str, Any] = {
    "name": "mine",
    "metric": "perplexity",
    "better": "lower",
    "axis": "ratio",
    "variants": 2,
    "joined": True,
    "points": [
        {"at": 0, "value": 4.0, "variants": {"a": 3.0, "b": 5.0}},
        {"at": 0.5, "value": 6.0, "variants": {"a": 7.0}},
        {"at": 0.75, "value": 6.0},
    ],
    "basis": "measured",
    "source": "here, today",
    "evidence": "V",
}


def curve(**changes: Any) -> Curve:
    return Curve.model_validate(CONTENT | changes)


def test_a_point_is_what_was_measured() -> None:
    """With each variant's own value."""
    answer = curve().at(0.5)
    assert (answer.value, answer.variants, answer.reason) == (6.0, {"a": 7.0}, None)
    assert not answer.interpolated


def test_between_two_points_it_is_straight() -> None:
    """A quarter of the ratio on: half-way from 4 to 6; b is known on one side only."""
    answer = curve().at(0.25)
    assert (answer.value, answer.variants, answer.interpolated) == (5.0, {"a": 5.0}, True)


@pytest.mark.parametrize("place", [0.76, 1.0])
def test_beyond_the_last_point_nothing_is_known(place: float) -> None:
    answer = curve().at(place)
    assert (answer.value, answer.variants) == (None, {})
    assert answer.reason == f"ratio {place:g} is not among what is known: ratios 0 to 0.75"


def test_points_that_are_not_joined_stand_alone() -> None:
    """And the reason names them, ends of ranges too."""
    lone = curve(joined=False, points=[{"at": 0, "value": 4.0}, {"at": (0.5, 0.75), "value": 6.0}])
    assert lone.at(0.25).reason == ("ratio 0.25 is not among what is known: ratios 0, 0.5 to 0.75")
    assert [lone.at(place).value for place in (0, 0.5, 0.6, 0.75)] == [4.0, 6.0, 6.0, 6.0]


def test_what_is_known_of_different_variants_is_not_mixed() -> None:
    """One point of the whole and one of a variant have no line between them."""
    points = [{"at": 0, "variants": {"a": 3.0}}, {"at": 1, "value": 6.0}]
    assert "on one side" in str(curve(points=points).at(0.5).reason)


def test_numbers_of_models_have_nothing_between() -> None:
    """Three models are neither two nor four."""
    points = [{"at": 2, "value": 0.5}, {"at": 4, "value": 0.4}]
    found = curve(axis="models", variants=None, joined=False, points=points)
    assert found.at(4).value == 0.4
    assert found.at(3).reason == "3 models is not among what is known: numbers of models 2, 4"


@given(st.floats(0, 1))
def test_an_answer_lies_between_its_neighbours_or_is_none(place: float) -> None:
    answer = curve().at(place)
    assert (answer.value is None) == (answer.reason is not None) == (place > 0.75)
    assert answer.value is None or 4.0 <= answer.value <= 6.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": []}, "points: "),
        ({"points": [{"at": 1.5, "value": 1}]}, r"points.0.at: 1.5: must be from 0 to 1"),
        ({"points": [{"at": [0.6, 0.5], "value": 1}]}, "the lower end first"),
        ({"points": [{"at": 0.5, "value": 1}, {"at": 0.5, "value": 2}]}, "in ascending order"),
        ({"points": [{"at": 0.5}]}, "points.0: give value, variants or both"),
        ({"points": [{"at": 0.5, "value": float("nan")}]}, "finite"),
        ({"points": [{"at": float("nan"), "value": 1.0}]}, "must be from 0 to 1"),
        ({"variants": None}, "variants: give it with axis: ratio"),
        ({"axis": "models"}, "variants: give it with axis: ratio, and only there"),
        ({"axis": "models", "variants": None}, "joined: there is nothing between"),
        ({"evidence": "X"}, "evidence: "),
        ({"better": "more"}, "better: "),
        ({"sauce": "x"}, "sauce: unknown key"),
    ],
    ids=str,
)
def test_a_wrong_file_is_one_line(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    """With the file, the field and what it should be."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(CONTENT | changes))
    with pytest.raises(ScenarioError, match=words) as caught:
        load_curve(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", shipped("quality"))
def test_shipped_curves_say_where_they_come_from(name: str) -> None:
    """A publication that can be found or the command that measures it, and what it leaves open."""
    found = load_curve(name)
    assert {"published": "arXiv", "measured": "moesim-engine quality"}[found.basis] in found.source
    assert found.notes
    assert found.joined == (found.basis == "measured" and found.axis == "ratio")
