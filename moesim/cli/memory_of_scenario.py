"""`moesim memory SCENARIO`: what sits where on each slice, for each deployment of a scenario."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moesim.files import check_outputs
from moesim.scenario import Scenario, load_scenario
from moesim.simulation.memory import counted, memory_of
from moesim.simulation.slice_memory import SliceMemory

Slices = Mapping[SliceMemory, int]
"""Different slices, and how many there are of each."""


def show_scenario(path: Path, *, as_json: bool, plot: Path | None) -> None:
    """Print, and draw where asked, what every slice is to hold; slices alike are shown once."""
    scenario = load_scenario(path)
    check_outputs({"--plot": plot}, [path, *scenario.files()])
    deployments = scenario.side_by_side()
    found = {name: counted(memory_of(each)) for name, each in deployments.items()}
    if plot is not None:
        from moesim.views.memory import write_page

        short = [
            f"{title}: {each.sentence}"
            for title, each in _titled(found).items()
            if not each.plan.fits
        ]
        plans = {title: each.plan for title, each in _titled(found).items()}
        write_page(plot, scenario.name, _verdict(found), plans, short)
    if as_json:
        facts = [_facts(name, deployments[name], slices) for name, slices in found.items()]
        print(json.dumps({"scenario": scenario.name, "deployments": facts}, indent=1))
        return
    from moesim.views.workload_terminal import printable

    for name, slices in found.items():
        if len(found) > 1:
            print(f"{printable(name)}\n")
        _show(slices)
    if len(found) > 1 or sum(next(iter(found.values())).values()) > 1:
        print(_verdict(found))
    if plot is not None:
        print(f"drawn in {plot}")


def _show(slices: Slices) -> None:
    from moesim.views.memory_terminal import show_memory
    from moesim.views.workload_terminal import printable

    for each, count in slices.items():
        show_memory(printable(_title(each, count)), each.demand, each.sentence, each.plan)
        print()


def _titled(found: Mapping[str, Slices]) -> dict[str, SliceMemory]:
    return {
        f"{name}, {_title(each, count)}" if len(found) > 1 else _title(each, count): each
        for name, slices in found.items()
        for each, count in slices.items()
    }


def _title(memory: SliceMemory, count: int) -> str:
    alike = f"{count} slices alike, each " if count > 1 else ""
    each = ", on each device" if memory.devices > 1 else ""
    return f"{alike}{memory.name}: {' + '.join(memory.models)}{each}"


def _verdict(found: Mapping[str, Slices]) -> str:
    """Say whether all fits, else of how many slices what they should hold does not."""
    short = [
        _short(name if len(found) > 1 else "", slices)
        for name, slices in found.items()
        if not all(each.plan.fits for each in slices)
    ]
    return "; ".join(short) or "everything fits"


def _short(name: str, slices: Slices) -> str:
    bad = sum(count for each, count in slices.items() if not each.plan.fits)
    total = sum(slices.values())
    said = f"{bad} of {total} slices do not hold what they should"
    return f"{name}: {said}" if name else said


def _facts(name: str, scenario: Scenario, slices: Slices) -> dict[str, Any]:
    return {
        "name": name,
        "kind": scenario.deployment.kind,
        "fits": all(each.plan.fits for each in slices),
        "slices": [_slice(each, count) for each, count in slices.items()],
    }


def _slice(memory: SliceMemory, count: int) -> dict[str, Any]:
    plan = memory.plan
    return {
        "slice": memory.name,
        "count": count,
        "devices": memory.devices,
        "kv_blocks": dict(zip(memory.models, memory.kv_blocks, strict=True)),
        **asdict(plan),
        "used_bytes": plan.used_bytes,
        "free_bytes": plan.free_bytes,
        "short_by_bytes": plan.short_by_bytes,
        "fits": plan.fits,
        "remedies": list(memory.remedies),
    }
