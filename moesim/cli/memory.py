"""`moesim memory`: what models, experts and KV cache take on a device, and whether they fit.

Of a model by options, of a scenario slice by slice (`moesim.cli.memory_of_scenario`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.errors import ScenarioError
from moesim.facts.catalog import load_device, load_model, shipped
from moesim.facts.configs import ARCHITECTURES
from moesim.facts.hardware import Device, no_fp8
from moesim.facts.memory import BLOCK_TOKENS, MemoryDemand, plan_memory, reserved_share
from moesim.facts.mig import find_profile
from moesim.facts.precision import FORMATS, KV_FORMATS, Precision
from moesim.facts.remedies import (
    fill_with_experts,
    narrower,
    other_slices,
    remedies,
    shortfall,
)
from moesim.files import check_outputs, shown

HELP = f"""Show what sits on a GPU or a MIG slice: of a scenario, or of a model and its variants.

Given a scenario (a shipped name or its YAML file), show every slice as `moesim simulate` divides it
up; only --plot and --json go with it. A model is a shipped name (`moesim list`), a checkpoint
folder or a config.json. Formats of weights: {", ".join(FORMATS)}; of the KV cache:
{", ".join(KV_FORMATS)}. What does not fit is said with the changes that would make it fit.

Examples:

  moesim memory mig

  moesim memory mixtral-8x7b --device h100-sxm-80gb --precision fp8

  moesim memory mixtral-8x7b --variants 2 --ratio 1 --sets 1 --resident fit

  moesim memory switch-base-8 --variants 4 --ratio 0.5 --slice 1g.10gb --json
"""

FILL = "fit"
"""The residency that means: as many experts as fit."""

DEVICE = "a100-sxm-80gb"

MOST_VARIANTS = 1_000_000
MOST_TOKENS = 10**15
"""What is asked for at most: beyond any host's memory, and still exact in floats."""

ANSWERED = ("name", "as_json", "plot")
"""What is not a scenario's to say."""


def memory(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="SCENARIO|MODEL", help="A scenario, or a model's shape.")
    ],
    device: Annotated[str, typer.Option(help="A shipped device or a YAML file.")] = DEVICE,
    slice_name: Annotated[
        str | None, typer.Option("--slice", help="A MIG profile; none is the whole device.")
    ] = None,
    variants: Annotated[
        int, typer.Option(min=1, max=MOST_VARIANTS, help="Models of this shape.")
    ] = 1,
    ratio: Annotated[
        float, typer.Option(min=0, max=1, help="Share of expert positions with one copy for all.")
    ] = 0.0,
    sets: Annotated[
        int | None, typer.Option(min=1, help="Non-expert sets resident; none is all of them.")
    ] = None,
    resident: Annotated[
        str, typer.Option(help="Share of the experts on the device, 0 to 1, or `fit`.")
    ] = "1",
    precision: Annotated[
        str | None, typer.Option(help="Format of the weights; none is the model's own.")
    ] = None,
    rest_precision: Annotated[
        str | None, typer.Option(help="Format of all weights but the experts.")
    ] = None,
    kv_precision: Annotated[str | None, typer.Option(help="Format of the KV cache.")] = None,
    kv_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_TOKENS, help="Tokens cached; none is one longest sequence."),
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option(min=1, max=65536, help="Sequences that run at once.")
    ] = 64,
    max_batched_tokens: Annotated[
        int, typer.Option(min=1, max=1_048_576, help="Tokens of one iteration.")
    ] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print bytes as JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the parts into this HTML file.")] = None,
) -> None:
    """Show what sits on a device or slice."""
    path, is_scenario = _meant(name)
    if is_scenario:
        from moesim.cli.memory_of_scenario import show_scenario

        _refuse_options(context)
        show_scenario(path, as_json=as_json, plot=plot)
        return
    check_outputs({"--plot": plot}, [path])
    spec = load_model(str(path), architectures=ARCHITECTURES)
    hardware = load_device(device)
    formats = _precision(spec.dtype, precision, rest_precision, kv_precision)
    _check_computes(hardware, formats)
    demand = MemoryDemand(
        spec=spec,
        slice_bytes=_slice_bytes(hardware, slice_name),
        precision=formats,
        kv_blocks=-(-(kv_tokens or spec.max_position_embeddings) // BLOCK_TOKENS),
        variants=variants,
        ratio=ratio,
        resident=1.0 if resident == FILL else _share(resident),
        non_expert_sets=sets,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        reserved_share=reserved_share(hardware.kind),
    )
    if resident == FILL:
        demand = fill_with_experts(demand)
    where = f"{slice_name} of {hardware.name}" if slice_name else hardware.name
    _tell(Path(name).name, where, demand, hardware, as_json, plot)


def _meant(name: str) -> tuple[Path, bool]:
    """Return the file or folder that a name means, and whether it is a scenario's.

    What is there goes before what is shipped. Raises ScenarioError where it is nothing, or both a
    model and a scenario.
    """
    there = Path(name)
    written = _is_file(there) and there.suffix != ".json"
    shape = (_is_file(there) and not written) or _is_file(there / "config.json")
    model = there if shape else shipped("models").get(name)
    scenario = there if written else shipped("scenarios").get(name)
    if model and scenario:
        raise ScenarioError(
            f"{name}: both a model and a scenario; give the path of the one you mean: "
            f"{model.resolve()} or {scenario.resolve()}"
        )
    if found := model or scenario:
        return found, found == scenario
    raise ScenarioError(
        f"{shown(name)}: neither a file nor one of the shipped models: "
        f"{', '.join(shipped('models'))}; nor of the scenarios: {', '.join(shipped('scenarios'))}"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long to be a path, or with a null character
        return False


def _refuse_options(context: typer.Context) -> None:
    """Raise ScenarioError for options that the scenario itself answers."""
    for param in context.command.params:
        given = context.get_parameter_source(param.name or "")
        if given is not None and given.name == "COMMANDLINE" and param.name not in ANSWERED:
            raise ScenarioError(
                f"{param.opts[0]}: the scenario says that; only --plot and --json go with one"
            )


def _tell(
    model: str,
    where: str,
    demand: MemoryDemand,
    device: Device,
    as_json: bool,
    plot: Path | None,
) -> None:
    plan = plan_memory(demand)
    slices = other_slices(device, fp8=_in_fp8(demand.precision))
    sentence = "fits"
    if not plan.fits:
        sentence = f"does not fit: {shortfall(demand, slices, narrower(device))}"
    title = f"{model} on {where}"
    if plot is not None:
        from moesim.views.memory import write_page

        write_page(plot, title, sentence, {title: plan})
    if as_json:
        facts = {"model": model, "where": where, **_facts(demand, slices, narrower(device))}
        print(json.dumps(facts, indent=1))
        return
    from moesim.views.memory_terminal import show_memory
    from moesim.views.workload_terminal import printable

    show_memory(printable(title), demand, sentence)
    if plot is not None:
        print(f"drawn in {plot}")


def _facts(
    demand: MemoryDemand, slices: Mapping[str, int], formats: Sequence[str]
) -> dict[str, Any]:
    """Return a demand, its plan and what would make it fit, for scripts."""
    plan = plan_memory(demand)
    asked = {name: value for name, value in asdict(demand).items() if name != "spec"}
    return {
        "demand": asked | {"non_expert_sets": demand.sets},
        "expert_copies": demand.expert_copies,
        "resident_copies": demand.resident_copies,
        **asdict(plan),
        "used_bytes": plan.used_bytes,
        "free_bytes": plan.free_bytes,
        "short_by_bytes": plan.short_by_bytes,
        "fits": plan.fits,
        "remedies": [remedy.change for remedy in remedies(demand, slices, formats)],
    }


def _precision(dtype: str, weights: str | None, rest: str | None, kv: str | None) -> Precision:
    base = Precision.uniform(weights) if weights else Precision.of_dtype(dtype)
    return Precision(experts=base.experts, rest=rest or base.rest, kv=kv or base.kv)


def _in_fp8(precision: Precision) -> bool:
    return "fp8" in (precision.experts, precision.rest)


def _check_computes(device: Device, precision: Precision) -> None:
    """Raise ScenarioError for weights that `moesim simulate` would refuse on the device."""
    if _in_fp8(precision) and device.fp8_flop_per_s is None:
        raise ScenarioError(no_fp8(device.name))


def _slice_bytes(device: Device, slice_name: str | None) -> int:
    return find_profile(device, slice_name).memory_bytes if slice_name else device.memory_bytes


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ScenarioError(
            f"--resident: {text!r} is neither a share from 0 to 1 nor {FILL!r}"
        ) from None
