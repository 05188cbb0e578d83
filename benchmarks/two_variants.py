"""The published two-variant experiment beside its simulation, with what was not reproduced.

Published: Imani et al., ICML 2025, arXiv 2505.06481; two Mixtral-8x7B variants on one A100-80GB,
two Poisson streams, 20 tokens in and 25 out, FCFS. Constants and their sources stand in the
scenario `two-variants`; the rate at which the paper's mean turnarounds hold is not published and is
taken from its MIG mean, so that this one figure is no prediction. TTFT is counted from when a
request's service begins, its swap included, as the paper's figures have to be.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from moesim.planning.load import at_load
from moesim.scenario import Scenario, load_scenario
from moesim.simulation.replications import replicate
from moesim.simulation.run import Result, simulate

RUNS = 5
"""Repetitions, as in the paper."""

RATE_PER_S = 0.0225
"""Rate of each stream in the scenario [requests/s]."""

WAYS = {"consolidated": "consolidated (the scenario's)", "mig": "mig 2x 3g.40gb"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A published figure beside the simulated one."""

    claim: str
    published: float
    simulated: float
    interval: tuple[float, float]
    tolerance: float
    note: str = ""

    @property
    def verdict(self) -> str:
        """Say whether it is within the tolerance."""
        error = abs(self.simulated / self.published - 1)
        return "reproduced" if error <= self.tolerance else "not reproduced"


def service_ttft_s(result: Result) -> float:
    """Return the mean time from when a request's service begins to its first token [s]."""
    records = result.records
    swaps_s = sum(usage.reconfiguring_s for usage in result.usages) / len(records)
    return float((records["first_token_s"] - records["scheduled_s"]).mean() + swaps_s)


def saturation(scenario: Scenario) -> float:
    """Return the rate of each stream at which the device is busy all the time [requests/s].

    By bisection on whether the last tenth waits for longer than ten times what it is served for.
    """
    low, high = 0.01, 0.1
    while high - low > 0.0005:
        rate = (low + high) / 2
        records = simulate(at_load(scenario, rate / RATE_PER_S), seed=0).records
        last = records.tail(len(records) // 10)
        waits = (last["scheduled_s"] - last["arrival_s"]).mean()
        serves = (last["finish_s"] - last["scheduled_s"]).mean()
        low, high = (low, rate) if waits > 10 * serves else (rate, high)
    return (low + high) / 2


def claims() -> Iterator[Claim]:
    """Yield every published figure beside the simulated one."""
    ways = load_scenario("two-variants").side_by_side()
    published = {"consolidated": (8.78, 1.41, 0.06), "mig": (49.67, 5.86, 0.04)}
    for name, (turnaround_s, ttft_s, rate) in published.items():
        scenario = ways[WAYS[name]]
        metrics = replicate(scenario, seed=0).metrics()
        chosen = "its rate is chosen by this figure" if name == "mig" else ""
        yield Claim(
            claim=f"{name}: mean turnaround [s]",
            published=turnaround_s,
            simulated=metrics["overall"]["turnaround_s"]["mean"],
            interval=tuple(metrics["intervals"]["overall"]["turnaround_s"]["mean"]),
            tolerance=0.15,
            note=chosen,
        )
        values = sorted(service_ttft_s(simulate(scenario, seed=seed)) for seed in range(RUNS))
        yield Claim(
            claim=f"{name}: mean TTFT from service [s]",
            published=ttft_s,
            simulated=values[len(values) // 2],
            interval=(values[0], values[-1]),
            tolerance=0.2,
        )
        found = saturation(scenario)
        yield Claim(
            claim=f"{name}: saturates at [req/s a stream]",
            published=rate,
            simulated=found,
            interval=(found, found),
            tolerance=0.17 if name == "consolidated" else 0.125,
        )


def main() -> None:
    """Print the claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    as_json = parser.parse_args().json
    found = list(claims())
    if as_json:
        print(json.dumps([asdict(claim) | {"verdict": claim.verdict} for claim in found], indent=1))
        return
    print(f"{'claim':<42} {'published':>9} {'simulated':>9}  {'interval':<16} verdict")
    for claim in found:
        low, high = claim.interval
        print(
            f"{claim.claim:<42} {claim.published:>9.3g} {claim.simulated:>9.3g}  "
            f"{f'[{low:.3g}, {high:.3g}]':<16} {claim.verdict}"
            f"{f' ({claim.note})' if claim.note else ''}"
        )


if __name__ == "__main__":
    main()
