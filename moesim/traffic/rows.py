"""Rows: a table's columns as numbers, times and texts; what is wrong is known by its line."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.errors import MoesimWarning, ScenarioError
from moesim.traffic.tables import Table

LARGEST = 1e30
"""No time or rate is larger; beyond, differences would overflow."""

MOST_TOKENS = 2**31

LONGEST_SHOWN = 60
"""Of a wrong value, so many characters are shown."""


class Rows:
    """The rows of a table while they are checked.

    Each column that is taken marks the rows whose value is wrong; `settle` then refuses the table
    or leaves those rows out.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.bad = np.zeros(len(table.frame), dtype=bool)
        self._reasons = {line: f"line {line}: {why}" for line, why in table.broken.items()}

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Take a column of finite numbers."""
        values = _floats(self.table.frame[column])
        self.refuse(column, ~(np.abs(values) < LARGEST), "a number")
        return values

    def counts(self, column: str) -> NDArray[np.int64]:
        """Take a column of whole numbers of tokens, none of them negative."""
        values = self.numbers(column)
        whole = (values >= 0) & (values == np.floor(values)) & (values <= MOST_TOKENS)
        self.refuse(column, ~whole, "a whole number of tokens")
        return np.where(whole, values, 0).astype(np.int64)

    def dates(self, column: str) -> NDArray[np.float64]:
        """Take a column of dates and times, as seconds from the first of them."""
        text = self.table.frame[column].astype(str)
        # Words such as "now" would be taken for times too.
        dated = text.where(text.str.match(r"\d{4}-?\d\d"))
        times = pd.to_datetime(dated, errors="coerce", format="ISO8601", utc=True)
        self.refuse(column, times.isna().to_numpy(), "a date and time")
        seconds = (times - times.min()).dt.total_seconds()
        return np.asarray(seconds, dtype=np.float64)

    def texts(self, column: str) -> list[str]:
        """Take a column of names; none is wrong, and a missing one is empty."""
        values = self.table.frame[column]
        return values.where(values.notna(), "").astype(str).tolist()

    def lists(self, column: str, expected: str) -> list[tuple[Any, ...]]:
        """Take a column of lists of whole numbers."""
        values = [_whole_numbers(value) for value in self.table.frame[column]]
        self.refuse(column, np.array([value is None for value in values], dtype=bool), expected)
        return [value or () for value in values]

    def refuse(self, column: str, wrong: NDArray[np.bool_], expected: str) -> None:
        """Mark the rows in which a column is not what was expected."""
        self.bad |= wrong
        if wrong.any():
            row = int(np.argmax(wrong))
            shown = _shown(self.table.frame[column].iloc[row])
            # Of a row that is wrong twice, the first column is told of.
            place = int(self.table.frame.index[row])
            reason = f"{self.table.place} {place}: {column}: {shown} is not {expected}"
            self._reasons.setdefault(place, reason)

    def settle(self, *, skip: bool) -> NDArray[np.bool_]:
        """Return which rows are kept; ScenarioError for wrong ones, unless they are to be skipped.

        Skipped rows are counted in a MoesimWarning.
        """
        count = self.skipped
        if count:
            first = self._reasons[min(self._reasons)]
            if not skip:
                raise ScenarioError(
                    f"{self.table.path}: {first} (bad rows in all: {count}); "
                    "correct them, or skip them: --skip-bad-rows, in a scenario skip_bad_rows: true"
                )
            warnings.warn(
                f"{self.table.path}: bad rows skipped: {count}, the first at {first}",
                MoesimWarning,
                stacklevel=2,
            )
        return ~self.bad

    @property
    def skipped(self) -> int:
        """How many rows are wrong."""
        return int(self.bad.sum()) + len(self.table.broken)


def _floats(column: pd.Series) -> NDArray[np.float64]:
    """Return a column as numbers, NaN for what is none."""
    if pd.api.types.is_bool_dtype(column):
        return np.full(len(column), np.nan)
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=float, na_value=np.nan)
    if isinstance(column.dtype, pd.StringDtype):
        return pd.to_numeric(column, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    return np.array([_float(value) for value in column], dtype=float)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return float("nan")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _whole_numbers(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, (list, np.ndarray)):
        return None
    listed = list(value)
    return tuple(listed) if all(type(item) is int for item in listed) else None


def _shown(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."
