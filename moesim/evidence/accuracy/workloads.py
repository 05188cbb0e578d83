"""What a row asked of its system: how many requests came, when, and how long they were.

| scenario | requests |
|---|---|
| static_batch, decode_bs1 | the batch, at once, in one batch from beginning to end |
| offline_max_load, offline | `REQUESTS` of them, all there at once |
| online_closed_loop | as many users as said, each asking again as soon as it is answered |
| online_serving, mlperf_server | Poisson arrivals at the rate |
| mlperf_offline | all at once |

Prompts and answers are all as long as the table says, but those of InferenceMAX (`SHORTEST`) and
of MLPerf's Mixtral data set (`MIXTRAL_ANSWERS`), whose prompts' mean is published nowhere and has
to be fitted.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.evidence.accuracy.names import UnknownRowError
from moesim.evidence.accuracy.table import Row

REQUESTS = ((256, 30000), (2500, 3000), (5500, 1500), (inf, 1000))
"""Prompt and answer up to so many tokens, and the requests of TensorRT-LLM's published runs with
them (docs/source/performance/perf-overview.md, v0.14)."""

ROUNDS = 10
"""Requests of each user of a closed loop (InferenceMAX's setting)."""

SHORTEST = 0.8
"""Share of the length in the table down to which InferenceMAX draws lengths, any alike: its
RANDOM_RANGE_RATIO (github.com/InferenceMAX, benchmark scripts; Apache-2.0)."""

ONLINE = 3000
"""Requests of a Poisson stream: enough for a 99th percentile."""

BATCHES = 12
"""How often MLPerf's offline scenario fills the largest batch. The real runs fill it a hundred
times and more (their latencies say so), so that only the rate in between is looked at."""

MIXTRAL_MEAN = 144.5
"""Mean answer of MLPerf v4.1's Mixtral runs, from their logs [tokens]."""

MIXTRAL_ANSWERS = ((0.5, 113), (0.9, 282), (0.95, 364), (0.97, 428), (0.99, 593), (1.0, 1024))
"""Percentiles of the answers of MLPerf v4.1's Mixtral runs, from their logs [tokens]."""

SHORTEST_ANSWER = 24.0
"""The lower end with which those percentiles, interpolated in the logarithm, have that mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests to a system, or to one of its replicas.

    `users` ask again when answered; with a `rate_per_s` requests come at random; with neither all
    are there at once. `answers` is `alike` or `mlperf-mixtral`. `prompt_tokens` are None where they
    have to be fitted. `together` says that all run in one batch, `steady` that the real run was so
    long that its beginning and its end do not count. `shortest` is the share of the lengths down to
    which they are drawn.
    """

    requests: int
    prompt_tokens: float | None
    output_tokens: float
    users: int | None = None
    rate_per_s: float | None = None
    answers: str = "alike"
    together: bool = False
    steady: bool = False
    shortest: float = 1.0

    @property
    def timed(self) -> bool:
        """Whether requests come by a clock of their own, so that slower is not just longer."""
        return self.rate_per_s is not None

    def shared_by(self, replicas: int) -> "Workload":
        """Return what each of several replicas is asked: its part of the rate, or of the users."""
        users, rate = self.users, self.rate_per_s
        if users is not None and users % replicas:
            raise UnknownRowError("users and replicas do not add up")
        return replace(
            self,
            users=None if users is None else users // replicas,
            requests=self.requests if users is None else self.requests // replicas,
            rate_per_s=None if rate is None else rate / replicas,
        )


def workload_of(row: Row) -> Workload:
    """Return what a system was asked; UnknownRowError where the table does not say."""
    kind = re.sub(r"_(closed|open)$", "", row.scenario) if "mlperf" in row.scenario else ""
    known: dict[str, Callable[[Row], Workload]] = {
        "static_batch": _static,
        "decode_bs1": _static,
        "offline_max_load": _at_once,
        "offline": _at_once,
        "online_closed_loop": _users,
        "online_serving": _online,
        "mlperf_server": _server,
        "mlperf_interactive": _server,
        "mlperf_offline": _offline,
    }
    make = known.get(kind or row.scenario)
    if make is None:
        raise UnknownRowError(f"scenario {row.scenario or '(none)'} is not known")
    return make(row)


def requests_of(workload: Workload, prompt_tokens: float, seed: int) -> pd.DataFrame:
    """Return the requests as `moesim.simulation.station.serve` takes them."""
    rng, count = np.random.default_rng(seed), workload.requests
    arrival_s = np.zeros(count)
    if workload.rate_per_s is not None:
        arrival_s = rng.exponential(1 / workload.rate_per_s, count).cumsum()
    if workload.answers == "alike":
        output = _drawn(workload.output_tokens, workload.shortest, rng, count)
    else:
        output = mixtral_answers(rng.random(count))
    return pd.DataFrame(
        {
            "request_id": np.arange(count),
            "tenant": "",
            "model": "",
            "arrival_s": arrival_s,
            "prompt_tokens": _drawn(prompt_tokens, workload.shortest, rng, count),
            "output_tokens": output,
        }
    )


def _drawn(
    tokens: float, shortest: float, rng: np.random.Generator, count: int
) -> NDArray[np.int64]:
    """Return lengths from `shortest` times the longest to the longest, any alike, (N,) [tokens]."""
    longest = max(1, round(tokens))
    least = max(1, int(longest * shortest))
    return np.full(count, longest) if least == longest else rng.integers(least, longest + 1, count)


def mixtral_answers(levels: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return answers at quantile levels, (N,) [tokens].

    >>> mixtral_answers(np.array([0.5, 0.99, 1.0])).tolist()
    [113, 593, 1024]
    """
    known, tokens = zip((0.0, SHORTEST_ANSWER), *MIXTRAL_ANSWERS, strict=True)
    found: NDArray[np.float64] = np.exp(np.interp(levels, known, np.log(tokens)))
    return np.rint(found).astype(np.int64)


def _static(row: Row) -> Workload:
    prompt, output = _lengths(row)
    return Workload(
        requests=_count(row, r"batch (\d+)"),
        prompt_tokens=prompt,
        output_tokens=output,
        together=True,
    )


def _at_once(row: Row) -> Workload:
    prompt, output = _lengths(row)
    requests = next(count for longest, count in REQUESTS if prompt + output <= longest)
    return Workload(requests=requests, prompt_tokens=prompt, output_tokens=output)


def _users(row: Row) -> Workload:
    prompt, output = _lengths(row)
    users = _count(row, r"(?:concurrency(?:/batch)?|batch) (\d+)")
    return Workload(
        requests=ROUNDS * users,
        prompt_tokens=prompt,
        output_tokens=output,
        users=users,
        shortest=SHORTEST if _of_inferencemax(row) else 1.0,
    )


def _of_inferencemax(row: Row) -> bool:
    """Say whether InferenceMAX measured a row: where AIConfigurator's samples name no version."""
    return "InferenceMAX" in row.note and not re.search(r"\d", row.software)


def _online(row: Row) -> Workload:
    prompt, output = _lengths(row)
    if re.search(r"conc(?:urrency)? \d", row.load):
        raise UnknownRowError("both a rate and a limit of concurrency are given")
    number = re.search(r"\bn (\d+)", row.load)
    requests = int(number[1]) if number else ONLINE
    if re.search(r"rate inf", row.load):
        return Workload(requests=requests, prompt_tokens=prompt, output_tokens=output)
    return Workload(
        requests=requests,
        prompt_tokens=prompt,
        output_tokens=output,
        rate_per_s=_rate(row),
    )


def _server(row: Row) -> Workload:
    _mixtral(row)
    return Workload(
        requests=8 * ONLINE,
        prompt_tokens=row.isl,
        output_tokens=MIXTRAL_MEAN,
        rate_per_s=_rate(row),
        answers="mlperf-mixtral",
    )


def _offline(row: Row) -> Workload:
    _mixtral(row)
    if "_ms" in row.metric:
        raise UnknownRowError("offline latencies follow from how long the run was, not given")
    return Workload(
        requests=BATCHES * 896,
        prompt_tokens=row.isl,
        output_tokens=MIXTRAL_MEAN,
        answers="mlperf-mixtral",
        steady=True,
    )


def _mixtral(row: Row) -> None:
    if "mixtral" not in row.model.lower():
        raise UnknownRowError("lengths of this MLPerf data set are not known")


def _lengths(row: Row) -> tuple[float, float]:
    for name in ("isl", "osl"):
        if getattr(row, name) is None:
            raise UnknownRowError(f"{name} is not given")
    return float(row.isl or 0), float(row.osl or 0)


def _count(row: Row, pattern: str) -> int:
    found = re.search(pattern, row.load)
    if not found or not int(found[1]):
        raise UnknownRowError(f"load {row.load or '(none)'} does not say how many")
    return int(found[1])


def _rate(row: Row) -> float:
    found = re.search(r"(?:rate (\d+\.?\d*))|(?:(\d+\.?\d*) req/s)", row.load)
    if not found or not float(found[1] or found[2]):
        raise UnknownRowError(f"load {row.load or '(none)'} does not say at what rate")
    return float(found[1] or found[2])
