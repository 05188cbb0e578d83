"""Accuracy in a terminal: three lines a group, then what is worst, and what was left out."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from rich.console import Console

from moesim.evidence.accuracy.factors import factorless
from moesim.evidence.accuracy.outcome import Accuracy
from moesim.evidence.accuracy.summary import GROUPS, factors_of, summaries
from moesim.evidence.accuracy.wording import basis_words, fit_words, headline, share, signed
from moesim.evidence.accuracy.worst import Worst

REASONS = 12
"""Reasons that are shown one by one."""


def show(found: Accuracy, bad: Sequence[Worst]) -> None:
    """Print what came out."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(headline(found), style="bold")
    if found.profiles:
        console.print(f"by {basis_words(found)}; {found.elapsed_s:.0f} s")
    for fit in found.fits:
        console.print(f"fitted: {fit_words(fit)}")
    if len(found.judged):
        _groups(console, found)
    for each in bad:
        row = each.row
        console.print(
            f"  line {row['line']}: {row['model']} {row['gpu']} {row['metric']} "
            f"{signed(each.error)}: {each.cause}",
            style="dim",
        )
    _left_out(console, found)


def _groups(console: Console, found: Accuracy) -> None:
    for row in summaries(found.judged).to_dict("records"):
        name = ", ".join(str(row[part]) for part in GROUPS if row[part])
        console.print(f"\n{name}: {row['rows']:,} rows", style="bold")
        console.print(f"  as is        {_errors(row, '')}")
        console.print(f"  roofline     {_errors(row, 'roofline_')}")
        if row["fitted_mape"] == row["fitted_mape"]:
            of = "" if row["fitted_rows"] == row["rows"] else f" (of {row['fitted_rows']:,} rows)"
            console.print(f"  with factor  {_errors(row, 'fitted_')}{of}")
    factors = factors_of(found.rows)
    for row in factors.to_dict("records"):
        console.print(
            f"\nfactor {row['factor']:.3f} ({row['lowest']:.3f} to {row['highest']:.3f} over "
            f"{row['folds']} folds): {row['software']} on {row['device']}"
        )
    for said in factorless(found.rows):
        console.print(f"\nno factor: {said}")
    console.print("\nworst rows", style="bold")


def _errors(row: Mapping[Hashable, Any], way: str) -> str:
    return (
        f"MAPE {share(row[f'{way}mape'])}, bias {signed(row[f'{way}bias'])}, "
        f"half within {share(row[f'{way}p50'])}, nine in ten within {share(row[f'{way}p90'])}, "
        f"{share(row[f'{way}hit'], 0)} in interval"
    )


def _left_out(console: Console, found: Accuracy) -> None:
    if not found.left_out:
        return
    console.print(f"\nnot simulated: {found.left_out.total():,} rows", style="bold")
    ordered = found.left_out.most_common()
    for reason, many in ordered[:REASONS]:
        console.print(f"  {many:>5,}  {reason}")
    rest = sum(many for _, many in ordered[REASONS:])
    if rest:
        console.print(f"  {rest:>5,}  of {len(ordered) - REASONS} other reasons")
