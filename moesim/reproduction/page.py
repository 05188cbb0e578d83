"""Reproductions as one HTML file that opens anywhere, the experiments' plots redrawn."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import cycle

from moesim.reproduction.claims import NOT, VERDICTS, Claim
from moesim.reproduction.markdown import INTERVALS
from moesim.reproduction.outcome import Outcome
from moesim.reproduction.picture import Picture
from moesim.reproduction.systems import Reproductions
from moesim.reproduction.wording import HEADINGS, evidence_meaning, headline, row
from moesim.views.charts import OFF, OTHERS, PREDICTED, Figure, new_figure
from moesim.views.report import STYLE

TITLE = "Published experiments, reproduced"
MORE_STYLE = ".claims td { vertical-align: top; min-width: 5rem; }"


def page(found: Reproductions) -> str:
    """Return the whole file."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{TITLE}</title><style>{STYLE}{MORE_STYLE}</style></head><body>",
        f"<h1>{TITLE}</h1>",
        f'<p class="headline">{escape(headline(found))}</p>',
        f"<p>{escape(INTERVALS)}</p>",
        _definitions(VERDICTS.items()),
        f'<p class="note">Evidence: {escape(evidence_meaning())}.</p>',
        *(
            _section(outcome, with_script=place == 0)
            for place, outcome in enumerate(found.outcomes)
        ),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def drawn(picture: Picture) -> Figure:
    """Draw a picture: a line a curve, bars from low to high, published points as crosses."""
    figure = new_figure(picture.title, picture.x_title, picture.y_title)
    colours = cycle((PREDICTED, *OTHERS))
    for curve, colour in zip(picture.curves, colours, strict=False):
        figure.add_scatter(
            x=curve.x,
            y=curve.y,
            error_y={
                "array": [high - y for high, y in zip(curve.high, curve.y, strict=True)],
                "arrayminus": [y - low for low, y in zip(curve.low, curve.y, strict=True)],
            },
            name=escape(curve.name),
            mode="lines+markers",
            line={"color": colour},
        )
    for name, (x, y) in picture.published.items():
        marker = {"symbol": "x", "size": 11, "color": OFF}
        figure.add_scatter(x=[x], y=[y], name=escape(name), mode="markers", marker=marker)
    if picture.log_x:
        figure.update_xaxes(type="log")
    if picture.log_y:
        figure.update_yaxes(type="log")
    return figure.update_layout(height=420)


def _section(outcome: Outcome, *, with_script: bool) -> str:
    publication = outcome.publication
    constants = [(c.name, c.value, c.source, c.fitted_on or "-") for c in outcome.constants]
    charts = (
        # The first figure carries plotly's script for all of them.
        _embedded(picture, f"{publication.system}-{place}", with_script=with_script and not place)
        for place, picture in enumerate(outcome.pictures)
    )
    return "\n".join(
        [
            f"<h2>{escape(publication.system)}: {escape(publication.title)}</h2>",
            f"<p>{escape(publication.source)}</p>",
            _claims(outcome.claims),
            *charts,
            *_list("Notes", publication.notes),
            *_list("Not published", publication.unknown),
            "<h3>Constants</h3>",
            _table(("constant", "value", "source", "fitted on"), constants),
        ]
    )


def _claims(claims: Sequence[Claim]) -> str:
    rows = [(*row(claim), claim.source) for claim in claims]
    return _table((*HEADINGS, "source"), rows, [claim.verdict == NOT for claim in claims])


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], off: Sequence[bool] = ()) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in headings)
    marks = [*off, *(False for _ in rows[len(off) :])]
    lines = "\n".join(
        f"<tr{' class=off' if mark else ''}>"
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for cells, mark in zip(rows, marks, strict=True)
    )
    return (
        f'<div class="scroll"><table class="claims"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _embedded(picture: Picture, name: str, *, with_script: bool) -> str:
    html = drawn(picture).to_html(
        full_html=False,
        include_plotlyjs=with_script,
        div_id=f"chart-{name}",
        config={"displayModeBar": False, "responsive": True},
    )
    return f'<div class="chart">{html}</div>'


def _definitions(entries: Iterable[tuple[str, str]]) -> str:
    pairs = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries)
    return f"<dl>{''.join(pairs)}</dl>"


def _list(title: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    items = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
    return [f"<h3>{title}</h3>", f'<ul class="note">{items}</ul>']
