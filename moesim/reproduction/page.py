"""Reproductions as one HTML file that opens anywhere, the experiments' plots redrawn."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import cycle

from moesim.reproduction.annex import Annex
from moesim.reproduction.claims import NOT, VERDICTS, Claim
from moesim.reproduction.markdown import INTERVALS
from moesim.reproduction.outcome import Outcome
from moesim.reproduction.picture import PUBLISHED, Picture
from moesim.reproduction.systems import Reproductions
from moesim.reproduction.wording import HEADINGS, counted, evidence_meaning, headline, row
from moesim.views.charts import DASHES, INK, OTHERS, PREDICTED, Figure, new_figure
from moesim.views.report import STYLE

TITLE = "Published experiments, reproduced"
MORE_STYLE = """
body { max-width: 72rem; } h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
table { overflow-wrap: break-word; } td { vertical-align: top; } th { white-space: nowrap; }
.claims { width: 100%; } .claims td + td { white-space: nowrap; }
.claims tr.told td { border-bottom: none; padding-bottom: 0; }
.claims .off td { font-weight: 400; }
.ratios td { white-space: nowrap; } .ratios th { white-space: normal; vertical-align: bottom; }
"""

Look = tuple[str, str]
"""A curve's colour and dash."""


def page(found: Reproductions) -> str:
    """Return the whole file."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{TITLE}</title><style>{STYLE}{MORE_STYLE}</style></head><body>",
        f"<h1>{TITLE}</h1>",
        f'<p class="headline">{escape(headline(found))}</p>',
        _contents(found.outcomes),
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


def looks_of(pictures: Iterable[Picture]) -> dict[str, Look]:
    """Return a look for each name, so that a curve looks the same in all pictures."""
    names = dict.fromkeys(curve.name for picture in pictures for curve in picture.curves)
    looks = zip(cycle((PREDICTED, *OTHERS)), cycle(DASHES), strict=False)
    return dict(zip(names, looks, strict=False))


def drawn(picture: Picture, looks: Mapping[str, Look]) -> Figure:
    """Draw a picture: a line a curve, bars from low to high, published points as crosses."""
    figure = new_figure(picture.title, picture.x_title, picture.y_title)
    for curve in picture.curves:
        colour, dash = looks[curve.name]
        figure.add_scatter(
            x=curve.x,
            y=curve.y,
            error_y={
                "array": [high - y for high, y in zip(curve.high, curve.y, strict=True)],
                "arrayminus": [y - low for low, y in zip(curve.low, curve.y, strict=True)],
            },
            name=escape(curve.name),
            mode="lines+markers",
            line={"color": colour, "dash": dash},
        )
    for name, (x, y) in picture.published.items():
        # In the colour of the curve that it belongs to.
        colour, _ = looks.get(name.removeprefix(PUBLISHED), (INK, ""))
        marker = {"symbol": "x", "size": 11, "color": colour}
        figure.add_scatter(x=[x], y=[y], name=escape(name), mode="markers", marker=marker)
    if picture.level is not None:
        figure.add_hline(y=picture.level, line={"color": INK, "width": 1})
    if picture.log_x:
        figure.update_xaxes(type="log")
    if picture.log_y:
        figure.update_yaxes(type="log")
    return figure.update_layout(height=420)


def _section(outcome: Outcome, *, with_script: bool) -> str:
    publication = outcome.publication
    constants = [(c.name, c.value, c.source, c.fitted_on or "-") for c in outcome.constants]
    # The first figure carries plotly's script for all of them.
    charts = _charts(outcome.pictures, publication.system, with_script=with_script)
    title = f"{publication.system}: {publication.title}"
    return "\n".join(
        [
            f'<h2 id="{escape(publication.system)}">{escape(title)}</h2>',
            f"<p>{escape(publication.source)}</p>",
            _claims(outcome.claims),
            *charts,
            *(
                _annex(annex, f"{publication.system}-annex-{place}")
                for place, annex in enumerate(outcome.annexes)
            ),
            *_list("Notes", publication.notes),
            *_list("Not published", publication.unknown),
            "<h3>Constants</h3>",
            _table(("constant", "value", "source", "fitted on"), constants),
        ]
    )


def _contents(outcomes: Sequence[Outcome]) -> str:
    """Return a link to each system, with what came out of it."""
    return _list_of(
        f'<a href="#{escape(outcome.publication.system)}">{escape(outcome.publication.system)}</a>'
        f": {escape(outcome.publication.title)}; {counted(outcome.claims)}"
        for outcome in outcomes
    )


def _annex(annex: Annex, name: str) -> str:
    """Return a part without published counterpart; the page has plotly's script already."""
    return "\n".join(
        [
            f"<h3>{escape(annex.title)}</h3>",
            *(f"<p>{escape(sentence)}</p>" for sentence in annex.says),
            _table(annex.table.headings, annex.table.rows, kind="ratios"),
            *_charts(annex.pictures, name, with_script=False),
        ]
    )


def _claims(claims: Sequence[Claim]) -> str:
    """Return two rows a claim: its figures, then why it is judged so and where it stands."""
    lines = []
    for claim in claims:
        mark = " off" if claim.verdict == NOT else ""
        cells = (*row(claim)[:-1], claim.verdict)
        why = f"{claim.why[0].upper()}{claim.why[1:]}. " if claim.why else ""
        told = f'<td class="note" colspan="{len(cells)}">{escape(f"{why}Source: {claim.source}")}'
        lines += [f'<tr class="told{mark}">{_cells(cells)}</tr>', f"<tr>{told}</td></tr>"]
    return _tabled(HEADINGS, lines, "claims")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "plain") -> str:
    return _tabled(headings, [f"<tr>{_cells(cells)}</tr>" for cells in rows], kind)


def _cells(cells: Sequence[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)


def _tabled(headings: Sequence[str], rows: Sequence[str], kind: str) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in headings)
    lines = "\n".join(rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _charts(pictures: Sequence[Picture], name: str, *, with_script: bool) -> list[str]:
    looks = looks_of(pictures)
    return [
        _embedded(drawn(picture, looks), f"{name}-{place}", with_script=with_script and not place)
        for place, picture in enumerate(pictures)
    ]


def _embedded(figure: Figure, name: str, *, with_script: bool) -> str:
    html = figure.to_html(
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
    return [f"<h3>{title}</h3>", _list_of(escape(entry) for entry in entries)]


def _list_of(items: Iterable[str]) -> str:
    """Return a list of what is HTML already."""
    return f'<ul class="note">{"".join(f"<li>{item}</li>" for item in items)}</ul>'
