"""Claims as rows of text, for the terminal, the page in Markdown and the report in HTML."""

from collections.abc import Sequence

from moesim.facts.quality import EVIDENCE
from moesim.reproduction.claims import VERDICTS, Claim
from moesim.reproduction.systems import Reproductions
from moesim.views.wording import rounded

HEADINGS = ("claim", "published", "simulated", "interval", "evidence", "verdict")
NONE = "-"


def row(claim: Claim) -> tuple[str, ...]:
    """Return a claim as text, under `HEADINGS`."""
    simulated = NONE if claim.simulated is None else rounded(claim.simulated)
    interval = NONE
    if claim.interval is not None and claim.interval[0] < claim.interval[1]:
        interval = " to ".join(rounded(end) for end in claim.interval)
    return claim.claim, published(claim), simulated, interval, claim.evidence, verdict(claim)


def published(claim: Claim) -> str:
    """Return the published figure, with what is tolerated."""
    if claim.published is None:
        return NONE
    allowed = f" ± {claim.tolerance * 100:.3g} %" if claim.tolerance else ""
    if isinstance(claim.published, tuple):
        return _range(*claim.published) + allowed
    return rounded(claim.published) + allowed


def verdict(claim: Claim) -> str:
    """Return the verdict and, where there is one, the reason."""
    return f"{claim.verdict}: {claim.why}" if claim.why else claim.verdict


def headline(found: Reproductions) -> str:
    """Say in a sentence what came out."""
    return f"{len(found.claims)} claims: {counted(found.claims)}."


def counted(claims: Sequence[Claim]) -> str:
    """Say how many claims have which verdict."""
    verdicts = [claim.verdict for claim in claims]
    return ", ".join(f"{verdicts.count(name)} {name}" for name in VERDICTS if name in verdicts)


def evidence_meaning() -> str:
    """Say what the marks of evidence mean."""
    return "; ".join(f"{mark}: {meaning}" for mark, meaning in EVIDENCE.items())


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        known = low if high is None else high
        side = "at least" if high is None else "at most"
        return NONE if known is None else f"{side} {rounded(known)}"
    return f"{rounded(low)} to {rounded(high)}"
