"""The words and numbers in which accuracy is shown, on whatever page."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from moesim.evidence.accuracy.mixtral import MIXTRAL_PROMPT
from moesim.evidence.accuracy.outcome import Accuracy
from moesim.evidence.accuracy.paces import PROMPTS_OFF, Fit
from moesim.evidence.accuracy.summary import ALIKE, BY_MODEL, figures_of, like_entries
from moesim.evidence.accuracy.worst import Worst
from moesim.scenario import ROOFLINE

SUMMARY = (
    "source", "engine", "model", "gpu", "format", "figure", "rows", "MAPE", "bias", "p50", "p90",
    "in interval", "roofline MAPE", "roofline bias", "with factor: MAPE", "bias", "in interval",
)  # fmt: skip
"""Headings of a summary."""

FACTORS = (
    "software", "gpu", "rows", "folds", "factor", "over folds", "MAPE as is", "bias as is",
    "MAPE", "bias", "p90", "in interval",
)  # fmt: skip
"""Headings of the factors."""

ROWS = (
    "line", "model", "gpu", "tp", "ep", "format", "prompt", "answer", "load", "metric", "measured",
    "predicted", "90 % interval", "error", "roofline error", "with factor", "error",
)  # fmt: skip
"""Headings of the rows."""

WORST = ("line", "model", "gpu", "tp", "prompt", "answer", "load", "metric", "error", "suspect")
"""Headings of the worst rows."""

HOW = (
    "Each row's experiment is simulated: the requests that the source sent, the engine's rules and "
    "memory, iteration by iteration. MAPE is the mean of |predicted/measured - 1|, bias the mean "
    "without the bars, p50 and p90 are percentiles of the former; `in interval` is the share of "
    "rows that lie in their 90 % interval. `As is`, nothing is fitted on any row that is judged: "
    "iterations take the median longer of what other engines were found to add to their kernels, "
    "and the interval holds nine in ten of those; what the row's own software adds is left out, on "
    "all GPUs. `With factor`, the iterations of one engine version on one GPU all take longer by "
    "one factor than kernels alone: the median over the rates and times per token of all other "
    "prompt and answer lengths (a fold is a pair of lengths), with the interval of those other "
    "rows' residuals. Rows whose requests come by a clock have no factor. MLPerf's entries have a "
    "pace, by kernels and by the roofline alone."
)

NAMED = "mean|p99|tokens"
"""Of which figures is said how far apart like entries are."""

NONE = "-"


def headline(found: Accuracy) -> str:
    """Say what came out in all."""
    judged = found.judged
    if judged.empty:
        return f"None of {found.chosen:,} rows could be predicted."
    figures = figures_of(judged)
    text = (
        f"{len(found.rows):,} of {found.chosen:,} rows predicted: MAPE {share(figures['mape'])}, "
        f"bias {signed(figures['bias'])}, half within {share(figures['p50'])}, "
        f"{share(figures['hit'], 0)} in their 90 % intervals"
    )
    if set(found.profiles.values()) == {ROOFLINE}:
        return f"Datasheet rooflines, nothing measured on these GPUs. {text}."
    return f"{text}; the roofline alone: MAPE {share(figures['roofline_mape'])}."


def summary_row(row: Mapping[Hashable, Any]) -> tuple[str, ...]:
    """Return a summary's cells, in the order of `SUMMARY`."""
    return (
        *(str(row[name]) or NONE for name in BY_MODEL),
        f"{row['rows']:,}",
        share(row["mape"]),
        signed(row["bias"]),
        share(row["p50"]),
        share(row["p90"]),
        share(row["hit"], 0),
        share(row["roofline_mape"]),
        signed(row["roofline_bias"]),
        share(row["fitted_mape"]) + _of_rows(row),
        signed(row["fitted_bias"]),
        share(row["fitted_hit"], 0),
    )


def _of_rows(row: Mapping[Hashable, Any]) -> str:
    """Say of how many rows a factor is known, where not of all."""
    return f" (of {row['fitted_rows']:,})" if 0 < row["fitted_rows"] < row["rows"] else ""


def factor_row(row: Mapping[Hashable, Any]) -> tuple[str, ...]:
    """Return a factor's cells, in the order of `FACTORS`."""
    return (
        str(row["software"]) or NONE,
        str(row["device"]),
        f"{row['rows']:,}",
        f"{row['folds']:,}",
        f"{row['factor']:.3f}",
        f"{row['lowest']:.3f} to {row['highest']:.3f}",
        share(row["mape"]),
        signed(row["bias"]),
        share(row["fitted_mape"]),
        signed(row["fitted_bias"]),
        share(row["fitted_p90"]),
        share(row["fitted_hit"], 0),
    )


def row_cells(row: Mapping[Hashable, Any]) -> tuple[str, ...]:
    """Return a row's cells, in the order of `ROWS`."""
    return (
        f"{row['line']}",
        *(str(row[name]) or NONE for name in ("model", "gpu")),
        *(count(row[name]) for name in ("tp", "ep")),
        row["precision"] or NONE,
        *(count(row[name]) for name in ("isl", "osl")),
        row["load"] or NONE,
        row["metric"],
        number(row["measured"]),
        number(row["predicted"]),
        f"{number(row['low'])} to {number(row['high'])}",
        signed(row["error"]) + ("" if row["judged"] else " (not judged)"),
        signed(row["roofline_error"]),
        number(row["fitted"]),
        signed(row["fitted_error"]),
    )


def worst_row(each: Worst) -> tuple[str, ...]:
    """Return a bad row's cells, in the order of `WORST`."""
    row = each.row
    return (
        f"{row['line']}",
        *(str(row[name]) for name in ("model", "gpu")),
        *(count(row[name]) for name in ("tp", "isl", "osl")),
        row["load"],
        row["metric"],
        signed(each.error) + (" with factor" if each.factored else ""),
        str(each.cause),
    )


def fit_words(fit: Fit) -> str:
    """Say what was fitted on which rows."""
    paces = fit.paces
    kernels = "kernels" if fit.kernels == fit.device else f"kernels (of {fit.kernels})"
    if len(paces) == 1:
        text = (
            f"{fit.model} on {fit.device}: iterations of MLPerf's one entry take {paces[0]:.2f} "
            f"times as long as {kernels} alone, by the output rate of its offline run, whose rows "
            f"({len(fit.figures)} in all) are not judged"
        )
    else:
        text = (
            f"{fit.model} on {fit.device}: iterations of MLPerf's entries take {paces[0]:.2f} to "
            f"{paces[-1]:.2f} times as long as {kernels} alone: each of {len(paces)} by the output "
            "rate of its own offline run, which is itself predicted with the median of the others"
        )
    return text + _prompt_words(fit.prompts)


def _prompt_words(prompts: tuple[float, ...]) -> str:
    """Say how long prompts were found to be, if they were."""
    if not prompts:
        return ""
    least, most = (MIXTRAL_PROMPT * (1 + off) for off in (-PROMPTS_OFF, PROMPTS_OFF))
    found = f"{prompts[0]:.0f}"
    if f"{prompts[-1]:.0f}" != found:
        found += f" to {prompts[-1]:.0f}"
    return (
        f"; prompts have {found} tokens on average (of {least:.0f} to {most:.0f} that they may "
        "have), by the mean times per token of the other entries' servers"
    )


def like_words(rows: pd.DataFrame) -> list[str]:
    """Say how far apart entries are that ran the same, beside how far off predictions are."""
    known = like_entries(rows)
    if known.empty:
        return []
    parts = []
    for names, group in known.groupby(list(ALIKE[:-1]), sort=False):
        _, gpu, devices, load, _ = names
        figures = (
            f"{row['metric']} {number(row['least'])} to {number(row['most'])}, "
            f"{share(row['apart'])} apart, {share(row['mape'])} off"
            for row in group[group["metric"].str.contains(NAMED)].to_dict("records")
        )
        entries = group["entries"].max()
        parts.append(f"{entries} with {devices:g} {gpu}, {load}: {', '.join(figures)}")
    return [
        "MLPerf's entries that ran the same are as far apart as makers and chance leave them, "
        "which no prediction foretells; beside it stands by how much predictions of them are off "
        f"on average. {'; '.join(parts)}."
    ]


def basis_words(found: Accuracy) -> str:
    """Say what the predictions rest on."""
    reckoned = found.reckoned
    return "; ".join(
        f"{device}: {_basis(name, reckoned.get(device, ()))}"
        for device, name in found.profiles.items()
    )


def _basis(profile: str, reckoned: Sequence[str]) -> str:
    if profile == ROOFLINE:
        return "its datasheet (roofline)"
    experts = f", experts in {' and '.join(reckoned)} reckoned" if reckoned else ""
    return f"kernels ({profile}){experts}"


def share(value: float, digits: int = 1) -> str:
    """Write a share in percent.

    >>> share(0.0523), share(float("nan"))
    ('5.2 %', '-')
    """
    return NONE if pd.isna(value) else f"{100 * value:.{digits}f} %"


def signed(value: float) -> str:
    """Write an error in percent.

    >>> signed(-0.0523)
    '-5.2 %'
    """
    return NONE if pd.isna(value) else f"{100 * value:+.1f} %"


def number(value: float) -> str:
    """Write a figure with four digits, no more than a measurement has.

    >>> number(24321.9927), number(0.68831)
    ('24,322', '0.6883')
    """
    if pd.isna(value):
        return NONE
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def count(value: float | None) -> str:
    """Write a whole number, or that it is not known."""
    return NONE if value is None or pd.isna(value) else f"{value:g}"
