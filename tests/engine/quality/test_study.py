"""What is compared: each made model has the weights it should, and each row is of its own."""

import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.model.loading import load_model
from engine.quality.bits import bits_per_byte
from engine.quality.corpus import Domain
from engine.quality.family import Family
from engine.quality.made import (
    consolidated,
    layout_of,
    merged,
    moved,
    shuffled,
    state,
    with_mean_experts,
)
from engine.quality.study import Measure, Row, by_number, by_ratio
from engine.variants.merging import average, task_arithmetic, ties
from engine.variants.positions import expert_places

NAMES = ("ada", "bob", "eve")


def silent(_: float, __: str) -> None:
    """Tell nobody."""


def rows_of(rows: list[Row], method: str, **wanted: Any) -> list[Row]:
    """Return the rows of a method with some values."""
    return [
        row for row in rows
        if row.method == method and all(getattr(row, k) == v for k, v in wanted.items())
    ]  # fmt: skip


@pytest.fixture(scope="module")
def ratio_rows(family: Family) -> list[Row]:
    return by_ratio(Measure(family=family, window=16, seed=5), silent)


@pytest.fixture(scope="module")
def number_rows(family: Family) -> list[Row]:
    return by_number(Measure(family=family, window=16, seed=5), silent)


def test_a_random_order_has_the_same_positions_and_turns(family: Family) -> None:
    layout = layout_of(family, NAMES)
    control = shuffled(layout, 3)
    assert sorted(one.position for one in control.ranking) == sorted(
        one.position for one in layout.ranking
    )
    assert [one.source for one in control.ranking] == [one.source for one in layout.ranking]
    assert shuffled(layout, 3) == control
    assert len({shuffled(layout, seed).ranking for seed in range(9)}) > 1


def test_mean_experts_are_means_where_they_are_shared(family: Family) -> None:
    """Of all three at the shared positions; the own everywhere else, and what is no expert."""
    layout = layout_of(family, NAMES).with_ratio(0.5)
    own = {name: load_model(family.folders[name]) for name in NAMES}
    made = with_mean_experts(family, layout, "bob")
    found = expert_places(made)
    assert 0 < len(layout.shared) < len(found)
    for position, places in found.items():
        copies = [expert_places(own[name])[position] for name in NAMES]
        for index, place in enumerate(places):
            mean = sum(copy[index] for copy in copies) / 3
            expected = mean if position in layout.shared else copies[1][index]
            torch.testing.assert_close(place, expected)
    assert torch.equal(made.embed, own["bob"].embed)


def test_a_merged_model_has_every_weight_merged(family: Family) -> None:
    """The average of all weights, by their names on disk; the files are as they were."""
    before = {name: state(load_model(folder)) for name, folder in family.folders.items()}
    made = state(merged(family, NAMES, lambda _, states: average(states)))
    for name, weight in made.items():
        torch.testing.assert_close(weight, sum(before[v][name] for v in NAMES) / 3)
    again = state(load_model(family.folders["ada"]))
    assert all(torch.equal(again[name], weight) for name, weight in before["ada"].items())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, 1.7])
def test_the_base_moved_is_the_merge_at_that_scale(family: Family, share: float) -> None:
    """Both methods are linear in their scale."""
    for merge in (task_arithmetic, ties):
        whole = merged(family, NAMES, partial(merge, scale=1.0))
        expected = state(merged(family, NAMES, partial(merge, scale=share)))
        for name, weight in state(moved(family, whole, share)).items():
            torch.testing.assert_close(weight, expected[name])


def test_by_ratio_measures_everybody_everywhere(ratio_rows: list[Row]) -> None:
    """Nine ratios of the layout and four of each control, for each of three variants."""
    counts = Counter(row.method for row in ratio_rows)
    assert counts == {
        "alone": 3, "base": 3, "layout": 27, "random": 12, "mean experts": 12, "average": 3,
        "task arithmetic": 3, "ties": 3,
    }  # fmt: skip
    assert {row.seed for row in ratio_rows} == {5}
    assert all(0 < row.bits < 16 and math.isfinite(row.bits) for row in ratio_rows)


def test_a_ratio_of_nothing_is_each_served_alone(family: Family, ratio_rows: list[Row]) -> None:
    """And a ratio of one is what assembling gives, asked for the variant's own text."""
    layout = layout_of(family, NAMES)
    for name in NAMES:
        (alone,) = rows_of(ratio_rows, "alone", variant=name)
        (nothing,) = rows_of(ratio_rows, "layout", variant=name, ratio=0.0)
        (everything,) = rows_of(ratio_rows, "layout", variant=name, ratio=1.0)
        assert nothing.bits == alone.bits
        own: Domain = family.domain(name)
        assert everything.bits == bits_per_byte(consolidated(family, layout, name), own.test, 16)


def test_scales_are_chosen_on_validation_text(family: Family, ratio_rows: list[Row]) -> None:
    """One for all variants, as they share the model."""
    for method in ("task arithmetic", "ties"):
        scales = [row.scale for row in rows_of(ratio_rows, method)]
        assert len(scales) == 3
        assert len(set(scales)) == 1


def test_by_number_has_all_choices(number_rows: list[Row]) -> None:
    """Of three variants three pairs and one triple, each variant equally often."""
    layouts = rows_of(number_rows, "layout", ratio=1.0)
    groups = [("ada", "bob"), ("ada", "eve"), ("bob", "eve"), NAMES]
    assert sorted({row.names for row in layouts}) == sorted(groups)
    assert Counter(row.variant for row in layouts if len(row.names) == 2) == dict.fromkeys(NAMES, 2)
    for method in ("average", "task arithmetic", "ties"):
        assert len(rows_of(number_rows, method)) == len(layouts) == 9


def test_rows_are_kept_as_json(ratio_rows: list[Row]) -> None:
    """Nothing is lost on the way."""
    import json
    from dataclasses import asdict

    written = json.loads(json.dumps([asdict(row) for row in ratio_rows]))
    assert [Row.from_json(row) for row in written] == ratio_rows


def test_the_folders_of_a_family_are_trained_once(family: Family, tmp_path: Path) -> None:
    """Raised again, nothing is written."""
    from engine.quality.family import raise_family
    from engine.quality.training import Course

    files = sorted(family.base.parent.rglob("*.safetensors"))
    before = [file.stat().st_mtime_ns for file in files]
    course = Course(steps=2, rate=1e-2, batch=2, window=16)
    spec = load_model(family.base).spec
    raise_family(spec, family.base.parent, family.domains, (course, course), 0, silent)
    assert [file.stat().st_mtime_ns for file in files] == before
    assert len(files) == 4
