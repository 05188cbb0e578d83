"""A validation folder: one workload served for real and predicted, as `make demo` leaves it.

| file | holds |
|---|---|
| comparison.json | `comparison` (rows of `moesim.evidence.compare`), the same by tenant in
`tenants` where there are several, `facts`, `notes` |
| measured-1.parquet, ... | the record table of each real run |
| predicted.parquet | the record table that the profile as measured predicts |
| profile.json | the profile behind the prediction, where it was made there too |
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from moesim.errors import ScenarioError
from moesim.evidence.compare import COLUMNS, KEYS
from moesim.serving.records import read_records

COMPARISON = "comparison.json"
PREDICTED = "predicted.parquet"
PROFILE = "profile.json"
FOLDER_VARIABLE = "MOESIM_DEMO"
MOST = 1e300
"""Beyond any figure; integers may be larger than a float can hold."""
NUMBERS = ["measured", "predicted", "low", "high", "error", "spread"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Real runs beside their prediction."""

    comparison: pd.DataFrame
    measured: list[pd.DataFrame]
    predicted: pd.DataFrame
    facts: dict[str, str]
    notes: list[str]
    tenants: pd.DataFrame = field(default_factory=pd.DataFrame)
    """The comparison tenant by tenant, empty where there is but one."""


def default_folder() -> Path:
    """Return where `make demo` leaves its results, unless MOESIM_DEMO names another folder."""
    return Path(os.environ.get(FOLDER_VARIABLE) or "demo")


def measured_file(number: int) -> str:
    """Return the file name of a real run's records, counted from 1."""
    return f"measured-{number}.parquet"


def comparison_json(validation: Validation) -> str:
    """Return what `comparison.json` holds."""
    content = {
        "comparison": json.loads(validation.comparison.to_json(orient="records")),
        "tenants": json.loads(validation.tenants.to_json(orient="records")),
        "facts": validation.facts,
        "notes": validation.notes,
    }
    return json.dumps(content, indent=1) + "\n"


def load_validation(folder: Path) -> Validation:
    """Load a validation folder; ScenarioError names the file that is missing or broken."""
    content = _read_json(folder / COMPARISON)
    runs = sorted(folder.glob("measured-*.parquet"), key=_run_number)
    if not runs:
        raise ScenarioError(f"{folder}: no measured-1.parquet; validate again")
    return Validation(
        comparison=_comparison(content.get("comparison"), folder / COMPARISON),
        measured=[read_records(path) for path in runs],
        predicted=read_records(folder / PREDICTED),
        facts=_facts(content.get("facts") or {}, folder / COMPARISON),
        notes=_notes(content.get("notes") or [], folder / COMPARISON),
        tenants=_tenants(content.get("tenants"), folder / COMPARISON),
    )


def named_tables(measured: list[pd.DataFrame], predicted: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Name the tables as charts show them: `measured 1`, ..., `predicted`."""
    runs = {f"measured {number}": table for number, table in enumerate(measured, start=1)}
    return {**runs, "predicted": predicted}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as wrong:
        raise ScenarioError(f"{path}: not readable ({wrong}); validate again") from None
    if not isinstance(content, dict):
        raise ScenarioError(f"{path}: expected comparison, facts and notes; validate again")
    return content


def _facts(facts: Any, path: Path) -> dict[str, str]:
    if not isinstance(facts, dict):
        raise ScenarioError(f"{path}: facts: {facts!r:.40} is not names and values; validate again")
    return {str(name): str(value) for name, value in facts.items()}


def _notes(notes: Any, path: Path) -> list[str]:
    if not isinstance(notes, list):
        raise ScenarioError(f"{path}: notes: {notes!r:.40} is not a list; validate again")
    return [str(note) for note in notes]


def _tenants(rows: Any, path: Path) -> pd.DataFrame:
    """Return the comparison by tenant; validations of one tenant, and older ones, have none."""
    if not rows:
        return pd.DataFrame()
    found = _comparison(rows, path, "tenants")
    found.insert(0, "tenant", [str(row.get("tenant")) for row in rows])
    return found


def _comparison(rows: Any, path: Path, field: str = "comparison") -> pd.DataFrame:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ScenarioError(f"{path}: {field}: expected a list of rows; validate again")
    missing = [name for name in COLUMNS if not all(name in row for row in rows)]
    if missing:
        # Predictions had no intervals once.
        raise ScenarioError(
            f"{path}: {field}: its rows lack {', '.join(missing)}, as those of older versions "
            "do; validate again"
        )
    for number, row in enumerate(rows):
        wrong = next((name for name in COLUMNS if not _possible(name, row)), None)
        if wrong:
            raise ScenarioError(
                f"{path}: {field}.{number}.{wrong}: {row[wrong]!r:.40} is not possible; "
                "validate again"
            )
    # JSON has no NaN: the spread of a single run is null there.
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(
        {**dict.fromkeys(NUMBERS, float), "close": bool, "hit": bool}
    )


def _possible(name: str, row: dict[str, Any]) -> bool:
    """Whether what a row says in a column is of its kind."""
    value = row[name]
    if name in ("metric", "statistic"):
        return (row["metric"], row["statistic"]) in KEYS
    if name in NUMBERS:
        return value is None or (type(value) in (int, float) and abs(value) < MOST)
    return isinstance(value, bool)


def _run_number(path: Path) -> tuple[int, str]:
    number = path.stem.removeprefix("measured-")
    return (int(number) if number.isdigit() else 0, number)
