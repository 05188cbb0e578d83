"""How far off predictions are, group by group."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from moesim.evidence.accuracy.factors import FACTORED, folds_of, full_factor, spread

GROUPS = ("family", "version", "gpu", "precision", "figure")
"""What rows are grouped by: where from, engine and version, GPU, format, and what was measured."""

BY_MODEL = ("family", "version", "model", "gpu", "precision", "figure")
"""The same, model by model."""

ALIKE = ("model", "gpu", "n_gpus", "load", "scenario", "metric")
"""What MLPerf's entries have in common that ran the same."""

ENTRIES = 3
"""Entries of which one may ask how far apart they are, at least."""


def summaries(rows: pd.DataFrame, by: Sequence[str] = GROUPS) -> pd.DataFrame:
    """Return a row for each group: its size, errors, coverage, and the same the other two ways.

    `mape` is the mean of |predicted/measured - 1|, `bias` the mean without the bars, `p50` and
    `p90` are percentiles of the former; `hit` is the share of intervals that hold what was
    measured. `roofline_*` is by the roofline alone, `fitted_*` with the cross-validated factor,
    which `fitted_rows` of them have.
    """
    found = [
        {**dict(zip(by, names, strict=True)), **figures_of(group)}
        for names, group in rows.groupby(list(by), sort=False, dropna=False)
    ]
    return pd.DataFrame(found)


def figures_of(group: pd.DataFrame) -> dict[str, Any]:
    """Return the figures of one group."""
    return {
        "rows": len(group),
        "fitted_rows": int(group["fitted_error"].notna().sum()),
        **_errors(group, ""),
        **_errors(group, "roofline_"),
        **_errors(group, "fitted_"),
    }


def factors_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the factor of each engine version and device over all its rows, and their spread.

    Those that do not judge have their say in factors, but not in errors.
    """
    found = []
    for names, group in rows[rows["factor"].notna()].groupby(list(FACTORED), sort=False):
        figures = figures_of(group[group["judged"]])
        if not figures["rows"]:
            continue
        found.append(
            {
                **dict(zip(FACTORED, names, strict=True)),
                "folds": folds_of(group),
                "factor": full_factor(group),
                "lowest": group["factor"].min(),
                "highest": group["factor"].max(),
                "spread": spread(group),
                **figures,
            }
        )
    return pd.DataFrame(found)


def like_entries(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how far apart MLPerf's entries are that ran the same on as many of the same GPUs.

    `apart` is the greatest over the least, less one: what chance and makers add to real systems.
    """
    rows = rows[rows["scenario"].str.startswith("mlperf")]
    found = []
    for names, group in rows.groupby(list(ALIKE), sort=False):
        if group["source"].nunique() >= ENTRIES:
            least, most = group["measured"].min(), group["measured"].max()
            found.append(
                {
                    **dict(zip(ALIKE, names, strict=True)),
                    "entries": group["source"].nunique(),
                    "least": least,
                    "most": most,
                    "apart": most / least - 1,
                    "mape": float(group["error"].abs().mean()),
                }
            )
    return pd.DataFrame(found)


def _errors(group: pd.DataFrame, way: str) -> dict[str, float]:
    error: pd.Series[float] = group[f"{way}error"].dropna()
    size = error.abs()
    hit = group.loc[error.index, f"{way}inside"]
    found: dict[str, float] = {
        f"{way}mape": float(size.mean()),
        f"{way}bias": float(error.mean()),
        f"{way}p50": float(size.quantile(0.5)),
        f"{way}p90": float(size.quantile(0.9)),
        f"{way}hit": float(hit.mean()) if len(hit) else float("nan"),
    }
    return found
