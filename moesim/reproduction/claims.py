"""Claims: a published figure, the simulated one, and one of four verdicts."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from moesim.reproduction.publication import Ends, Publication
from moesim.reproduction.trials import Runs

REPRODUCED = "reproduced"
SHAPE = "shape reproduced"
NOT = "not reproduced"
UNCHECKABLE = "not checkable"

VERDICTS = {
    REPRODUCED: "the simulated figure is within the stated tolerance of the published one",
    SHAPE: "what is claimed in words, or by a ratio, holds",
    NOT: "the simulated figure is outside of the tolerance; what is missing is said",
    UNCHECKABLE: "what it depends on is not published; what that is is said",
}
"""The verdicts and what they mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A published figure beside the simulated one; `interval` is where the runs lie."""

    system: str
    claim: str
    published: float | Ends | None
    simulated: float | None
    interval: tuple[float, float] | None
    tolerance: float
    evidence: str
    verdict: str
    why: str
    source: str

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)


def judged(publication: Publication, name: str, runs: Runs | None) -> Claim:
    """Judge a claim of a publication by what it is in each run, None where nothing can be run."""
    figure = publication.claims[name]
    # A ratio to what never happened is no number.
    values = [] if runs is None else runs[np.isfinite(runs)].tolist()
    simulated = float(np.median(values)) if values else None
    verdict = UNCHECKABLE
    if figure.kind != "unknown":
        success = SHAPE if figure.kind == "shape" else REPRODUCED
        verdict = success if simulated is not None and _within(simulated, figure.ends) else NOT
    return Claim(
        system=publication.system,
        claim=figure.claim,
        published=figure.published,
        simulated=simulated,
        interval=(min(values), max(values)) if values else None,
        tolerance=figure.tolerance,
        evidence=figure.evidence,
        verdict=verdict,
        why=figure.why if verdict in (NOT, UNCHECKABLE) else "",
        source=figure.source,
    )


def _within(value: float, ends: Ends) -> bool:
    """Say whether a value lies between two ends."""
    low, high = ends
    above = low is None or value >= low
    below = high is None or value <= high
    return above and below
