"""docs/results-tables.md: its rows are understood, and every word that fields may hold is there."""

import re
from pathlib import Path

import pytest

from moesim.evidence.accuracy.engines import KNOWN
from moesim.evidence.accuracy.experiments import figure_of
from moesim.evidence.accuracy.metrics import LATENCIES, RATES, STATISTICS, UNITS
from moesim.evidence.accuracy.names import KNOWN_MODELS, PRECISIONS, device_of, model_of
from moesim.evidence.accuracy.table import COLUMNS, read_table
from moesim.evidence.accuracy.workloads import SCENARIOS
from moesim.facts.catalog import shipped

PAGE = (Path(__file__).parents[3] / "docs/results-tables.md").read_text()
_, *PARTS = re.split(r"^## (.*)$", PAGE, flags=re.MULTILINE)
SECTIONS = dict(zip(PARTS[::2], PARTS[1::2], strict=True))


def _words(section: str) -> set[str]:
    """Return what a section shows as code."""
    return set(re.findall(r"`([^`]+)`", SECTIONS[section]))


def test_every_row_of_the_page_is_understood_and_every_scenario_has_one(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    (content,) = re.findall(r"```csv\n(.*?)```", PAGE, flags=re.DOTALL)
    table.write_text(content)
    rows = read_table(table)
    assert len([figure_of(row) for row in rows]) == len(rows)
    assert {row.scenario for row in rows} == set(SCENARIOS)


@pytest.mark.parametrize(
    ("section", "known"),
    [
        ("model", KNOWN_MODELS),
        ("gpu", [name for name in shipped("hardware") if "cpu" not in name]),
        ("precision", PRECISIONS),
        ("isl, osl, load, scenario", SCENARIOS),
        ("metric", [*RATES, *LATENCIES, *STATISTICS, *UNITS]),
        ("software", KNOWN),
    ],
)
def test_every_word_is_on_the_page(section: str, known: list[str]) -> None:
    assert set(known) <= _words(section)


def test_every_column_is_on_the_page() -> None:
    assert set(COLUMNS) - {"value", "note"} <= set(", ".join(SECTIONS).split(", "))


def test_names_on_the_page_are_known() -> None:
    for name in KNOWN_MODELS:
        assert model_of(name).parameters > 0
    assert device_of("NVIDIA H100 80GB HBM3").name in _words("gpu")
