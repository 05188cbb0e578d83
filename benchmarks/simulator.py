"""Simulated requests per second, beside what bare simpy does in the same run.

Every request has 512 tokens in and 128 out; arrivals are Poisson. The replica's durations are
straight lines of the size that a vLLM server of an 8B model on one large GPU showed
(docs/server-log.md), its limits vLLM's defaults, so that batches are as full as they would be
there.

Timed is what a run of `moesim simulate --json` computes of a scenario and a profile that are read:
checks, requests, the run, every column of every record, the log of iterations, and all figures,
percentiles of the gaps between tokens included. Cost tables are laid out once for a profile and
kept with it, and a pandas frame of the records is made for those who ask for it: the ratio is shown
for a `new` profile too, whose tables have yet to be laid out, and with the `frame` after that.

Simpy is timed in turn with it, as a virtual machine's clock changes from second to second, and both
by processor time, which others on the machine do not take. Figures are medians over the runs, the
ratios too. A table, or JSON with --json.

With --kinds another table: every kind of deployment under the same two streams to two models,
20,000 requests in all, beside runs of `dedicated` in turn.
"""

import argparse
import gc
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import simpy

from moesim.cost.profile import Profile
from moesim.scenario import Scenario, scenario_from
from moesim.simulation.run import simulate

REPEATS = 15

WORKLOADS = {
    # name: (requests, requests/s of all replicas, replicas, KV blocks of each, scheduler)
    "6.45 req/s, 2,000": (2_000, 6.45, 1, 20_000, {}),
    "6.45 req/s, 50,000": (50_000, 6.45, 1, 20_000, {}),
    "20 req/s, 2,000": (2_000, 20.0, 1, 20_000, {}),
    "20 req/s, 50,000": (50_000, 20.0, 1, 20_000, {}),
    "saturated, KV pressure": (2_000, 60.0, 1, 2_000, {}),
    "8 replicas": (50_000, 160.0, 8, 20_000, {}),
}


KIND_REQUESTS, KIND_RATE_PER_S = 20_000, 6.45
ABSENT = {"resident": 0.5}

KINDS = {
    # name: (devices, deployment)
    "dedicated": (2, {"kind": "dedicated"}),
    "tensor_parallel": (4, {"kind": "tensor_parallel", "tensor_parallel": 2}),
    "expert_parallel": (4, {"kind": "expert_parallel", "expert_parallel": 2}),
    "mig": (1, {"kind": "mig", "layout": ["3g.40gb", "3g.40gb"]}),
    "mig, experts offloaded": (
        1,
        {"kind": "mig", "layout": ["3g.40gb", "3g.40gb"], "experts": ABSENT},
    ),
    "mps": (1, {"kind": "mps", "sm_percent": {"a": 50, "b": 50}}),
    "time_shared": (1, {"kind": "time_shared"}),
    "offloaded": (1, {"kind": "offloaded", "experts": ABSENT}),
    "consolidated": (1, {"kind": "consolidated", "ratio": 0.5, "experts": ABSENT}),
    "consolidated, longest_queue": (
        1,
        {"kind": "consolidated", "ratio": 0.5, "experts": ABSENT, "turns": "longest_queue"},
    ),
    "consolidated, quantum": (
        1,
        {"kind": "consolidated", "ratio": 0.5, "experts": ABSENT, "turns": "quantum"},
    ),
    "consolidated, drain": (
        1,
        {"kind": "consolidated", "ratio": 0.5, "experts": ABSENT, "turns": "drain"},
    ),
    "expert_router": (
        2,
        {
            "kind": "expert_router",
            "gateway": {"name": "router", "classify_s": 0.002, "shares": {"a": 1, "b": 1}},
            "experts": {name: {"kind": "dedicated"} for name in "ab"},
        },
    ),
}


def lines(*axes: tuple[int, ...], seconds: Callable[..., float]) -> list[dict[str, object]]:
    """Return cells on a straight line, at the corners of a grid."""
    points = (
        [(x,) for x in axes[0]] if len(axes) == 1 else [(x, y) for x in axes[0] for y in axes[1]]
    )
    return [{"at": at, "median_s": seconds(*at), "spread": 0.0, "repeats": 1} for at in points]


def profile(device_kind: str = "cpu") -> Profile:
    """Return a profile of straight lines: 12.6 ms an iteration, 34.5 us a token."""
    model = {
        "model_type": "mixtral",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 256,
        "max_position_embeddings": 8192,
        "dtype": "bfloat16",
    }
    nothing = lines((1, 4096), seconds=lambda _: 0.0)
    content = {
        "format": "moesim-profile",
        "format_version": 1,
        "model": model,
        "max_batched_tokens": 4096,
        "kv": {"block_size": 16, "num_blocks": 20_000},
        "router": {"popularity": [[0.25] * 8], "tokens": 1, "distinct": []},
        "operations": {
            "host": lines((1, 4096), seconds=lambda _: 0.0126),
            "embedding": nothing,
            "projections": lines((1, 4096), seconds=lambda tokens: 34.5e-6 * tokens),
            "router": nothing,
            "experts": lines((1, 4096), (1, 8), seconds=lambda *_: 0.0),
            "attention_decode": lines(
                (1, 4096), (1, 10**6), seconds=lambda _, context: 78e-9 * context
            ),
            "attention_prefill": lines((2, 4096), (0, 8192), seconds=lambda *_: 0.0),
            "head": nothing,
            "sampling": nothing,
        },
        "provenance": {
            "device": {"cpu": "straight lines", "cuda": "NVIDIA H100 80GB HBM3"}[device_kind],
            "device_kind": device_kind,
            "host_hash": "0" * 16,
            "software": {},
            "threads": 1,
            "date": "2026-11-21T00:00:00+00:00",
            "model_source": "straight lines",
            "model_digest": "0" * 16,
            "duration_s": 0.0,
        },
        "verdict": {
            "stable": True,
            "unstable_cells": 0,
            "cells": 30,
            "iteration_error_p50": None,
            "iteration_error_p90": None,
            "drift": 0.0,
        },
    }
    return Profile.model_validate(content)


def timeouts_per_s(count: int = 50_000) -> float:
    """Return how many timeouts a bare simpy process passes per second."""
    env = simpy.Environment()

    def tick():
        for _ in range(count):
            yield env.timeout(1.0)

    env.process(tick())
    started = time.process_time()
    env.run()
    return count / (time.process_time() - started)


def scenario_of(
    model: str,
    requests: int,
    rate_per_s: float,
    replicas: int,
    blocks: int,
    scheduler: dict[str, object],
) -> Scenario:
    """Return a benchmark scenario; `model` is the path of the model's config.json."""
    return scenario_from(
        {
            "name": "benchmark",
            "duration_s": requests / rate_per_s,
            "models": {"m": {"architecture": model, "profile": "given"}},
            "tenants": {
                "all": {
                    "model": "m",
                    "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
                    "prompt_tokens": {"kind": "fixed", "tokens": 512},
                    "output_tokens": {"kind": "fixed", "tokens": 128},
                }
            },
            "hardware": {"device": "profiled", "count": replicas},
            "deployment": {
                "kind": "dedicated",
                "replicas": replicas,
                "kv_blocks": blocks,
                "scheduler": {"max_num_seqs": 256, "max_batched_tokens": 2048, **scheduler},
            },
        }
    )


def scenario_of_kind(model: str, name: str) -> Scenario:
    """Return two streams to two models on an H100, or several; what the benchmark calls `name`."""
    devices, deployment = KINDS[name]
    settings = {"kv_blocks": 20_000, "scheduler": {"max_num_seqs": 256, "max_batched_tokens": 2048}}
    if "gateway" in deployment:
        experts = {model: settings | part for model, part in deployment["experts"].items()}
        whole, asked = deployment | {"experts": experts}, ("router", "router")
    else:
        whole, asked = settings | deployment, ("a", "b")
    tenants = {
        f"to {n}": {
            "model": asked[n],
            "arrivals": {"kind": "poisson", "rate_per_s": KIND_RATE_PER_S / 2},
            "prompt_tokens": {"kind": "fixed", "tokens": 512},
            "output_tokens": {"kind": "fixed", "tokens": 128},
        }
        for n in range(2)
    }
    return scenario_from(
        {
            "name": name,
            "duration_s": KIND_REQUESTS / KIND_RATE_PER_S,
            "models": {letter: {"architecture": model, "profile": "given"} for letter in "ab"},
            "tenants": tenants,
            "hardware": {"device": "h100-sxm-80gb", "count": devices},
            "deployment": whole,
        }
    )


class Speed(NamedTuple):
    """Medians over several runs."""

    requests_per_s: float
    beside_per_s: float
    ratio: float
    new_ratio: float
    frame_ratio: float


def speed(scenario: Scenario, made: Profile, beside: Callable[[], float]) -> Speed:
    """Return how fast a scenario is simulated, beside something that is timed in turn with it."""
    rows = []
    for _ in range(REPEATS):
        known, other = timed(lambda: rates(scenario, made)), timed(beside)
        new, another = timed(lambda: rates(scenario, made.model_copy())), timed(beside)
        fresh = new.plain / another, new.framed / another
        rows.append((known.plain, other, known.plain / other, *fresh))
    return Speed(*map(statistics.median, zip(*rows, strict=True)))


Measured = TypeVar("Measured")


def timed(measure: Callable[[], Measured]) -> Measured:
    """Return what is measured; nobody tidies up after others meanwhile."""
    gc.collect()
    return measure()


class Rates(NamedTuple):
    """Simulated requests per second of processor time, in one run, and with the frame made too."""

    plain: float
    framed: float


def rates(scenario: Scenario, made: Profile) -> Rates:
    """Return how fast a scenario is simulated, in one run."""
    started = time.process_time()
    result = simulate(scenario, dict.fromkeys(scenario.models, made))
    result.metrics()
    plain = time.process_time() - started
    count = len(result.records)  # a frame
    return Rates(count / plain, count / (time.process_time() - started))


def speeds(model: str) -> dict[str, Speed]:
    """Return how fast each workload is simulated, beside bare simpy."""
    made = profile()
    return {
        name: speed(scenario_of(model, *shape), made, timeouts_per_s)
        for name, shape in WORKLOADS.items()
    }


def speeds_of_kinds(model: str) -> dict[str, Speed]:
    """Return how fast each kind of deployment is simulated, beside `dedicated`."""
    made = profile("cuda")
    dedicated = scenario_of_kind(model, "dedicated")
    return {
        name: speed(scenario_of_kind(model, name), made, lambda: rates(dedicated, made).plain)
        for name in KINDS
    }


def main() -> None:
    """Print medians of several runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--kinds", action="store_true", help="every kind of deployment instead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "config.json"
        model.write_text(json.dumps(profile().model))
        found = (speeds_of_kinds if arguments.kinds else speeds)(str(model))
    beside = "dedicated" if arguments.kinds else "simpy"
    show(found, beside, as_json=arguments.json)


def show(found: dict[str, Speed], beside: str, *, as_json: bool) -> None:
    """Print a table, or JSON."""
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if as_json:
        content = {name: value._asdict() for name, value in found.items()}
        told = {"machine": machine, "beside": beside, "peak_memory_mib": peak_mib}
        print(json.dumps({**told, "speeds": content}, indent=1))
        return
    print(f"{machine}; peak memory {peak_mib:,.0f} MiB\n")
    heads = f"{'requests/s':>12} {beside + '/s':>12} {'ratio':>7} {'new':>7} {'frame':>7}"
    print(f"{'workload':<28} {heads}")
    for name, (requests_per_s, beside_per_s, *ratios) in found.items():
        shown = " ".join(f"{ratio:>7.3f}" for ratio in ratios)
        print(f"{name:<28} {requests_per_s:>12,.0f} {beside_per_s:>12,.0f} {shown}")


if __name__ == "__main__":
    main()
