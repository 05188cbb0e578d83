"""Reproductions in a terminal: two lines a claim, a third where there is a reason; tables."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from moesim.reproduction.annex import Annex
from moesim.reproduction.claims import Claim
from moesim.reproduction.outcome import Outcome
from moesim.reproduction.systems import Reproductions
from moesim.reproduction.wording import NONE, headline, row


def show(found: Reproductions) -> None:
    """Print every claim, the constants, and what came out in all."""
    console = Console(highlight=False, markup=False)
    for outcome in found.outcomes:
        _show_outcome(console, outcome)
    console.print(headline(found))


def _show_outcome(console: Console, outcome: Outcome) -> None:
    publication = outcome.publication
    console.print(f"{publication.system}: {publication.title}", style="bold")
    for claim in outcome.claims:
        _print(console, claim.claim, 2)
        _print(console, _figures(claim), 6)
        if claim.why:
            _print(console, claim.why, 6, style="dim")
    _print(console, "constants", 2, style="bold")
    for constant in outcome.constants:
        fitted = f"; fitted on {constant.fitted_on}" if constant.fitted_on else ""
        _print(console, f"{constant.name}: {constant.value} ({constant.source}{fitted})", 2)
    for annex in outcome.annexes:
        _show_annex(console, annex)
    console.print()


def _show_annex(console: Console, annex: Annex) -> None:
    _print(console, annex.title, 2, style="bold")
    for sentence in annex.says:
        _print(console, sentence, 2)
    table = Table(box=None, pad_edge=True, padding=(0, 1))
    for heading in annex.table.headings:
        table.add_column(heading)
    for cells in annex.table.rows:
        table.add_row(*cells)
    console.print(table)


def _print(console: Console, text: str, indent: int, style: str = "") -> None:
    """Print a paragraph whose lines all begin at the same place."""
    console.print(Padding(text, (0, 0, 0, indent)), style=style)


def _figures(claim: Claim) -> str:
    _, published, simulated, interval, evidence, _ = row(claim)
    runs = "" if interval == NONE else f" ({interval})"
    return f"published {published} [{evidence}], simulated {simulated}{runs}: {claim.verdict}"
