"""Step `kernels`: copies over the link, the layer's styles, whole decode steps, against floors."""

from argparse import Namespace
from dataclasses import asdict
from math import nan
from statistics import median
from typing import Any

import torch

from benchmarks import kernels as bench
from benchmarks import swap
from benchmarks.gpu_queue.asked import Asked
from benchmarks.gpu_queue.provenance import Begun
from benchmarks.gpu_queue.released import release
from benchmarks.gpu_queue.tables import shown, write_tables
from calibration.copies import expert_loads
from engine.variants.host import HostMemory
from moesim.errors import MoesimError

LINK_BYTES = {"cuda": 2**30, "cpu": 2**26}
"""One copy that is long beside its launch, and on a CPU beside the caches."""

LAYER_WANTED, STEP_WANTED = 1.15, 1.25
"""Over the fastest published layer, and over the time to read the weights (docs/engine.md)."""


def run(begun: Begun) -> bool:
    """Measure, write each of three tables once it is made, and print them."""
    asked = begun.asked
    told = Namespace(
        device=asked.device.type,
        tokens=asked.size.tokens,
        sequences=asked.size.sequences,
        context=asked.size.context,
        repeats=asked.size.repeats,
        reference=asked.reference,
    )
    link, copies = linked(asked)
    tables: dict[str, list[dict[str, Any]]] = {"copies": copies}
    write_tables(begun, tables, link_bytes_per_s=link)
    release()
    bandwidth = bench.copy_bytes_per_s(asked.device, asked.size.repeats)
    layer = bench.measured(bench.layer_of(asked.model, asked.device), bandwidth, told)
    tables["layer"] = [asdict(row) for row in layer]
    write_tables(begun, tables, link_bytes_per_s=link, copy_bytes_per_s=bandwidth)
    release()
    chosen, steps = bench.steps(asked.model, bandwidth, told)
    release()
    tables["steps"] = [asdict(row) | {"over_floor": row.ms / row.floor_ms} for row in steps]
    write_tables(
        begun,
        tables,
        link_bytes_per_s=link,
        copy_bytes_per_s=bandwidth,
        experts=chosen,
        reference=str(asked.reference or ""),
    )
    over_link = f"link {link / 1e9:.1f} GB/s, " if copies else ""
    print(f"{over_link}copies on the device {bandwidth / 1e9:,.0f} GB/s")
    print(shown(copies))
    bench.show_layers(layer)
    bench.show_steps(chosen, steps)
    print(verdict(layer, steps))
    return True


def linked(asked: Asked) -> tuple[float, list[dict[str, Any]]]:
    """Return the link's speed [B/s] and the copies over it; neither where the host pins nothing."""
    try:
        link = link_bytes_per_s(asked.device, asked.size.repeats)
        return link, copies_of(asked, link)
    except MoesimError as wrong:
        print(f"copies: not measured: {wrong}")
        return nan, []


def link_bytes_per_s(device: torch.device, repeats: int) -> float:
    """Return how fast one large copy from pinned host memory is [B/s]."""
    size = LINK_BYTES[device.type]
    host = HostMemory("a copy to be timed", size, device)  # pinned for as long as it is held
    source = host.bytes
    source.random_(0, 255)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    target.copy_(source)
    bench.synchronised(device)
    times = [
        bench.seconds(lambda: target.copy_(source, non_blocking=True), device)
        for _ in range(repeats)
    ]
    return size / median(times)


def copies_of(asked: Asked, link: float) -> list[dict[str, Any]]:
    """Return swaps of the non-expert set and loads of one expert beside the link's own speed."""
    swaps = swap.measured(asked.model, asked.size.repeats, asked.device)
    rows = [_row(f"swap, {row.way}", row.set_bytes, row.median_s, link) for row in swaps]
    loads = expert_loads(asked.size.spec, asked.device)
    return rows + [
        _row(f"expert, {load.memory}, {load.in_flight} at once", load.expert_bytes, each, link)
        for load in loads
        for each in (load.median_s,)
    ]


def _row(what: str, size: int, taken_s: float, link: float) -> dict[str, Any]:
    return {
        "what": what,
        "MB": size / 1e6,
        "ms": 1e3 * taken_s,
        "GB/s": size / taken_s / 1e9,
        "over_link": taken_s * link / size,
    }


def verdict(layer: list[bench.Row], steps: list[bench.Step]) -> str:
    """Say how far the figures are from what is wanted of them."""
    best: dict[int, float] = {}
    for row in layer:
        if row.reference_ms:
            ratio = row.ms / row.reference_ms
            best[row.tokens] = min(ratio, best.get(row.tokens, ratio))
    worst = f"{max(best.values()):.2f}" if best else "no table given"
    over = max(row.ms / row.floor_ms for row in steps)
    return (
        f"best style over published layer, at most {LAYER_WANTED} wanted: {worst}; "
        f"step over its floor, at most {STEP_WANTED} wanted: {over:.2f}"
    )
