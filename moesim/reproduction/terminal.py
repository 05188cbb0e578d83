"""Reproductions in a terminal: two lines a claim, a third where there is a reason."""

from rich.console import Console

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
    console.print()


def _figures(claim: Claim) -> str:
    _, published, simulated, interval, evidence, _ = row(claim)
    runs = "" if interval == NONE else f" ({interval})"
    return f"published {published} [{evidence}], simulated {simulated}{runs}: {claim.verdict}"
