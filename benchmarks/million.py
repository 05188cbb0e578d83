"""A million requests of Azure's shape on eight replicas: seconds, and memory per request.

Arrivals are bursty (cv 2), lengths are those of the Azure conversation trace of 2023; the replicas
are those of benchmarks/simulator.py. Records and percentiles are included.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from simulator import profile

from moesim.scenario import Scenario, scenario_from
from moesim.simulation.run import simulate

REPLICAS = 8
RATE_PER_S = 24.0
"""Of all replicas together, who are seldom idle and keep up with it."""


def scenario_of(model: str, requests: int) -> Scenario:
    """Return the scenario; `model` is the path of the model's config.json."""
    lengths = {"kind": "quantiles", "workload": "azure-conv-2023"}
    return scenario_from(
        {
            "name": "a million",
            "duration_s": requests / RATE_PER_S,
            "models": {"m": {"architecture": model, "profile": "given"}},
            "tenants": {
                "all": {
                    "model": "m",
                    "arrivals": {"kind": "gamma", "rate_per_s": RATE_PER_S, "cv": 2.0},
                    "prompt_tokens": lengths,
                    "output_tokens": lengths,
                }
            },
            "hardware": {"device": "profiled", "count": REPLICAS},
            "deployment": {
                "kind": "dedicated",
                "replicas": REPLICAS,
                "scheduler": {"max_num_seqs": 256, "max_batched_tokens": 2048},
            },
        }
    )


def peak_bytes() -> int:
    """Return the most memory this process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000, help="about how many")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    made = profile()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "config.json"
        model.write_text(json.dumps(made.model))
        scenario = scenario_of(str(model), arguments.requests)
        before, started = peak_bytes(), time.perf_counter()
        result = simulate(scenario, {"m": made})
        metrics = result.metrics()
        took_s = time.perf_counter() - started
    requests = metrics["overall"]["completed"]
    facts = {
        "requests": requests,
        "seconds": took_s,
        "peak_bytes": peak_bytes(),
        "bytes_per_request": (peak_bytes() - before) / requests,
        "utilisation": sum(metrics["utilisation"].values()) / REPLICAS,
        "steady": metrics["steady"]["sentence"],
    }
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return
    print(
        f"{requests:,} requests on {REPLICAS} replicas, {facts['utilisation']:.0%} busy, "
        f"{facts['steady']}\n{took_s:.1f} s, peak memory {facts['peak_bytes'] / 2**20:,.0f} MiB, "
        f"{facts['bytes_per_request']:,.0f} bytes a request"
    )


if __name__ == "__main__":
    main()
