"""`moesim profile`: files of kernels made of public tables, and what any profile holds."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.errors import ScenarioError

app = typer.Typer(help="Import, show and compare profiles.", no_args_is_help=True)
importing = typer.Typer(help="Make a file of kernels of public tables.", no_args_is_help=True)
app.add_typer(importing, name="import")

MODELS = ["mixtral-8x7b", "mixtral-8x22b", "llama-3-8b", "llama-3-70b"]
"""Whose shapes are imported unless told: those of the shipped files."""

Out = Annotated[Path, typer.Option("--out", help="Where to write the file.")]
Where = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the CSV files.")]
DeviceOption = Annotated[
    str, typer.Option("--device", help="The device profiled: a shipped name or a YAML file.")
]
ModelOption = Annotated[
    str, typer.Option("--model", help="The model profiled: a shipped name or a config.json.")
]


@app.callback()
def profile() -> None:
    """Import, show and compare profiles."""


@importing.callback()
def import_() -> None:
    """Make a file of kernels of public tables, for `profile:` in a scenario."""


@importing.command(
    name="aiconfigurator",
    help="""Take the kernels of some models' shapes from AIConfigurator's tables.

The tables are those of the installed `aiconfigurator-core` (pip install 'moesim[import]'), or of a
folder of such parquet files.

Examples:

  moesim profile import aiconfigurator --system h100_sxm --backend trtllm --out h100.json

  moesim profile import aiconfigurator --system h200_sxm --backend vllm --models qwen3-30b-a3b
  --out h200-vllm.json
""",
)
def aiconfigurator(
    out: Out,
    system: Annotated[str, typer.Option(help="The tables' name of the device: h100_sxm, ...")],
    backend: Annotated[str, typer.Option(help="trtllm, vllm or sglang.")] = "trtllm",
    version: Annotated[
        str | None, typer.Option(help="Its version; none is the newest with all tables.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--from", help="A folder of tables; none is the installed one.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--models", help="Models whose shapes are wanted; may be repeated."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Our name or YAML file of the device, if it is not shipped.")
    ] = None,
) -> None:
    """Import AIConfigurator's tables."""
    from moesim.cost.kernels.importing import from_aiconfigurator
    from moesim.cost.kernels.sources import DEVICES
    from moesim.cost.places import check_place
    from moesim.facts.catalog import load_device, load_model

    check_place(out)
    name = device or DEVICES.get(system)
    if name is None:
        raise ScenarioError(
            f"--system: {system}: no shipped device; give --device with its YAML file "
            f"(known: {', '.join(DEVICES)})"
        )
    specs = {Path(model).stem: load_model(model) for model in models or MODELS}
    kernels = from_aiconfigurator(
        load_device(name),
        specs,
        system=system,
        backend=backend,
        version_wanted=version,
        folder=folder,
        command=_command(),
    )
    _write(kernels, out)


@importing.command(name="vidur", help="Take a folder of Vidur's profiler: mlp.csv, attention.csv.")
def vidur(folder: Where, out: Out, device: DeviceOption, model: ModelOption) -> None:
    """Import a folder of Vidur's layout."""
    _folder("vidur", folder, out, device, model)


@importing.command(
    name="llmservingsim", help="Take a folder of LLMServingSim's profiler: meta.yaml, tp1, tp2, ..."
)
def llmservingsim(folder: Where, out: Out, device: DeviceOption, model: ModelOption) -> None:
    """Import a folder of LLMServingSim's layout."""
    _folder("llmservingsim", folder, out, device, model)


def _folder(layout: str, folder: Path, out: Path, device: str, model: str) -> None:
    from moesim.cost.kernels.importing import from_folder
    from moesim.cost.places import check_place
    from moesim.facts.catalog import load_device, load_model

    check_place(out)
    kernels = from_folder(
        layout,
        folder,
        load_device(device),
        Path(model).stem,
        load_model(model),
        command=_command(),
    )
    _write(kernels, out)


def _command() -> str:
    """Return the command as it was typed, without the path of the program."""
    return shlex.join(["moesim", *sys.argv[1:]])


def _write(kernels: Any, out: Path) -> None:
    from moesim.cost.kernels.tables import save_kernels
    from moesim.views.kernels_terminal import show_kernels

    save_kernels(kernels, out)
    show_kernels(out.name, kernels)
    print(f"written to {out}")


@app.command(
    help="""Show what a profile holds: curves, measured points, errors, rooflines, bases.

FILE is a shipped profile or a path, of one model or of a device's kernels.

Examples:

  moesim profile show h100-sxm-80gb --plot h100.html

  moesim profile show demo-cpu --json | jq .verdict
"""
)
def show(
    file: Annotated[str, typer.Argument(help="A shipped profile or a file.")],
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into this HTML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Show a profile."""
    from moesim.cost.kernels.tables import is_kernels, kernels_from
    from moesim.cost.places import check_drawing
    from moesim.cost.profile import profile_from, read_profile

    check_drawing(plot)
    content = read_profile(file)
    if is_kernels(content):
        _show_kernels(file, kernels_from(content, file), plot, as_json)
    else:
        _show_profile(file, profile_from(content, file), plot, as_json)


def _show_kernels(name: str, kernels: Any, plot: Path | None, as_json: bool) -> None:
    from moesim.cost.kernels.summary import facts_of
    from moesim.views.kernels_terminal import show_kernels

    if plot is not None:
        from moesim.views.kernels import write_page

        write_page(plot, name, kernels)
    if as_json:
        print(json.dumps(facts_of(kernels), indent=1))
        return
    show_kernels(name, kernels)
    if plot is not None:
        print(f"drawn in {plot}")


def _show_profile(name: str, profile: Any, plot: Path | None, as_json: bool) -> None:
    from moesim.cost.kernels.summary import profile_facts
    from moesim.views.kernels_terminal import show_profile

    if plot is not None:
        from moesim.views.kernels import write_profile_page

        write_profile_page(plot, name, profile)
    if as_json:
        print(json.dumps(profile_facts(profile), indent=1))
        return
    show_profile(name, profile)
    if plot is not None:
        print(f"drawn in {plot}")


@app.command(
    help="""Compare two files of kernels, or two profiles of one model: B over A, curve by curve.

Example:

  moesim profile diff h100-sxm-80gb h200-sxm-141gb
"""
)
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A shipped profile or a file.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another, of the same kind.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the ratios as JSON.")] = False,
) -> None:
    """Compare two profiles."""
    from moesim.cost.kernels.summary import compared
    from moesim.cost.profile import read_profile
    from moesim.views.kernels_terminal import show_difference

    rows = compared(read_profile(first), read_profile(second), first, second)
    if as_json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
        return
    show_difference(first, second, rows)
