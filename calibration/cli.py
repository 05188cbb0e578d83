"""The command `moesim-calibrate`: look at the host, profile a model, validate predictions."""

import sys

try:
    import json
    from dataclasses import asdict
    from pathlib import Path
    from typing import Annotated

    import typer
    from rich.console import Console

    from moesim import commands
except KeyboardInterrupt:  # before there is anything that could end it in order
    print("interrupted", file=sys.stderr)
    raise SystemExit(130) from None

app = commands.application(
    "Measure the engine on this host, and check predictions against real runs.",
    commands.ResumableCommands,
)

PROFILE_HELP = """Profile a model on this host: minutes, resumable, judged for stability.

Every batch size of a grid is measured several times; with what is left of the budget sizes are
added where the curve bends, and all are repeated. Interrupted, it keeps its samples in OUT.partial;
the same command goes on from there.

Examples:

  moesim-calibrate profile --model checkpoint/ --out my-host.json

  moesim-calibrate profile --model demo-moe --out my-host.json --budget-s 30

  moesim-calibrate profile --model base/ --transfers --variants base=base/,chat=chat/
    --gateway gateway.npz --out my-host.json

  moesim-calibrate profile --model base/ --share 1/2 --out half.json

  moesim-calibrate profile --model config.json --dtype bf16 --gpu MIG-41b3f4... --out slice.json
"""

VALIDATE_HELP = """Serve a workload for real, predict it from the profile, and compare.

Writes both record tables, comparison.json and a self-contained report.html. Interrupted, it keeps
the runs that finished; the same command goes on from there.

Examples:

  moesim-calibrate validate --profile my-host.json --workload demo --model checkpoint/ --out v/

  moesim-calibrate validate --profile my-host.json --workload demo-trace --trace azure.csv
    --model checkpoint/ --out v/

  moesim-calibrate validate --profile my-host.json --workload consolidated.yaml
    --variants base=base/,instruct=instruct/ --out v/

  moesim-calibrate validate --profile my-host.json --workload mps.yaml
    --variants base=base/,chat=chat/ --share-profiles base=half.json,chat=half-chat.json --out v/
"""

DATASHEET_HELP = """Measure a CPU's rates and write a device file, which shares of it need.

Of GPUs such files are shipped.

Example:

  moesim-calibrate datasheet --out my-cpu.yaml
"""


MERGE_HELP = """Join profiles of one model on one host into one: more repeats, steadier cells.

Refuses profiles that were not made alike, in one line that names the field and both values.

Examples:

  moesim-calibrate merge monday.json tuesday.json --out my-host.json
"""

COMMANDS_HELP = """Print the nvidia-smi lines that make a MIG layout, and undo it. Nothing is run.

A layout that does not exist is refused with the nearest that do.

Examples:

  moesim-calibrate commands 3g.40gb,3g.40gb --device a100-sxm-80gb

  moesim-calibrate commands 4g.71gb,2g.35gb,1g.18gb --gpu 1
"""

GPU_HELP = (
    "A GPU's number, or the UUID of a GPU or MIG instance (nvidia-smi -L); the first if not given."
)
SHARE_PROFILES_HELP = "Profiles made with --share, as MODEL=FILE,MODEL=FILE, for kind mps."
VARIANTS_HELP = "Checkpoints of one shape, as NAME=FOLDER,NAME=FOLDER."


@app.command()
def detect(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this host is: CPU, GPUs, driver, and what would disturb a measurement."""
    from calibration.detect_shown import show_host
    from calibration.host import detect as look

    host = look()
    if as_json:
        print(json.dumps({**asdict(host), "host_hash": host.hash}, indent=1))
    else:
        show_host(host)


@app.command(help=PROFILE_HELP)
def profile(
    model: Annotated[
        str, typer.Option(help="A checkpoint folder, a config.json or a shipped model.")
    ],
    out: Annotated[Path, typer.Option(help="The profile file to write.")],
    dtype: Annotated[
        str, typer.Option(help="Number format to run in: bf16, fp16 or fp32; its own if not given.")
    ] = "",
    budget_s: Annotated[float, typer.Option(help="Time to spend measuring [s].")] = 60.0,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Largest batch to measure.")] = 64,
    max_batched_tokens: Annotated[
        int, typer.Option(min=2, help="Largest iteration to measure [tokens].")
    ] = 512,
    kv_blocks: Annotated[
        int | None, typer.Option(min=1, help="KV blocks to allocate; what fits if not given.")
    ] = None,
    transfers: Annotated[
        bool,
        typer.Option("--transfers", help="Measure loads, swaps and stores too."),
    ] = False,
    variants: Annotated[str, typer.Option(help=VARIANTS_HELP)] = "",
    gateway: Annotated[
        Path | None, typer.Option(help="A gateway to time, as moesim-engine makes it.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts to time it with; made up if not given.")
    ] = None,
    gpu: Annotated[str, typer.Option(help=GPU_HELP)] = "",
    share: Annotated[
        str, typer.Option(help="Measure on this share of the device only, as 1/2 or 40%.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Profile a model."""
    from contextlib import nullcontext
    from dataclasses import replace

    from calibration.calibrate import Settings, calibrate, check_budget
    from calibration.host import detect as look
    from calibration.models import dtype_of
    from calibration.transfers import Asked
    from calibration.transfers_shown import transfer_lines
    from calibration.visible import device_for
    from engine.slices.here import on_share
    from engine.slices.shares import read_share
    from moesim.cost.places import check_place
    from moesim.errors import CalibrationError
    from moesim.files import check_outputs

    check_budget(budget_s)
    check_place(out)
    check_outputs({"--out": out})
    device = device_for(gpu)
    more = Asked(variants=_named(variants), gateway=gateway, prompts=prompts)
    if dtype and (more.variants or transfers):
        raise CalibrationError(
            "--dtype: variants and what is loaded are in their checkpoints' own format; leave out "
            "--dtype, or --transfers and --variants"
        )
    settings = Settings(
        model=model,
        dtype=dtype_of(dtype) if dtype else None,
        budget_s=budget_s,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        num_blocks=kv_blocks,
        device=device,
        transfers=more if transfers or variants or gateway or prompts else None,
    )
    if share and settings.transfers is not None:
        raise CalibrationError(
            "--share: what sharing costs is measured on the whole device; leave out --transfers, "
            "--variants, --gateway and --prompts, or --share"
        )
    host = look()  # before this process has less of it
    place = on_share(read_share(share), settings.device) if share else nullcontext()
    with place as part, commands.progress_bar() as progress:
        settings = replace(settings, share=str(part or ""))
        made = calibrate(settings, out, host, progress)
    verdict = made.verdict
    if as_json:
        content = {"profile": str(out), **verdict.model_dump()}
        if made.transfers is not None:
            content["transfers"] = made.transfers.model_dump()
        print(json.dumps(content, indent=1))
        return
    word = "stable" if verdict.stable else "NOT stable"
    print(
        f"{out}: {word}; {verdict.unstable_cells} of {verdict.cells} points spread too widely, "
        f"drift {100 * verdict.drift:.0f} %, {made.kv.num_blocks} KV blocks"
    )
    if verdict.iteration_error_p50 is not None and verdict.iteration_error_p90 is not None:
        print(
            "  whole iterations the tables had not seen: error "
            f"{100 * verdict.iteration_error_p50:.1f} % (median), "
            f"{100 * verdict.iteration_error_p90:.1f} % (p90)"
        )
    for line in transfer_lines(made.transfers):
        print(f"  {line}")
    for warning in verdict.warnings:
        print(f"  note: {warning}")


def _named(variants: str) -> dict[str, Path]:
    """Return folders by name, of `base=base/,chat=chat/`."""
    from engine.variants.command import named

    return named([part.strip() for part in variants.split(",") if part.strip()])


@app.command(help=DATASHEET_HELP)
def datasheet(
    out: Annotated[Path, typer.Option(help="The device file to write.")],
    name: Annotated[str, typer.Option(help="What to call the device; the file's name.")] = "",
) -> None:
    """Write a device file."""
    from calibration.datasheet import check_place, device_yaml, measured_device
    from calibration.host import detect as look
    from moesim.errors import CalibrationError
    from moesim.facts.catalog import shipped
    from moesim.files import write_text

    check_place(out)
    host = look()
    if host.device_kind != "cpu":
        raise CalibrationError(
            f"datasheet: is for CPUs; for {host.gpus[0].name} take a shipped device "
            f"({', '.join(shipped('hardware'))}), or write its datasheet's figures down like theirs"
        )
    device = measured_device(host, name or out.stem)
    write_text(out, device_yaml(device))
    print(
        f"{out}: {(device.bf16_flop_per_s or 0) / 1e9:.3g} GFLOP/s, "
        f"{(device.memory_bandwidth_bytes_per_s or 0) / 1e9:.3g} GB/s"
    )


@app.command(help=MERGE_HELP)
def merge(
    profiles: Annotated[list[str], typer.Argument(help="Two profiles or more.")],
    out: Annotated[Path, typer.Option(help="The profile file to write.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Join profiles."""
    from calibration.merge import check_place
    from calibration.merge import merge as join
    from moesim.cost.places import check_place as check_kind
    from moesim.cost.profile import load_profile, save_profile

    named = [(name, load_profile(name)) for name in profiles]
    check_place(out, profiles)
    check_kind(out)
    merged = join(named)
    save_profile(merged, out)
    if as_json:
        print(json.dumps({"profile": str(out), **merged.verdict.model_dump()}, indent=1))
        return
    word = "stable" if merged.verdict.stable else "NOT stable"
    cells = sum(map(len, merged.operations.values()))
    print(f"{out}: {word}; {len(profiles)} profiles, {cells} cells")
    for warning in merged.verdict.warnings:
        print(f"  note: {warning}")


@app.command(name="commands", help=COMMANDS_HELP)
def mig_commands(
    layout: Annotated[str, typer.Argument(help="MIG profiles, as NAME,NAME.")],
    device: Annotated[
        str, typer.Option(help="A device file or a shipped device; this host's if not given.")
    ] = "",
    gpu: Annotated[int, typer.Option(min=0, help="The GPU's number in nvidia-smi.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print MIG commands."""
    from calibration.host import detect as look
    from calibration.mig_commands import commands_for, device_here, shell_lines
    from moesim.facts.catalog import load_device

    target = load_device(device) if device else device_here(look(), gpu)
    names = [part.strip() for part in layout.split(",") if part.strip()]
    made = commands_for(target, names, gpu)
    if as_json:
        print(json.dumps(asdict(made), indent=1))
    else:
        print("\n".join(shell_lines(made)))


@app.command(help=VALIDATE_HELP)
def validate(
    profile: Annotated[str, typer.Option(help="The profile made on this host.")],
    workload: Annotated[str, typer.Option(help="A scenario file or a shipped scenario.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    model: Annotated[str, typer.Option(help="The checkpoint that was profiled.")] = "",
    variants: Annotated[str, typer.Option(help=VARIANTS_HELP)] = "",
    share_profiles: Annotated[str, typer.Option(help=SHARE_PROFILES_HELP)] = "",
    gpu: Annotated[str, typer.Option(help=GPU_HELP)] = "",
    trace: Annotated[
        Path | None, typer.Option(help="Replay this trace in place of the workload's.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Real runs; two show the spread.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of arrivals and lengths.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a validation that is there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Validate predictions."""
    from calibration.host import detect as look
    from calibration.plan import Plan
    from calibration.report import write_validation_report
    from calibration.sharing import served_together
    from calibration.validate import validate as run_validation
    from calibration.visible import device_for
    from moesim.cost.profile import load_profile
    from moesim.errors import CalibrationError
    from moesim.evidence.validation import comparison_json
    from moesim.scenario import load_scenario
    from moesim.views.terminal import show_comparison

    device = device_for(gpu)
    folders = _named(variants)
    if bool(model) == bool(folders):
        raise CalibrationError(
            "--model: give the checkpoint that was profiled, or, for models that share the device, "
            "--variants alone"
        )
    scenario, measured = load_scenario(workload), load_profile(profile)
    scenario = (
        served_together(scenario, folders)
        if folders
        else scenario.served_here(model, measured.formats.experts, measured.formats.kv)
    )
    plan = Plan(
        scenario=scenario if trace is None else scenario.with_trace(trace),
        profile=measured,
        model=model,
        runs=runs,
        seed=seed,
        device=device,
        variants=folders,
        share_profiles={n: load_profile(path) for n, path in _named(share_profiles).items()},
    )
    with commands.progress_bar() as progress:
        validation = run_validation(plan, out, look(), progress, overwrite=overwrite)
    if as_json:
        print(comparison_json(validation), end="")
    else:
        for tenant, rows in validation.tenants.groupby("tenant") if folders else ():
            print(f"tenant {tenant}")
            show_comparison(rows)
        show_comparison(validation.comparison)
        for note in validation.notes:
            print(f"note: {note}")
    print_to = Console(stderr=as_json, highlight=False, soft_wrap=True)
    print_to.print(write_validation_report(validation, out))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="What validate wrote.")],
) -> None:
    """Draw the report of a validation again, say on another machine."""
    from calibration.report import write_validation_report
    from moesim.errors import CalibrationError
    from moesim.evidence.validation import load_validation

    if not folder.is_dir():
        raise CalibrationError(f"{folder}: is no folder; give the one that validate wrote")
    print(write_validation_report(load_validation(folder), folder))


def main() -> None:
    """Run the command."""
    try:
        app()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
