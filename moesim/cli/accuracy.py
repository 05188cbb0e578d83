"""`moesim accuracy`: a table of published results, predicted row by row."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.commands import progress_bar
from moesim.errors import ScenarioError
from moesim.files import check_outputs, write_text

if TYPE_CHECKING:
    from moesim.evidence.accuracy.outcome import Accuracy

HELP = """Predict the rows of a table of published results, and say how far off that is.

TABLE is a CSV file with the columns source, model, gpu, tp, ep, precision, isl, osl, load,
scenario, metric, value, software, note; docs/results-tables.md has the words that each may hold,
and rows to start from. Each row's experiment is simulated. Rows that cannot be are counted, each
under its reason.

Examples:

  moesim accuracy data/published/small_batches.csv --report accuracy.html

  moesim accuracy results.csv --gpu h100 --model mixtral

  moesim accuracy results.csv --profile roofline --json | jq '.summary[]'
"""


def accuracy(
    table: Annotated[Path, typer.Argument(help="A CSV file of results.")],
    gpu: Annotated[str, typer.Option(help="Only GPUs whose name contains this.")] = "",
    source: Annotated[str, typer.Option(help="Only sources whose name contains this.")] = "",
    model: Annotated[str, typer.Option(help="Only models whose name contains this.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows.")] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="A profile of kernels, or `roofline`; each GPU's own if not given."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all rows as JSON.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a report: .html, with every row, or .md."),
    ] = None,
) -> None:
    """Predict a table of published results."""
    from moesim.evidence.accuracy.outcome import Choice
    from moesim.evidence.accuracy.outcome import accuracy as run
    from moesim.evidence.accuracy.worst import worst

    check_outputs({"--report": report}, [table])
    if report is not None and report.suffix not in (".html", ".md"):
        raise ScenarioError(f"--report: {report}: ends in neither .html nor .md; name it so")
    choice = Choice(gpu=gpu, source=source, model=model, limit=limit)
    with progress_bar() as told:
        found = run(table, choice, profile=profile, told=told)
    if found.rows.empty:
        raise ScenarioError(
            f"{table}: none of {found.chosen:,} rows could be predicted{_why(found)}"
        )
    bad = [] if as_json and report is None else worst(found)
    if report is not None:
        from moesim.evidence.accuracy.markdown import markdown
        from moesim.evidence.accuracy.page import page

        command = f"moesim accuracy {table.name}{_options(choice, profile)} --report {report}"
        text = markdown(found, bad, command) if report.suffix == ".md" else page(found, bad)
        write_text(report, text)
    if as_json:
        print(json.dumps(_content(found), indent=1))
        return
    from moesim.evidence.accuracy.terminal import show

    show(found, bad)
    if report is not None:
        print(f"report written to {report}")


def _why(found: "Accuracy") -> str:
    """Return the most frequent reason, and how many others there are."""
    (reason, _), *others = found.left_out.most_common()
    more = f" (and {len(others)} other reasons)" if others else ""
    return f": {reason}{more}; docs/results-tables.md has what is understood"


def _options(choice: object, profile: str | None) -> str:
    given = {name: getattr(choice, name) for name in ("gpu", "source", "model", "limit")}
    given["profile"] = profile
    return "".join(f" --{name} {value}" for name, value in given.items() if value)


def _content(found: "Accuracy") -> dict[str, object]:
    """Return what `--json` prints: rows, summaries, factors, and what was left out."""
    from moesim.evidence.accuracy.summary import BY_MODEL, factors_of, summaries
    from moesim.evidence.accuracy.wording import fit_words

    judged = found.judged
    tables = {
        "rows": found.rows,
        "summary": summaries(judged, BY_MODEL),
        "factors": factors_of(found.rows),
    }
    return {
        "table": found.table,
        "profiles": dict(found.profiles),
        **{name: json.loads(part.to_json(orient="records")) for name, part in tables.items()},
        "fitted": [fit_words(fit) for fit in found.fits],
        "left_out": dict(found.left_out.most_common()),
    }
