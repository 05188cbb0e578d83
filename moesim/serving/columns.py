"""Requests and records in columns: what a run computes with; a frame of them for those who ask.

A column is an array, or the one value that all rows have: a tenant's name need not be written two
thousand times to be counted. Whatever reads `table["arrival_s"]` as an array takes either a frame
or these.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[Any]


class Columns:
    """Columns of `count` rows by name; `attrs` are the frame's."""

    def __init__(
        self,
        count: int,
        columns: Mapping[str, Array | str | int],
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        self._count = count
        self._columns = dict(columns)
        self.attrs = dict(attrs or {})

    @classmethod
    def of(cls, table: "Table") -> "Columns":
        """Take the columns of a frame."""
        if isinstance(table, Columns):
            return table
        arrays = {str(name): column.to_numpy() for name, column in table.items()}
        return cls(len(table), arrays, {str(name): value for name, value in table.attrs.items()})

    def __len__(self) -> int:
        return self._count

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> Array:
        column = self._columns[name]
        if isinstance(column, np.ndarray):
            return column
        return np.full(self._count, column, dtype=object if isinstance(column, str) else None)

    def value(self, name: str) -> str | int | None:
        """Return the one value of all rows, None where it is not known that they have one."""
        column = self._columns[name]
        return None if isinstance(column, np.ndarray) else column

    def where(self, name: str, value: str | int) -> NDArray[np.bool]:
        """Say for each row whether it has a value."""
        known = self.value(name)
        if known is None:
            return np.asarray(self[name] == value, dtype=bool)
        return np.full(self._count, known == value)

    def take(self, rows: Array | slice) -> "Columns":
        """Return some rows."""
        count = len(np.empty(self._count, dtype=np.bool)[rows])
        return Columns(
            count,
            {
                name: column[rows] if isinstance(column, np.ndarray) else column
                for name, column in self._columns.items()
            },
            self.attrs,
        )

    def assign(self, **columns: Array | str | int) -> "Columns":
        """Return the columns with others, or in place of those of the same name."""
        return Columns(self._count, {**self._columns, **columns}, self.attrs)

    def only(self, names: Sequence[str]) -> "Columns":
        """Return some columns, in that order."""
        return Columns(self._count, {name: self._columns[name] for name in names}, self.attrs)

    def without(self, name: str) -> "Columns":
        """Return all columns but one, which need not be there."""
        return self.only([other for other in self._columns if other != name])

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The columns as a frame, its rows numbered from 0."""
        frame = pd.DataFrame(self._columns, index=pd.RangeIndex(self._count), copy=False)
        frame.attrs.update(self.attrs)
        return frame


Table = pd.DataFrame | Columns
"""Either form."""


def joined(parts: Sequence[Columns]) -> Columns:
    """Return the rows of several parts with the same columns, one part after the other."""
    first, *others = parts
    if not others:
        return first
    count = sum(map(len, parts))
    return Columns(count, {name: _joined(name, parts) for name in first._columns}, first.attrs)


def _joined(name: str, parts: Sequence[Columns]) -> Array | str | int:
    values = {part.value(name) for part in parts}
    alike = values.pop()
    if alike is not None and not values:
        return alike
    return np.concatenate([part[name] for part in parts])
