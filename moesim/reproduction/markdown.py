"""Reproductions as a page in Markdown."""

from collections.abc import Iterable, Iterator, Sequence

from moesim.reproduction.claims import VERDICTS
from moesim.reproduction.outcome import Outcome
from moesim.reproduction.systems import Reproductions
from moesim.reproduction.wording import HEADINGS, evidence_meaning, headline, row

INTERVALS = (
    "A simulated figure is the median over five runs with other arrivals and other errors of the "
    "datasheet's rooflines (the 10th to 90th percentile of their residuals on measured kernels); "
    "the interval is the range of the runs."
)


def markdown(found: Reproductions, command: str) -> str:
    """Return the page; `command` is what made it."""
    return "\n".join(_lines(found, command)) + "\n"


def _lines(found: Reproductions, command: str) -> Iterator[str]:
    yield "# Published experiments, reproduced"
    yield f"\nMade by `{command}`. {headline(found)}\n"
    yield f"{INTERVALS}\n"
    yield from (f"- **{name}**: {meaning}" for name, meaning in VERDICTS.items())
    yield f"\nEvidence of the published figures: {evidence_meaning()}."
    for outcome in found.outcomes:
        yield from _section(outcome)


def _section(outcome: Outcome) -> Iterator[str]:
    publication = outcome.publication
    yield f"\n## {publication.system}: {publication.title}"
    yield f"\n{publication.source}\n"
    yield from _table((*HEADINGS, "source"), [(*row(c), c.source) for c in outcome.claims])
    yield ""
    yield from (f"- {note}" for note in publication.notes)
    yield "\nNot published:\n"
    yield from (f"- {unknown}" for unknown in publication.unknown)
    yield "\nConstants:\n"
    rows = [(c.name, c.value, c.source, c.fitted_on or "-") for c in outcome.constants]
    yield from _table(("constant", "value", "source", "fitted on"), rows)
    for picture in outcome.pictures:
        yield f"\n{picture.title}, {picture.y_title}\n"
        places = picture.curves[0].x
        shared = all(curve.x == places for curve in picture.curves)
        if shared:
            yield from _table(
                (picture.x_title, *(curve.name for curve in picture.curves)),
                [
                    (f"{x:.3g}", *(f"{curve.y[place]:.3g}" for curve in picture.curves))
                    for place, x in enumerate(places)
                ],
            )
            continue
        for curve in picture.curves:
            pairs = zip(curve.x, curve.y, strict=True)
            points = ", ".join(f"({x:.3g}, {y:.3g})" for x, y in pairs)
            yield f"- {curve.name}, over {picture.x_title}: {points}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    yield from (f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in rows)
