"""The layout: a ranking by hand, its file there and back, and every wrong file in one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from engine.variants.layout import Layout, Provenance, Ranked, Variant
from engine.variants.layout_file import read_layout, write_layout
from engine.variants.positions import Position
from moesim.errors import EngineError

DISTANCES = {
    Position(0, 0): 0.7,
    Position(0, 1): 0.3,
    Position(1, 0): 0.2,
    Position(1, 1): 0.9,
}
PROVENANCE = Provenance(made="2025-11-21T12:00:00+00:00", moesim="0.1.0", torch="2.13.0")
THREE = tuple(Variant(name=name, digest=f"{name}{name}") for name in "abc")


def layout(ratio: float = 0.5, variants: tuple[Variant, ...] = THREE[:2]) -> Layout:
    """Return the layout of the four distances."""
    return Layout.ranked(DISTANCES, variants, ratio, PROVENANCE)


def test_a_ranking_by_hand() -> None:
    """Nearest first, variants in turn: the table in the module's docstring."""
    assert [(tuple(one.position), one.source) for one in layout().ranking] == [
        ((1, 0), "a"), ((0, 1), "b"), ((0, 0), "a"), ((1, 1), "b")
    ]  # fmt: skip
    assert [one.source for one in layout(variants=THREE).ranking] == ["a", "b", "c", "a"]


def test_equal_distances_are_in_the_order_of_positions() -> None:
    positions = [Position(1, 1), Position(0, 1), Position(1, 0), Position(0, 0)]
    found = Layout.ranked(dict.fromkeys(positions, 0.5), THREE, 1, PROVENANCE)
    assert [one.position for one in found.ranking] == sorted(positions)


@pytest.mark.parametrize(
    ("ratio", "shared", "copies"), [(0, 0, 8), (0.25, 1, 7), (0.5, 2, 6), (0.75, 3, 5), (1, 4, 4)]
)
def test_the_ratio_ends_the_shared_part(ratio: float, shared: int, copies: int) -> None:
    """Two variants have 8 experts; each shared position saves one."""
    one = layout(ratio)
    assert list(one.shared) == [each.position for each in one.ranking[:shared]]
    assert one.copies == copies
    assert layout(0.5).with_ratio(ratio) == one


def test_whose_expert_a_variant_uses() -> None:
    """At shared positions that of the source, whoever asks; elsewhere its own."""
    assert layout().sources_of("b") == {
        Position(1, 0): "a", Position(0, 1): "b", Position(0, 0): "b", Position(1, 1): "b"
    }  # fmt: skip
    assert layout().sources_of("a")[Position(0, 1)] == "b"
    with pytest.raises(EngineError, match="variant: 'z' is not one of a, b"):
        layout().sources_of("z")


def test_there_and_back(tmp_path: Path) -> None:
    """Distances to the last bit, and all of the provenance."""
    path = tmp_path / "layout.json"
    distances = {position: value / 3 for position, value in DISTANCES.items()}
    one = Layout.ranked(distances, THREE, 1 / 3, PROVENANCE)
    write_layout(path, one)
    assert read_layout(path) == one


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    write_layout(tmp_path / "l.json", layout())
    content = json.loads((tmp_path / "l.json").read_text())
    assert (content["format"], content["version"], content["ratio"]) == ("moesim-layout", 1, 0.5)
    assert content["positions"][0] == {"layer": 1, "expert": 0, "distance": 0.2, "source": "a"}
    assert content["variants"][1] == {"name": "b", "digest": "bb"}


CONTENT = {
    "format": "moesim-layout",
    "version": 1,
    "ratio": 0.5,
    "variants": [{"name": "a", "digest": "aa"}, {"name": "b", "digest": "bb"}],
    "positions": [{"layer": 1, "expert": 0, "distance": 0.2, "source": "a"}],
    "provenance": {"made": "now", "moesim": "0", "torch": "2"},
}
POSITION: dict[str, Any] = CONTENT["positions"][0]  # type: ignore[index]
VARIANT = {"name": "a", "digest": "aa"}
WRONG: list[tuple[str, Any, str]] = [
    ("format", "other", "not a layout file; moesim-engine consolidate makes one"),
    ("version", 2, "version: 2 is not 1; make it again"),
    ("ratio", "0.5", 'ratio: "0.5" is not possible'),
    ("ratio", True, "ratio: true is not possible"),
    ("ratio", 1.5, "ratio: 1.5 must be between 0 and 1"),
    ("ratio", float("nan"), "ratio: NaN is not possible"),
    ("variants", {}, "variants: {} is not possible"),
    ("variants", [VARIANT], "variants: 1 given; consolidation needs two or more"),
    ("variants", [VARIANT, VARIANT], "variants: 'a' is there twice"),
    ("variants", [VARIANT, {"name": "b"}], "variants.1.digest: missing"),
    ("variants", [VARIANT, 7], "variants.1: 7 is not an object"),
    ("positions", [{**POSITION, "layer": 1.0}], "positions.0.layer: 1.0 is not possible"),
    ("positions", [{**POSITION, "distance": float("inf")}], "positions.0.distance: Infinity is"),
    ("positions", [{**POSITION, "colour": 1}], "positions.0.colour: unknown key"),
    ("positions", [POSITION, POSITION], "positions: layer 1 expert 0 is there twice"),
    ("positions", [{**POSITION, "source": "z"}], "source: 'z' is not one of ['a', 'b']"),
    ("provenance", {"made": "now"}, "provenance.moesim: missing"),
    ("extra", 1, "extra: unknown key; remove it"),
]


@pytest.mark.parametrize(
    ("key", "value", "expected"), WRONG, ids=[f"{n}-{w[0]}" for n, w in enumerate(WRONG)]
)
def test_a_wrong_file_says_where(tmp_path: Path, key: str, value: Any, expected: str) -> None:
    path = tmp_path / "layout.json"
    path.write_text(json.dumps({**CONTENT, key: value}))
    with pytest.raises(EngineError, match=re.escape(expected)) as caught:
        read_layout(path)
    assert str(caught.value).startswith(f"{path}: ")


NO_LAYOUTS = {"empty": "", "cut": "{", "list": "[1]", "number": "3", "deep": "[" * 100_000}


@pytest.mark.parametrize("text", NO_LAYOUTS.values(), ids=NO_LAYOUTS)
def test_a_file_that_is_no_layout(tmp_path: Path, text: str) -> None:
    path = tmp_path / "layout.json"
    path.write_text(text)
    with pytest.raises(EngineError, match=r"not a layout file|not readable as JSON"):
        read_layout(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such file; moesim-engine consolidate makes one"):
        read_layout(tmp_path / "nope.json")


def test_the_first_content_is_right(tmp_path: Path) -> None:
    """So that each of the wrong ones is wrong for its own reason."""
    path = tmp_path / "layout.json"
    path.write_text(json.dumps(CONTENT))
    assert read_layout(path).ranking == (Ranked(position=Position(1, 0), distance=0.2, source="a"),)
