"""`moesim simulate`: predict one scenario."""

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

HELP = """Simulate a scenario and print its latencies, throughput and goodput.

Examples:

  moesim simulate quickstart

  moesim simulate scenario.yaml --json | jq .overall.ttft_s.p99

  moesim simulate scenario.yaml --profile my-gpu.json --out results/
"""


def simulate(
    scenario: Annotated[str, typer.Argument(help="A scenario file or a shipped scenario's name.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of arrivals and lengths.")] = 0,
    profile: Annotated[
        str | None, typer.Option(help="Use this profile for every model of the scenario.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write records.parquet, metrics.json and scenario.yaml here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
    stepwise: Annotated[
        bool, typer.Option("--stepwise", help="Run every iteration one by one: slow, a check.")
    ] = False,
) -> None:
    """Simulate a scenario."""
    from moesim.cost.profile import load_profile
    from moesim.files import write_text
    from moesim.scenario import load_scenario
    from moesim.serving.records import write_records
    from moesim.simulation.run import simulate as run_simulation

    written = load_scenario(scenario)
    given = {name: load_profile(profile) for name in written.models} if profile else {}
    result = run_simulation(written, given, seed, stepwise=stepwise)
    metrics = result.metrics()
    if out is not None:
        write_records(result.records, out / "records.parquet")
        write_text(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        dumped = yaml.safe_dump(written.to_content(), sort_keys=False)
        write_text(out / "scenario.yaml", dumped)
    if as_json:
        print(json.dumps(metrics, indent=1))
    else:
        from moesim.views.terminal import show_metrics

        show_metrics(metrics, result.elapsed_s)
        if out is not None:
            print(f"records, metrics and scenario written to {out}/")
