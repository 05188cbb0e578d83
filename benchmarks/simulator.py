"""Simulated requests per second on two workloads, beside what bare simpy does in the same run.

512 tokens in and 128 out, Poisson, one replica, at a light and a heavier load for the profile's
device. Prints a table, or JSON with --json.
"""

import argparse
import json
import platform
import statistics
import time

import simpy

from moesim.scenario import scenario_from
from moesim.simulation.run import simulate

REPEATS = 3
REQUESTS = 2000


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


def requests_per_s(rate_per_s: float) -> float:
    """Return simulated requests per second of wall time, records and metrics included."""
    scenario = scenario_from(
        {
            "name": "benchmark",
            "duration_s": REQUESTS / rate_per_s,
            "models": {"demo": {"architecture": "demo-moe", "profile": "demo-cpu"}},
            "tenants": {
                "all": {
                    "model": "demo",
                    "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
                    "prompt_tokens": {"kind": "fixed", "tokens": 512},
                    "output_tokens": {"kind": "fixed", "tokens": 128},
                }
            },
            "hardware": {"device": "cpu-2core"},
            "deployment": {"kind": "dedicated"},
        }
    )
    started = time.perf_counter()
    result = simulate(scenario)
    result.metrics()
    return len(result.records) / (time.perf_counter() - started)


def main() -> None:
    """Print medians of several runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    figures = {
        "simpy_timeouts_per_s": statistics.median(timeouts_per_s() for _ in range(REPEATS)),
        "light_requests_per_s": statistics.median(requests_per_s(0.25) for _ in range(REPEATS)),
        "heavy_requests_per_s": statistics.median(requests_per_s(0.6) for _ in range(REPEATS)),
    }
    if arguments.json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), **figures}))
        return
    for name, value in figures.items():
        print(f"{name:<22} {value:>10,.0f}")


if __name__ == "__main__":
    main()
