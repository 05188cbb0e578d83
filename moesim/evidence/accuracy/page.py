"""Accuracy as one HTML file that opens anywhere, every row in it."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape

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

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 90rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem; }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #e3e3e3; text-align: left; }
"""


def page(found: Accuracy, bad: Sequence[Worst]) -> str:
    """Return the page."""
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>Published results, predicted</title><style>{STYLE}</style></head><body>",
            *_parts(found, bad),
            "</body></html>\n",
        ]
    )


def _parts(found: Accuracy, bad: Sequence[Worst]) -> Iterator[str]:
    yield f"<h1>Published results, predicted</h1><p>{escape(headline(found))}</p>"
    yield f"<p>{escape(HOW)}</p><p>Predictions rest on: {escape(basis_words(found))}.</p>"
    assumed = (*assumptions(found.rows), *like_words(found.judged))
    yield f"<ul>{''.join(f'<li>{escape(said)}</li>' for said in assumed)}</ul>"
    yield from (f"<p>Fitted: {escape(fit_words(fit))}.</p>" for fit in found.fits)
    if len(found.rows):
        yield "<h2>By source, engine, GPU and figure</h2>"
        yield _table(
            SUMMARY, map(summary_row, summaries(found.judged, BY_MODEL).to_dict("records"))
        )
        yield "<h2>One factor for each engine version and GPU, cross-validated</h2>"
        yield _table(FACTORS, map(factor_row, factors_of(found.rows).to_dict("records")))
        yield from (f"<p>No factor: {escape(said)}.</p>" for said in factorless(found.rows))
        yield "<h2>The worst rows</h2>"
        yield _table(WORST, map(worst_row, bad))
    yield "<h2>Rows that are not simulated</h2>"
    yield _table(("rows", "reason"), ((f"{n:,}", why) for why, n in found.left_out.most_common()))
    yield "<h2>Row by row</h2>"
    yield _table(ROWS, map(row_cells, found.rows.to_dict("records")))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in headings)
    body = "\n".join(
        f"<tr>{''.join(f'<td>{_whole(cell)}</td>' for cell in cells)}</tr>" for cells in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _whole(cell: str) -> str:
    """Return a cell whose numbers are not parted from their per cent signs."""
    return escape(cell).replace(" %", "&nbsp;%")
