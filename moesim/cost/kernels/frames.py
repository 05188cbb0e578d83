"""Published tables as data frames, with what is wrong about them said in one line."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from moesim.errors import ProfileError


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a parquet or CSV file that has at least these columns.

    Raises ProfileError where it cannot be read, lacks a column, or is empty.
    """
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except FileNotFoundError:
        raise ProfileError(f"{path}: no such file; give the folder of the tables") from None
    except Exception as wrong:  # what pyarrow and pandas raise for broken files is not one family
        first = " ".join(str(wrong).split())[:120]
        raise ProfileError(f"{path}: not readable as a table ({first}); fetch it again") from None
    missing = [name for name in columns if name not in frame]
    if missing:
        raise ProfileError(
            f"{path}: no column {missing[0]}; it has {', '.join(map(str, frame.columns[:20]))}"
        )
    if frame.empty:
        raise ProfileError(f"{path}: no rows; fetch it again")
    return frame


def numbers(frame: pd.DataFrame, columns: Sequence[str], source: str) -> pd.DataFrame:
    """Return the frame with these columns as numbers; ProfileError where one is not."""
    frame = frame.copy()
    for name in columns:
        values = pd.to_numeric(frame[name], errors="coerce")
        if values.isna().any():
            wrong = frame[name][values.isna()].iloc[0]
            said = "nothing" if pd.isna(wrong) else repr(wrong)
            raise ProfileError(f"{source}: {name}: {said} is not a number; fetch it again")
        frame[name] = values
    return frame


def groups(
    frame: pd.DataFrame, columns: Sequence[str]
) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Yield the values of these columns that occur together, in order, and their rows."""
    for key, rows in frame.groupby(list(columns), sort=True):
        yield (key if isinstance(key, tuple) else (key,)), rows


def only(frame: pd.DataFrame, wanted: Mapping[str, object]) -> pd.DataFrame:
    """Return the rows with these values, in the columns that there are."""
    for name, value in wanted.items():
        if name in frame:
            frame = frame[frame[name] == value]
    return frame
