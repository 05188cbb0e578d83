"""Reproductions as a page in Markdown."""

from collections.abc import Iterable, Iterator, Sequence

from moesim.reproduction.annex import Annex
from moesim.reproduction.claims import VERDICTS
from moesim.reproduction.outcome import Outcome
from moesim.reproduction.picture import Picture
from moesim.reproduction.systems import Reproductions
from moesim.reproduction.wording import HEADINGS, evidence_meaning, headline, row
from moesim.views.wording import MISSING

INTERVALS = (
    "A simulated figure is the median over five runs with other arrivals and other errors: the "
    "10th to 90th percentile of what engines took on published results beside their kernels alone "
    "(of one engine, where it is known), or of what measured kernels took beside rooflines. The "
    "interval is the range of the runs."
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
        yield from _picture(picture)
    for annex in outcome.annexes:
        yield from _annex(annex)


def _annex(annex: Annex) -> Iterator[str]:
    yield f"\n### {annex.title}\n"
    yield from (f"{sentence}\n" for sentence in annex.says)
    yield from _table(annex.table.headings, annex.table.rows)
    for picture in annex.pictures:
        yield from _picture(picture)


def _picture(picture: Picture) -> Iterator[str]:
    """Yield a plot's points: as a table where most curves have the same places, else a list."""
    yield f"\n{picture.title}, {picture.y_title}\n"
    places = max((curve.x for curve in picture.curves), key=len)
    if all(set(curve.x) <= set(places) for curve in picture.curves):
        points = [dict(zip(curve.x, curve.y, strict=True)) for curve in picture.curves]
        yield from _table(
            (picture.x_title, *(curve.name for curve in picture.curves)),
            [(_short(x), *(_short(each.get(x)) for each in points)) for x in places],
        )
        return
    for curve in picture.curves:
        pairs = zip(curve.x, curve.y, strict=True)
        written = ", ".join(f"({_short(x)}, {_short(y)})" for x, y in pairs)
        yield f"- {curve.name}, over {picture.x_title}: {written}"


def _short(value: float | None) -> str:
    """Write three significant digits: 1,024 and not 1.02e+03."""
    return MISSING if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    yield from (f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in rows)
