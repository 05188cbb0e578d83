"""Run a scenario many times, as it might have gone: medians, and how far single runs differ.

The first run has the seed that was asked for and the profile as measured: records, logs and the
timeline are its own. Every further run has a seed of its own, derived from that one, for arrivals
and lengths, and the profile redrawn within its errors (`moesim.cost.residuals`). Medians and
intervals are over these, without the first, which knows nothing of the profile's errors.

An interval is a prediction interval for one run's figure: of runs like these, of which reality is
one, nine in ten fall between its ends. It is no confidence interval of a mean, and more runs do not
narrow it. Quantiles are at the positions `p (n + 1)` of the ordered figures (Weibull 1939; type 6
of Hyndman and Fan 1996), so that a further run falls inside as often as said: 19 redrawn runs reach
from the least to the greatest. Fewer cannot hold nine in ten, their range holds (n - 1) / (n + 1),
and `coverage` says so.

Runs are numbered, and the draws of a run follow from seed, number, the names of tenants and the
origins of profiles alone. Two deployments of one workload so meet the same requests and the same
errors run by run (common random numbers), and differences between `runs` of one number are the
deployments' own.

Where the requests are known, as when a real run is predicted after the fact, they are the same in
every run (`same_requests`): what is left is by how much the profile may be wrong.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from statistics import median, median_low
from typing import Any

import numpy as np

from moesim.cost.profile import Profile
from moesim.cost.residuals import resampled, streams
from moesim.errors import ScenarioError
from moesim.scenario import Scenario
from moesim.serving.columns import Columns
from moesim.serving.records import REFUSED
from moesim.simulation.inputs import Inputs, load_inputs
from moesim.simulation.run import Result, simulate

Metrics = dict[str, Any]
"""A tree of figures, as `Result.metrics` returns it."""

Progress = Callable[[int, int], None]
"""Told how many runs are done, and how many there will be."""

ESTIMATED = ("overall", "tenants", "fairness", "utilisation", "reconfigurations")
"""The branches of the metrics whose numbers are medians and have intervals."""

COVERAGE = 0.9
"""Share of runs that an interval is meant to hold."""

MOST = 20
"""Runs by default: without the first as many as it takes to hold nine in ten."""

FEWEST = 6
"""Runs by default of a large scenario; the range of five holds two in three."""

REQUESTS = 500_000
"""Requests by default, over all runs: a second or two where they run ahead."""

NUMBER = re.compile(r"\d+")
"""What differs between two requests that are refused for one reason."""

PROFILE = "profile"
"""What is redrawn in every run, as `what_varies` names it."""


def silent(done: int, of: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replications:
    """The first run of a scenario, and the metrics of those in which chance went otherwise."""

    first: Result
    runs: tuple[Metrics, ...]
    """Metrics of the redrawn runs, in order of their numbers; none of a single run."""
    varied: str
    """What differed from run to run."""
    elapsed_s: float
    """How long all of them took [s]."""

    @property
    def coverage(self) -> float | None:
        """Share of further runs whose figure an interval holds; None without intervals."""
        n = len(self.runs)
        return min(COVERAGE, (n - 1) / (n + 1)) if n else None

    def metrics(self) -> Metrics:
        """Return the tree of `Result.metrics`, each number the median over the redrawn runs.

        `intervals` has the branches `ESTIMATED` once more, `[low, high]` in place of each number.
        What is no number is the first run's; `steady.agreed` is the share of redrawn runs with the
        same verdict, and `refusal` why most of its refused requests were. A figure is over the runs
        in which it exists, None if that is none. Of a single run all numbers are its own, and
        `intervals` is None.
        """
        first = self.first.metrics()
        return {
            **first,
            **(self._estimates(_middle) if self.runs else {}),
            "steady": {**first["steady"], "agreed": self._agreed(first["steady"]["kind"])},
            "refusal": most_refused(self.first.table),
            "replications": 1 + len(self.runs),
            "varied": self.varied if self.runs else None,
            "coverage": self.coverage,
            "intervals": self._estimates(_interval) if self.runs else None,
        }

    def _estimates(self, reduce: "Reduce") -> Metrics:
        return {name: _over([run[name] for run in self.runs], reduce) for name in ESTIMATED}

    def _agreed(self, kind: str) -> float | None:
        kinds = [run["steady"]["kind"] for run in self.runs]
        return kinds.count(kind) / len(kinds) if kinds else None


def replicate(
    scenario: Scenario,
    profiles: Mapping[str, Profile] | None = None,
    seed: int = 0,
    *,
    replications: int | None = None,
    same_requests: bool = False,
    stepwise: bool = False,
    progress: Progress = silent,
) -> Replications:
    """Simulate a scenario once as it is and then with other draws, `replications` times in all.

    With `same_requests` every run meets the first run's requests and users, and only the profile is
    redrawn. Not given, `replications` follows from the number of requests. A run in which no
    request arrives has no figures and is left out. Raises what `simulate` raises, and ScenarioError
    where `replications` is below 1, or 2, of which there is no interval.
    """
    started = time.perf_counter()
    _check(replications)
    inputs = load_inputs(scenario, profiles)
    first = simulate(scenario, seed=seed, stepwise=stepwise, inputs=inputs)
    count = replications or default_replications(len(first.table))
    runs = []
    for index in range(1, count):
        progress(index, count)
        nth = nth_seed(seed, index)
        asked = seed if same_requests else nth
        run = _run(scenario, _redrawn(inputs, nth), asked, stepwise=stepwise)
        runs += [run] if run else []
    return Replications(
        first=first,
        runs=tuple(runs),
        varied=PROFILE if same_requests else what_varies(scenario),
        elapsed_s=time.perf_counter() - started,
    )


def most_refused(records: Columns) -> str | None:
    """Return why requests were refused most often, as told the first of them; None if none was.

    Reasons that differ in their numbers only are one.
    """
    reasons = records["detail"][records.where("outcome", REFUSED)].tolist()
    kinds = [NUMBER.sub("", reason) for reason in reasons]
    return reasons[kinds.index(Counter(kinds).most_common(1)[0][0])] if kinds else None


def default_replications(requests: int) -> int:
    """Return how many runs to make of so many requests each.

    >>> [default_replications(n) for n in (200, 50_000, 1_000_000)]
    [20, 10, 6]
    """
    return min(MOST, max(FEWEST, REQUESTS // max(1, requests)))


def nth_seed(seed: int, index: int) -> int:
    """Return the seed of a numbered run, whatever the number of runs."""
    return int(np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1)[0])


def what_varies(scenario: Scenario) -> str:
    """Name what is redrawn: `arrivals, lengths, profile`; a replayed trace is always the same."""
    tenants = scenario.tenants.values()
    arrivals = {tenant.arrivals.kind for tenant in tenants} - {"trace", "constant"}
    lengths = {part.kind for t in tenants for part in (t.prompt_tokens, t.output_tokens)}
    lengths -= {"trace", "fixed"}
    parts = (["arrivals"] if arrivals else []) + (["lengths"] if lengths else [])
    return ", ".join([*parts, PROFILE])


def _check(replications: int | None) -> None:
    if replications is not None and not (replications == 1 or 3 <= replications <= 10_000):
        raise ScenarioError(
            f"replications: {replications}: give 1 for a single run without intervals, "
            f"or 3 to 10000; {MOST} hold nine in ten"
        )


def _redrawn(inputs: Inputs, seed: int) -> Inputs:
    """Return the inputs with every profile redrawn within its errors."""
    profiles = {
        name: resampled(profile, *streams(profile, seed))
        for name, profile in inputs.profiles.items()
    }
    return replace(inputs, profiles=profiles)


def _run(scenario: Scenario, inputs: Inputs, seed: int, *, stepwise: bool) -> Metrics | None:
    """Return the metrics of a run, None if it has no request."""
    try:
        return simulate(scenario, seed=seed, stepwise=stepwise, inputs=inputs).metrics()
    except ScenarioError:
        # The first run has shown that the scenario is right: chance sent no request.
        return None


Reduce = Callable[[list[float]], float | list[float]]


def _over(trees: Sequence[Any], reduce: Reduce) -> Any:
    """Reduce the numbers at each place of some trees to one; None where no tree has a number."""
    branches = [tree for tree in trees if isinstance(tree, dict)]
    if branches:
        names = dict.fromkeys(name for branch in branches for name in branch)
        return {name: _over([b.get(name) for b in branches], reduce) for name in names}
    known = [number for number in trees if number is not None]
    return reduce(known) if known else None


def _middle(numbers: list[float]) -> float:
    """Return the median; of counts it is a count."""
    return median_low(numbers) if _counts(numbers) else median(numbers)


def _counts(numbers: list[float]) -> bool:
    return all(isinstance(number, int) for number in numbers)


def _interval(numbers: list[float]) -> list[float]:
    """Return what is meant to hold the middle nine in ten; of counts whole ones, outwards."""
    beyond = (1 - COVERAGE) / 2
    ordered = sorted(numbers)
    low, high = _quantile(ordered, beyond), _quantile(ordered, 1 - beyond)
    return [floor(low), ceil(high)] if _counts(numbers) else [low, high]


def _quantile(ordered: Sequence[float], p: float) -> float:
    """Return a quantile, at the ends where `p (n + 1)` lies beyond them.

    >>> [_quantile([1.0, 2.0, 3.0], p) for p in (0.05, 0.5, 0.625)]
    [1.0, 2.0, 2.5]
    """
    place = min(max(p * (len(ordered) + 1) - 1, 0), len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
