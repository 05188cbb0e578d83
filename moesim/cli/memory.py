"""`moesim memory`: what models, experts and KV cache take on a device, and whether they fit."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.errors import ScenarioError
from moesim.facts.catalog import load_device, load_model, shipped
from moesim.facts.configs import ARCHITECTURES
from moesim.facts.hardware import Device
from moesim.facts.memory import BLOCK_TOKENS, RESERVED_SHARE, MemoryDemand, plan_memory
from moesim.facts.mig import find_profile, geometry_of
from moesim.facts.precision import FORMATS, KV_FORMATS, Precision
from moesim.facts.remedies import fill_with_experts, remedies, shortfall

HELP = f"""Show what a model, or variants of it that share experts, take on a GPU or a MIG slice.

MODEL is a shipped name (`moesim list`), a checkpoint folder or a config.json. Formats of weights:
{", ".join(FORMATS)}; of the KV cache: {", ".join(KV_FORMATS)}. What does not fit is said with the
changes that would make it fit.

Examples:

  moesim memory mixtral-8x7b --device h100-sxm-80gb --precision fp8

  moesim memory mixtral-8x7b --variants 2 --ratio 1 --sets 1 --resident fit

  moesim memory switch-base-8 --variants 4 --ratio 0.5 --slice 1g.10gb --json
"""

FILL = "fit"
"""The residency that means: as many experts as fit."""

DEVICE = "a100-sxm-80gb"


def memory(
    model: Annotated[str, typer.Argument(help="A shipped model, a checkpoint or a config.json.")],
    device: Annotated[str, typer.Option(help="A shipped device or a YAML file.")] = DEVICE,
    slice_name: Annotated[
        str | None, typer.Option("--slice", help="A MIG profile; none is the whole device.")
    ] = None,
    variants: Annotated[int, typer.Option(min=1, help="Models of this shape.")] = 1,
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
        int | None, typer.Option(min=1, help="Tokens cached; none is one longest sequence.")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Sequences that run at once.")] = 64,
    max_batched_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one iteration.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print bytes as JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the parts into this HTML file.")] = None,
) -> None:
    """Show what sits on a device or slice."""
    spec = load_model(model, architectures=ARCHITECTURES)
    hardware = load_device(device)
    demand = MemoryDemand(
        spec=spec,
        slice_bytes=_slice_bytes(hardware, slice_name),
        precision=_precision(spec.dtype, precision, rest_precision, kv_precision),
        kv_blocks=-(-(kv_tokens or spec.max_position_embeddings) // BLOCK_TOKENS),
        variants=variants,
        ratio=ratio,
        resident=1.0 if resident == FILL else _share(resident),
        non_expert_sets=sets,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        reserved_share=RESERVED_SHARE if hardware.kind == "cuda" else 0.0,
    )
    if resident == FILL:
        demand = fill_with_experts(demand)
    where = f"{slice_name} of {hardware.name}" if slice_name else hardware.name
    _tell(Path(model).name, where, demand, _slices(hardware), as_json, plot)


def _tell(
    model: str,
    where: str,
    demand: MemoryDemand,
    slices: Mapping[str, int],
    as_json: bool,
    plot: Path | None,
) -> None:
    plan = plan_memory(demand)
    sentence = "fits" if plan.fits else f"does not fit: {shortfall(demand, slices)}"
    title = f"{model} on {where}"
    if plot is not None:
        from moesim.views.memory import write_page

        write_page(plot, title, sentence, {title: plan})
    if as_json:
        print(json.dumps({"model": model, "where": where, **_facts(demand, slices)}, indent=1))
        return
    from moesim.views.memory_terminal import show_memory
    from moesim.views.workload_terminal import printable

    show_memory(printable(title), demand, sentence)
    if plot is not None:
        print(f"drawn in {plot}")


def _facts(demand: MemoryDemand, slices: Mapping[str, int]) -> dict[str, Any]:
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
        "remedies": [remedy.change for remedy in remedies(demand, slices)],
    }


def _precision(dtype: str, weights: str | None, rest: str | None, kv: str | None) -> Precision:
    base = Precision.uniform(weights) if weights else Precision.of_dtype(dtype)
    return Precision(experts=base.experts, rest=rest or base.rest, kv=kv or base.kv)


def _slice_bytes(device: Device, slice_name: str | None) -> int:
    return find_profile(device, slice_name).memory_bytes if slice_name else device.memory_bytes


def _slices(device: Device) -> dict[str, int]:
    """Return what could be taken instead: a device's MIG profiles, and the shipped GPUs whole."""
    profiles = geometry_of(device).profiles if device.mig else ()
    whole = [each for name in shipped("hardware") if (each := load_device(name)).kind == "cuda"]
    return {profile.name: profile.memory_bytes for profile in profiles} | {
        f"a whole {each.name}": each.memory_bytes for each in whole
    }


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ScenarioError(
            f"--resident: {text!r} is neither a share from 0 to 1 nor {FILL!r}"
        ) from None
