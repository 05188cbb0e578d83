"""`moesim reproduce`: published experiments, run as scenarios, beside what was published."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.commands import progress_bar
from moesim.errors import ScenarioError
from moesim.files import check_outputs, write_text

if TYPE_CHECKING:
    from moesim.reproduction.systems import Reproductions

HELP = """Run published experiments and put what was published beside what is simulated.

SYSTEM is {systems} or `all`. Each claim ends as reproduced (within the stated tolerance), shape
reproduced, not reproduced (and why), or not checkable (and what is unknown).

Examples:

  moesim reproduce all --report reproductions.html

  moesim reproduce qos-moe --json | jq '.[] | select(.verdict == "not reproduced")'
"""

ALL = "all"


def help_text() -> str:
    """Return the help, with the systems that there are."""
    from moesim.reproduction.names import NAMES

    return HELP.format(systems=", ".join(NAMES))


def reproduce(
    system: Annotated[str, typer.Argument(help="A published system, or `all`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the claims as JSON.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Write an HTML file with the plots; one named .md is Markdown."),
    ] = None,
) -> None:
    """Reproduce published experiments."""
    names = _named(system)
    check_outputs({"--report": report})
    from moesim.reproduction.systems import reproduce as run

    with progress_bar() as progress:
        found = run(names, progress)
    if report is not None:
        write_text(report, _written(found, report, system))
    if as_json:
        print(json.dumps([claim.as_dict() for claim in found.claims], indent=1))
        return
    from moesim.reproduction.terminal import show

    show(found)
    if report is not None:
        print(f"report written to {report}")


def _named(system: str) -> list[str]:
    from moesim.reproduction.names import NAMES

    if system == ALL:
        return list(NAMES)
    if system not in NAMES:
        raise ScenarioError(f"reproduce: {system!r} is not one of {', '.join(NAMES)} or {ALL}")
    return [system]


def _written(found: "Reproductions", report: Path, system: str) -> str:
    if report.suffix == ".md":
        from moesim.reproduction.markdown import markdown

        return markdown(found, f"moesim reproduce {system} --report {report}")
    from moesim.reproduction.page import page

    return page(found)
