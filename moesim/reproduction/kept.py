"""What sharing experts keeps of quality: published scores beside this project's own curves.

Metrics differ, and so do the models: what is put side by side is which share of its quality a
metric keeps.
"""

from collections.abc import Iterator

from moesim.facts.quality import Curve, load_curve
from moesim.reproduction.annex import Annex, Table
from moesim.views.wording import MISSING

PAIRS = (
    ("mixtral-mt-bench", "byte-moe"),
    ("switch-samsum", "byte-switch"),
)
"""Published curves, and this project's own on the same axis."""

AXES = {"ratio": "share of positions shared", "models": "models that share"}
"""What the places of a curve are."""


def kept(name: str, before: float, after: float) -> float:
    """Return which share of quality a measured curve keeps between two places.

    >>> round(kept("byte-switch", 2, 4), 3)
    0.993
    """
    measured = load_curve(name)
    first, last = (measured.at(place).value for place in (before, after))
    return float("nan") if first is None or last is None else _share(measured, first, last)


def quality() -> Annex:
    """Return published and own curves side by side."""
    curves = [(load_curve(published), load_curve(own)) for published, own in PAIRS]
    return Annex(
        title="Quality",
        says=(
            "The published scores need the published weights and are not simulated. Beside them "
            "stands what this project's engine measured on small models of its own, whose variants "
            "share experts alike. What is kept is counted from the first place at which both are "
            "known; more is better.",
            *(_about(known) for pair in curves for known in pair),
        ),
        table=Table(
            headings=("shared", "published", "value", "kept", "measured here", "value", "kept"),
            rows=tuple(row for pair in curves for row in _rows(*pair)),
        ),
    )


def _rows(published: Curve, own: Curve) -> Iterator[tuple[str, ...]]:
    """Yield a row for each place of the own curve."""
    places = [point.ends[0] for point in own.points]
    base = next(place for place in places if _value(published, place) is not None)
    for place in places:
        yield (
            f"{place:g} ({AXES[own.axis]})",
            *_cells(published, place, base),
            *_cells(own, place, base),
        )


def _cells(known: Curve, place: float, base: float) -> tuple[str, str, str]:
    """Return the metric, its value at a place, and the share of the base's that is kept."""
    name = f"{known.metric} [{known.evidence}]"
    value, first = _value(known, place), _value(known, base)
    if value is None or first is None:
        return name, MISSING, MISSING
    return name, f"{value:g}", f"{_share(known, first, value):.3f}"


def _value(known: Curve, place: float) -> float | None:
    """Return the metric over all variants, or that of the only one that is known."""
    found = known.at(place)
    if found.value is not None or len(found.variants) != 1:
        return found.value
    return next(iter(found.variants.values()))


def _share(known: Curve, before: float, after: float) -> float:
    """Return which share of quality is kept; 1 is all of it."""
    return before / after if known.better == "lower" else after / before


def _about(known: Curve) -> str:
    return f"{known.name}: {known.source}. {known.notes}"
