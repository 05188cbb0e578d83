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
        console.print(f"  {claim.claim}")
        console.print(f"      {_figures(claim)}")
        if claim.why:
            console.print(f"      {claim.why}", style="dim")
    console.print("  constants", style="bold")
    for constant in outcome.constants:
        fitted = f"; fitted on {constant.fitted_on}" if constant.fitted_on else ""
        console.print(f"  {constant.name}: {constant.value} ({constant.source}{fitted})")
    for annex in outcome.annexes:
        _show_annex(console, annex)
    console.print()


def _show_annex(console: Console, annex: Annex) -> None:
    console.print(f"  {annex.title}", style="bold")
    for sentence in annex.says:
        console.print(Padding(sentence, (0, 0, 0, 2)))
    table = Table(box=None, pad_edge=True, padding=(0, 1))
    for heading in annex.table.headings:
        table.add_column(heading)
    for cells in annex.table.rows:
        table.add_row(*cells)
    console.print(table)


def _figures(claim: Claim) -> str:
    _, published, simulated, interval, evidence, _ = row(claim)
    runs = "" if interval == NONE else f" ({interval})"
    return f"published {published} [{evidence}], simulated {simulated}{runs}: {claim.verdict}"
