"""Accuracy as a page in Markdown."""

from collections.abc import Iterable, Iterator, Sequence

from moesim.evidence.accuracy.assumed import assumptions
from moesim.evidence.accuracy.factors import factorless
from moesim.evidence.accuracy.outcome import Accuracy
from moesim.evidence.accuracy.summary import BY_MODEL, factors_of, summaries
from moesim.evidence.accuracy.wording import (
    FACTORS,
    HOW,
    ROWS,
    SUMMARY,
    WORST,
    basis_words,
    factor_row,
    fit_words,
    headline,
    like_words,
    row_cells,
    summary_row,
    worst_row,
)
from moesim.evidence.accuracy.worst import Worst

LISTED = 400
"""Rows that a page lists one by one; of more it lists none."""


def markdown(found: Accuracy, bad: Sequence[Worst], command: str) -> str:
    """Return the page; `command` is what made it."""
    return "\n".join(_lines(found, bad, command)) + "\n"


def _lines(found: Accuracy, bad: Sequence[Worst], command: str) -> Iterator[str]:
    yield "# Published results, predicted"
    yield f"\nMade by `{command}`. {headline(found)}\n"
    yield f"{HOW}\n"
    yield f"Predictions rest on: {basis_words(found) or 'nothing'}."
    yield "\n## What is assumed, and what is weak\n"
    yield from (f"- {assumed}" for assumed in (*assumptions(found.rows), *like_words(found.judged)))
    if found.rows.empty:
        yield from _left_out(found)
        return
    if found.fits:
        yield "\n## Fitted\n"
        yield from (f"- {fit_words(fit)}" for fit in found.fits)
    yield "\n## By source, engine, GPU and figure\n"
    rows = summaries(found.judged, BY_MODEL).to_dict("records")
    yield from _table(SUMMARY, map(summary_row, rows))
    factors = factors_of(found.rows)
    if len(factors):
        yield "\n## One factor for each engine version and GPU, cross-validated\n"
        yield from _table(FACTORS, map(factor_row, factors.to_dict("records")))
    if missing := factorless(found.rows):
        yield "\n## No factor\n"
        yield from (f"- {said}" for said in missing)
    yield "\n## The worst rows\n"
    yield from _table(WORST, map(worst_row, bad))
    yield from _left_out(found)
    yield "\n## Row by row\n"
    if len(found.rows) <= LISTED:
        yield from _table(ROWS, map(row_cells, found.rows.to_dict("records")))
    else:
        yield f"{len(found.rows):,} rows; `--json` and a report named .html have them all."


def _left_out(found: Accuracy) -> Iterator[str]:
    yield "\n## Rows that are not simulated\n"
    if not found.left_out:
        yield "None."
        return
    rows = ((f"{many:,}", reason) for reason, many in found.left_out.most_common())
    yield from _table(("rows", "reason"), rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    yield from (f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in rows)
