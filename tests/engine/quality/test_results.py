"""What comes out: means by hand, curves that scenarios read, a table and a plot."""

import re
from pathlib import Path
from statistics import stdev
from typing import Any
from xml.etree import ElementTree

import pytest

from engine.quality.plot import plot
from engine.quality.results import means, number_curve, ratio_curve, write_curve
from engine.quality.study import Row
from engine.quality.table import table
from moesim.facts.quality import load_curve


def row(method: str, variant: str, bits: float, **more: Any) -> Row:
    given = {"seed": 0, "names": ("a", "b"), **more}
    return Row(method=method, variant=variant, bits=bits, **given)


ALONE = [
    row("alone", name, bits + seed, seed=seed, names=(name,))
    for seed in (0, 1)
    for name, bits in (("a", 2.0), ("b", 4.0))
]
SHARED = [
    row("layout", name, bits + add, seed=seed, ratio=ratio)
    for ratio, add in ((0.0, 0.0), (1.0, 0.5))
    for seed, more in ((0, 0.0), (1, 1.5))
    for name, bits in (("a", 2.0 + more), ("b", 4.0 + more))
]
AVERAGE = [row("average", name, 5.0, seed=seed) for seed in (0, 1) for name in ("a", "b")]


def test_means_by_hand() -> None:
    """Seeds 0 and 1 have 3 and 4 bits alone; with everything shared 3.5 and 5: 0.5 and 1 above."""
    cells = means([*ALONE, *SHARED, *AVERAGE])
    alone, _, shared, averaged = cells
    assert (alone["method"], alone["bits"], alone["loss"], alone["variants"]) == (
        "alone",
        3.5,
        0,
        1,
    )
    assert (shared["ratio"], shared["bits"], shared["loss"]) == (1.0, 4.25, 0.75)
    assert shared["spread"] == pytest.approx(stdev([3.5, 5.0]))
    assert shared["loss_spread"] == pytest.approx(stdev([0.5, 1.0]))
    assert shared["by_variant"] == {"a": 3.25, "b": 5.25}
    assert (averaged["ratio"], averaged["spread"], averaged["loss"]) == (None, 0.0, 1.5)


def test_one_seed_has_no_spread() -> None:
    (cell,) = means(one for one in ALONE if one.seed == 0)
    assert (cell["spread"], cell["loss_spread"]) == (None, None)


def test_a_ratio_curve_is_read_as_it_was_measured(tmp_path: Path) -> None:
    """By what scenarios read it with; half-way between two ratios is between their values."""
    curve = ratio_curve("byte-moe", means([*ALONE, *SHARED, *AVERAGE]), "here")
    write_curve(tmp_path / "mine.yaml", curve, "the command")
    read = load_curve(str(tmp_path / "mine.yaml"))
    assert (
        (tmp_path / "mine.yaml").read_text().startswith("# Measured with the engine; made by: the")
    )
    assert (read.variants, read.model, read.better, read.basis) == (
        2, "byte-moe", "lower", "measured"
    )  # fmt: skip
    assert read.at(0.0).value == 3.75
    assert read.at(1.0).variants == {"a": 3.25, "b": 5.25}
    assert read.at(0.5).value == pytest.approx(4.0)


def test_a_curve_by_number_begins_with_one(tmp_path: Path) -> None:
    """Served alone; then of everything shared, not of half."""
    three = [
        row("layout", name, 6.0, names=("a", "b", "c"), ratio=ratio)
        for name, ratio in (("a", 1.0), ("b", 1.0), ("a", 0.5))
    ]
    curve = number_curve("byte-switch", means([*ALONE, *SHARED, *three]), "here")
    write_curve(tmp_path / "mine.yaml", curve, "the command")
    read = load_curve(str(tmp_path / "mine.yaml"))
    assert [point.at for point in read.points] == [1, 2, 3]
    assert [point.value for point in read.points] == [3.5, 4.25, 6.0]


def test_the_table_has_a_row_a_mean() -> None:
    lines = table(means([*ALONE, *SHARED])).splitlines()
    assert len(lines) == 2 + 3
    assert len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells == ["layout", "2", "1", "4.250 ± 1.061", "+0.750 ± 0.354", f"{2**4.25:.2f}"]


def test_the_plot_shows_every_method_where_it_was_measured() -> None:
    """Higher perplexity is higher up; marks are where the lines bend."""
    found = means([*ALONE, *SHARED, *AVERAGE])
    three = [
        {**cell, "variants": 3, "bits": cell["bits"] + 1} for cell in found if cell["variants"] == 2
    ]
    drawn = plot(found, [*found, *three])
    root = ElementTree.fromstring(drawn)  # noqa: S314  # our own
    space = {"s": "http://www.w3.org/2000/svg"}
    words = [element.text for element in root.findall("s:text", space)]
    assert words.count("our layout") == words.count("weight averaging") == 2
    assert words.count("each served alone") == 2
    assert "TIES" not in words
    circles = [
        (float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.findall("s:circle", space)
    ]
    left = [place for place in circles if place[0] < 400]
    assert len(left) == 2  # the layout at ratios 0 and 1
    assert left[0][0] < left[1][0]
    assert left[0][1] > left[1][1]
    assert not re.search(r"nan|inf", drawn)
