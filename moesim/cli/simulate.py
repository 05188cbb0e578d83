"""`moesim simulate`: predict one scenario."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.files import check_outputs, write_text

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.simulation.replications import Progress
    from moesim.simulation.run import Result

HELP = """Simulate a scenario and print its latencies, throughput and goodput.

It is run several times, with other draws of arrivals and lengths and with the profile redrawn
within its errors. Shown is the median of these runs, and from where to where nine in ten single
runs fall; files and timeline are of the first run, with the profile as measured.

Examples:

  moesim simulate quickstart

  moesim simulate scenario.yaml --json | jq .overall.ttft_s.p99

  moesim simulate scenario.yaml --profile my-gpu.json --out results/

  moesim simulate scenario.yaml --timeline run.json   (open it at ui.perfetto.dev)
"""

WRITTEN = ("records.parquet", "metrics.json", "scenario.yaml")
"""The files in the folder of results."""

PATIENCE_S = 2.0
"""How long nothing is said on a terminal before progress shows [s]."""


def simulate(
    scenario: Annotated[str, typer.Argument(help="A scenario file or a shipped scenario's name.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of arrivals and lengths.")] = 0,
    replications: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs in all: 1 is a single one without intervals, 20 hold nine in ten. "
            "By default 20, fewer of many requests.",
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Use this profile for every model of the scenario.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write records.parquet, metrics.json and scenario.yaml here."),
    ] = None,
    timeline: Annotated[
        Path | None,
        typer.Option(help="Write the first run's iterations and requests as Perfetto's JSON."),
    ] = None,
    series: Annotated[
        Path | None,
        typer.Option(help="Write the first run's queue, batch, KV use and tokens/s as CSV."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
    stepwise: Annotated[
        bool, typer.Option("--stepwise", help="Run every iteration one by one: slow, a check.")
    ] = False,
) -> None:
    """Simulate a scenario."""
    from moesim.facts.catalog import locate
    from moesim.scenario import load_scenario
    from moesim.simulation.replications import replicate

    written = load_scenario(scenario)
    if profile is not None:
        written = written.with_profile(profile)
    outputs = _outputs(out, timeline, series)
    check_outputs(outputs, [locate("scenarios", scenario), *written.files()])
    with _progress() as progress:
        found = replicate(
            written,
            seed=seed,
            replications=replications,
            stepwise=stepwise,
            progress=progress,
        )
    metrics = found.metrics()
    files = _write_files(written, found.first, metrics, out, timeline, series)
    if as_json:
        print(json.dumps(metrics, indent=1))
        return
    from moesim.views.terminal import show_metrics

    show_metrics(metrics, found.elapsed_s)
    for line in files:
        print(line)


def _outputs(
    out: Path | None, timeline: Path | None, series: Path | None
) -> dict[str, Path | None]:
    """Return every file that is to be written, by the option that asks for it."""
    folder = {f"--out {name}": out / name for name in WRITTEN} if out is not None else {}
    return {**folder, "--timeline": timeline, "--series": series}


def _write_files(
    scenario: "Scenario",
    first: "Result",
    metrics: dict[str, Any],
    out: Path | None,
    timeline: Path | None,
    series: Path | None,
) -> list[str]:
    """Write what was asked for and return what to say of it."""
    said = []
    if out is not None:
        _write_folder(out, scenario, first, metrics)
        said.append(f"records, metrics and scenario written to {out}/")
    if timeline is not None:
        from moesim.views.timeline import copies_of, reconfigurations_of, write_timeline

        spans = [*copies_of(first.copies), *reconfigurations_of(first.loads)]
        write_timeline(timeline, first.records, first.logs, spans=spans)
        said.append(f"timeline written to {timeline}; open it at ui.perfetto.dev")
    if series is not None:
        write_text(series, first.series().to_csv(index=False))
        said.append(f"series written to {series}")
    return said


def _write_folder(
    out: Path, scenario: "Scenario", first: "Result", metrics: dict[str, Any]
) -> None:
    import yaml

    from moesim.serving.records import write_records

    records, figures, copy = (out / name for name in WRITTEN)
    write_records(first.records, records)
    write_text(figures, json.dumps(metrics, indent=1) + "\n")
    write_text(copy, yaml.safe_dump(scenario.to_content(), sort_keys=False))


@contextmanager
def _progress() -> Iterator["Progress"]:
    """Show a bar on stderr where somebody is watching and it takes long."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("runs"), BarColumn(), MofNCompleteColumn(), console=console, transient=True
    )
    task = bar.add_task("runs")
    begun_s = time.monotonic()

    def tell(done: int, of: int) -> None:
        if console.is_terminal and time.monotonic() - begun_s > PATIENCE_S:
            bar.start()
            bar.update(task, completed=done, total=of)

    try:
        yield tell
    finally:
        # Stopped without having started it would print an empty line.
        if bar.live.is_started:
            bar.stop()
