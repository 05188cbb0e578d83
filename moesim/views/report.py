"""The report of a validation: one HTML file that opens anywhere, also without a network."""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import pandas as pd

from moesim.evidence.validation import named_tables
from moesim.files import write_text
from moesim.serving.metrics import LATENCIES
from moesim.views.charts import Figure, errors, latency_cdf, running_over_time
from moesim.views.tables import (
    COMPARISON_HEADINGS,
    OFF,
    VERDICT,
    comparison_rows,
    headline,
    predicted_group,
)
from moesim.views.wording import GLOSSARY

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.headline { font-size: 1.2rem; margin: .5rem 0 1.5rem; }
.scroll { overflow-x: auto; } .chart { margin-bottom: 1.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e3e3e3; text-align: left; }
.figures { width: 100%; } .figures td, .figures th { white-space: nowrap; text-align: right; }
.figures td:first-child, .figures th:first-child { text-align: left; }
.off td { color: #a84300; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; }
dt { font-weight: 600; } dd { margin: 0; }
.note { color: #555; font-size: .92rem; }
@media (max-width: 36rem) { dl { display: block; } dd { margin-bottom: .5rem; } }
@media print { body { margin: 0; max-width: none; } .chart { break-inside: avoid; } }
"""


def write_report(
    path: Path,
    *,
    title: str,
    comparison: pd.DataFrame,
    measured: list[pd.DataFrame],
    predicted: pd.DataFrame,
    facts: Mapping[str, str],
    notes: list[str],
) -> None:
    """Write what was measured beside what was predicted; the file appears whole or not at all."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="headline">{escape(headline(comparison))}</p>',
        "<h2>Measured beside predicted</h2>",
        _table(comparison),
        "<h2>Charts</h2>",
        *_charts(comparison, named_tables(measured, predicted)),
        "<h2>What was run</h2>",
        _definitions(facts),
        *_notes(notes),
        "<h2>Terms</h2>",
        _definitions(GLOSSARY),
    ]
    write_text(path, _page(title, parts))


def _page(title: str, parts: Iterable[str]) -> str:
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            *parts,
            "</body></html>\n",
        ]
    )


def _table(comparison: pd.DataFrame) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in COMPARISON_HEADINGS)
    rows = "\n".join(_row(row) for row in comparison_rows(comparison))
    return (
        f'<div class="scroll"><table class="figures"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(row: tuple[str, ...]) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
    return f'<tr class="off">{cells}</tr>' if row[VERDICT] == OFF else f"<tr>{cells}</tr>"


def _charts(comparison: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    estimates = {"predicted": predicted_group(comparison)}
    figures = {
        "errors": errors(comparison),
        **{metric: latency_cdf(tables, metric, estimates=estimates) for metric in LATENCIES},
        "running": running_over_time(tables),
    }
    # The first figure carries plotly's script for all of them.
    return [
        _embedded(figure, name, with_script=index == 0)
        for index, (name, figure) in enumerate(figures.items())
    ]


def _embedded(figure: Figure, name: str, *, with_script: bool) -> str:
    html = figure.to_html(
        full_html=False,
        include_plotlyjs=with_script,
        div_id=f"chart-{name}",
        config={"displayModeBar": False, "responsive": True},
    )
    return f'<div class="chart">{html}</div>'


def _definitions(entries: Mapping[str, str]) -> str:
    pairs = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in entries.items())
    return f"<dl>{''.join(pairs)}</dl>"


def _notes(notes: list[str]) -> list[str]:
    if not notes:
        return []
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return ["<h2>Notes</h2>", f'<ul class="note">{items}</ul>']
