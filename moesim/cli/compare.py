"""`moesim compare`: deployments of one workload side by side."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.errors import ScenarioError
from moesim.files import check_outputs

if TYPE_CHECKING:
    import pandas as pd

    from moesim.scenario import Scenario

HELP = """Compare deployments: of one scenario its own with its `alternatives`, or of several
scenarios of the same tenants. The first is the one that ratios are to.

All meet the same requests and the same errors of their profiles, run by run, so that the ratios
hold what the deployments themselves do. Shown is the median over runs, and from where to
where nine in ten single runs fall.

Examples:

  moesim compare two-variants --loads 0.5,1,2 --plot turnaround.html

  moesim compare dedicated.yaml mig.yaml

  moesim compare dedicated.yaml mig.yaml --loads 0.5,1,1.5,2 --plot turnaround.html

  moesim compare a.yaml b.yaml --json | jq '.[] | select(.metric == "ttft_s")'
"""


def compare(
    scenarios: Annotated[
        list[str], typer.Argument(help="Scenario files or shipped scenarios' names.")
    ],
    loads: Annotated[
        str, typer.Option(help="Factors on every tenant's rate, with commas between.")
    ] = "1",
    seed: Annotated[int, typer.Option(min=0, help="Seed of arrivals and lengths.")] = 0,
    replications: Annotated[
        int | None, typer.Option(min=1, help="Runs of each; by default 20, fewer of many requests.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw turnaround over load into this HTML file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Compare deployments of one workload."""
    import pandas as pd

    from moesim.planning.load import at_load

    factors = _factors(loads)
    named = _named(scenarios)
    check_outputs({"--plot": plot}, _read_for(scenarios, named))
    for load in factors:
        at_load(next(iter(named.values())), load)
    table = pd.concat([_at(named, load, seed, replications) for load in factors], ignore_index=True)
    if plot is not None:
        from moesim.views.deployments import write_page

        write_page(plot, table)
    if as_json:
        print(json.dumps(json.loads(table.to_json(orient="records")), indent=1))
        return
    from moesim.views.deployments_terminal import show_deployments

    show_deployments(table)
    if plot is not None:
        print(f"plot written to {plot}")


def _named(names: list[str]) -> dict[str, "Scenario"]:
    """Load the scenarios; two of one name are told apart by what was typed."""
    from moesim.planning.side_by_side import same_traffic
    from moesim.scenario import load_scenario

    loaded = [load_scenario(name) for name in names]
    if len(loaded) == 1:
        found = loaded[0].side_by_side()
        if len(found) == 1:
            raise ScenarioError(
                f"compare: {names[0]} has no alternatives; write some, or give another scenario"
            )
        return found
    titles = [scenario.name for scenario in loaded]
    if len(set(titles)) < len(titles):
        titles = names
    if len(set(titles)) < len(titles):
        raise ScenarioError(f"compare: {names[-1]} is given twice; give different scenarios")
    found = {
        name if len(parts) == 1 else f"{title}: {name}": part
        for title, scenario in zip(titles, loaded, strict=True)
        for parts in [scenario.side_by_side()]
        for name, part in (parts.items() if len(parts) > 1 else [(title, scenario)])
    }
    same_traffic(found)
    return found


def _read_for(names: list[str], named: dict[str, "Scenario"]) -> list[Path]:
    """Return the files that the comparison reads."""
    from moesim.facts.catalog import locate

    written = [locate("scenarios", name) for name in names]
    return [*written, *(path for scenario in named.values() for path in scenario.files())]


def _at(
    named: dict[str, "Scenario"], load: float, seed: int, replications: int | None
) -> "pd.DataFrame":
    from moesim.planning.load import at_load, rounded
    from moesim.planning.side_by_side import side_by_side
    from moesim.simulation.replications import replicate

    found = {
        name: replicate(at_load(scenario, load), seed=seed, replications=replications)
        for name, scenario in named.items()
    }
    notes = rounded(next(iter(named.values())), load)
    devices = {name: each.deployment.devices(list(each.models)) for name, each in named.items()}
    return side_by_side(found, notes, devices).assign(load=load)


def _factors(text: str) -> list[float]:
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        raise ScenarioError(f"--loads: {text!r}: give numbers with commas between") from None
    if len(set(factors)) < len(factors):
        raise ScenarioError(f"--loads: {text!r}: a load is given twice; give each once")
    return factors
