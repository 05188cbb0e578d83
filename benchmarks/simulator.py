"""Simulated requests per second, beside what bare simpy does in the same run.

Every request has 512 tokens in and 128 out, arrivals are Poisson, records and percentiles are
included. Medians of several runs; a table, or JSON with --json.
"""

import argparse
import json
import platform
import resource
import statistics
import time

import simpy

from moesim.cost.profile import load_profile
from moesim.scenario import Scenario, scenario_from
from moesim.simulation.run import simulate

REPEATS = 5

WORKLOADS = {
    # name: (requests, requests/s of all replicas, replicas, KV blocks of each, None for plenty)
    "light, 2,000 requests": (2_000, 0.3, 1, None),
    "light, 50,000 requests": (50_000, 0.3, 1, None),
    "busy, 2,000 requests": (2_000, 0.6, 1, None),
    "busy, 50,000 requests": (50_000, 0.6, 1, None),
    "saturated, KV pressure": (2_000, 5.0, 1, 400),
    "8 replicas": (16_000, 4.8, 8, None),
}


def timeouts_per_s(count: int = 200_000) -> float:
    """Return how many timeouts a bare simpy process passes per second."""
    env = simpy.Environment()

    def tick():
        for _ in range(count):
            yield env.timeout(1.0)

    env.process(tick())
    started = time.perf_counter()
    env.run()
    return count / (time.perf_counter() - started)


def scenario_of(requests: int, rate_per_s: float, replicas: int, blocks: int | None) -> Scenario:
    """Return a benchmark scenario."""
    return scenario_from(
        {
            "name": "benchmark",
            "duration_s": requests / rate_per_s,
            "models": {"demo": {"architecture": "demo-moe", "profile": "demo-cpu"}},
            "tenants": {
                "all": {
                    "model": "demo",
                    "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
                    "prompt_tokens": {"kind": "fixed", "tokens": 512},
                    "output_tokens": {"kind": "fixed", "tokens": 128},
                }
            },
            "hardware": {"device": "cpu-2core", "count": replicas},
            "deployment": {"kind": "dedicated", "replicas": replicas, "kv_blocks": blocks},
        }
    )


def requests_per_s(scenario: Scenario) -> float:
    """Return simulated requests per second of wall time."""
    profiles = {"demo": load_profile("demo-cpu")}
    speeds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        result = simulate(scenario, profiles)
        result.metrics()
        speeds.append(len(result.records) / (time.perf_counter() - started))
    return statistics.median(speeds)


def main() -> None:
    """Print medians of several runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    bare = statistics.median(timeouts_per_s() for _ in range(REPEATS))
    figures = {name: requests_per_s(scenario_of(*shape)) for name, shape in WORKLOADS.items()}
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    if arguments.json:
        content = {"machine": machine, "simpy_timeouts_per_s": bare, "requests_per_s": figures}
        print(json.dumps({**content, "peak_memory_mib": peak_kib / 1024}, indent=1))
        return
    print(f"{machine}; bare simpy {bare:,.0f} timeouts/s; peak memory {peak_kib / 1024:,.0f} MiB\n")
    print(f"{'workload':<24} {'requests/s':>12} {'of simpy':>9}")
    for name, value in figures.items():
        print(f"{name:<24} {value:>12,.0f} {value / bare:>9.3f}")


if __name__ == "__main__":
    main()
