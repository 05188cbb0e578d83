"""What a row asked of its system: how many requests came, when, and how long they were.

| scenario | requests |
|---|---|
| static_batch, decode_bs1 | the batch, at once, in one batch from beginning to end |
| offline_max_load, offline | `REQUESTS` of them, all there at once |
| online_closed_loop | as many users as said, each asking again as soon as it is answered |
| online_serving, mlperf_server | Poisson arrivals at the rate |
| mlperf_offline | all at once |

Prompts and answers are all as long as the table says, but those of InferenceMAX (`SHORTEST`) and
of MLPerf's Mixtral data set (`moesim.evidence.accuracy.mixtral`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil, inf
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.evidence.accuracy.mixtral import (
    MIXTRAL_MEAN,
    MIXTRAL_PROMPT,
    mixtral_answers,
    mixtral_prompts,
)
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

COPIES = re.compile(r"LLM-Inference-Bench.* TensorRT-LLM")
"""Whose batches are copies of one prompt: Argonne's of TensorRT-LLM (github.com/argonne-lcf,
TensorRT-LLM/A100/Benchmarking_Throughput/run.py), while its vLLM gets random ones and samples."""

WHOLE = r"(?!\w|[.,-]\d)"
"""After a number: that is all of it, not the first digits of 1,024, 16.5, 8-64 or 1e3."""

SERVER_S = 2400.0
"""How long MLPerf's server runs go on (`min_duration` in the entries' user.conf) [s]. Shorter ones
would miss the rare times when the batch is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests to a system, or to one of its replicas.

    `users` ask again when answered; with a `rate_per_s` requests come at random; with neither all
    are there at once. `answers` is `alike` or `mlperf-mixtral`. `together` says that all run in one
    batch, `steady` that the real run was so long that its beginning and its end do not count.
    `shortest` is the share of the lengths down to which they are drawn.
    """

    requests: int
    prompt_tokens: float
    output_tokens: float
    users: int | None = None
    rate_per_s: float | None = None
    answers: str = "alike"
    together: bool = False
    steady: bool = False
    shortest: float = 1.0
    copies: bool = False
    """Whether all requests have the same prompt, and so the same answer."""

    @property
    def timed(self) -> bool:
        """Whether requests come by a clock of their own, so that slower is not just longer."""
        return self.rate_per_s is not None

    @property
    def paced(self) -> bool:
        """Whether its engine is known by nothing but its pace (`paces`)."""
        return self.answers != "alike"

    def shared_by(self, replicas: int) -> "Workload":
        """Return what each of several replicas is asked: its part of the rate, or of the users."""
        users, rate = self.users, self.rate_per_s
        divided = users is not None or (self.timed and self.steady)
        if users is not None and users % replicas:
            raise UnknownRowError("users and replicas do not add up")
        return replace(
            self,
            users=None if users is None else users // replicas,
            requests=max(1, self.requests // replicas) if divided else self.requests,
            rate_per_s=None if rate is None else rate / replicas,
        )


def workload_of(row: Row) -> Workload:
    """Return what a system was asked; UnknownRowError where the table does not say."""
    kind = re.sub(r"_(closed|open)$", "", row.scenario) if "mlperf" in row.scenario else ""
    make = SCENARIOS.get(kind or row.scenario)
    if make is None:
        raise UnknownRowError(
            f"scenario {row.scenario or '(none)'} is not known: one of {', '.join(SCENARIOS)}"
        )
    return make(row)


def requests_of(workload: Workload, seed: int) -> pd.DataFrame:
    """Return the requests as `moesim.simulation.station.serve` takes them.

    MLPerf's come at just the rate that was asked for, and have each answer of the data set equally
    often: near saturation half a per cent more makes times to the first token a half longer.
    """
    rng, count = np.random.default_rng(seed), workload.requests
    arrival_s = np.zeros(count)
    if workload.rate_per_s is not None:
        arrival_s = rng.exponential(1 / workload.rate_per_s, count).cumsum()
    if workload.paced:
        prompts = mixtral_prompts(rng.permutation(count)) * workload.prompt_tokens / MIXTRAL_PROMPT
        prompt = np.maximum(np.rint(prompts), 1).astype(np.int64)
        output = mixtral_answers(rng.permutation((np.arange(count) + 0.5) / count))
        arrival_s *= count / (workload.rate_per_s * arrival_s[-1]) if workload.rate_per_s else 1.0
    else:
        prompt = _drawn(workload.prompt_tokens, workload.shortest, rng, count)
        output = _drawn(workload.output_tokens, workload.shortest, rng, count)
    return pd.DataFrame(
        {
            "request_id": np.arange(count),
            "tenant": "",
            "model": "",
            "arrival_s": arrival_s,
            "prompt_tokens": prompt,
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


def _static(row: Row) -> Workload:
    prompt, output = _lengths(row)
    return Workload(
        requests=_count(row, rf"batch (\d+){WHOLE}", "batch 8"),
        prompt_tokens=prompt,
        output_tokens=output,
        together=True,
        copies=bool(COPIES.search(f"{row.source} {row.software}")),
    )


def _at_once(row: Row) -> Workload:
    prompt, output = _lengths(row)
    requests = next(count for longest, count in REQUESTS if prompt + output <= longest)
    return Workload(requests=requests, prompt_tokens=prompt, output_tokens=output)


def _users(row: Row) -> Workload:
    prompt, output = _lengths(row)
    users = _count(row, rf"(?:concurrency(?:/batch)?|batch) (\d+){WHOLE}", "concurrency 8")
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
    asked = re.search(r"\bn \d", row.load)
    requests = _count(row, rf"\bn (\d+){WHOLE}", "rate 2.5 n 100") if asked else ONLINE
    if re.search(r"\brate inf\b", row.load):
        return Workload(requests=requests, prompt_tokens=prompt, output_tokens=output)
    return Workload(
        requests=requests,
        prompt_tokens=prompt,
        output_tokens=output,
        rate_per_s=_rate(row),
    )


def _server(row: Row) -> Workload:
    _mixtral(row)
    rate = _rate(row)
    return Workload(
        requests=ceil(rate * SERVER_S),
        prompt_tokens=row.isl or MIXTRAL_PROMPT,
        output_tokens=MIXTRAL_MEAN,
        rate_per_s=rate,
        answers="mlperf-mixtral",
        steady=True,
    )


def _offline(row: Row) -> Workload:
    _mixtral(row)
    if "_ms" in row.metric:
        raise UnknownRowError("offline latencies follow from how long the run was, not given")
    return Workload(
        requests=BATCHES * 896,
        prompt_tokens=row.isl or MIXTRAL_PROMPT,
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


def _count(row: Row, pattern: str, example: str) -> int:
    found = re.search(pattern, row.load)
    if not found or not int(found[1]):
        raise UnknownRowError(_unsaid(row, "how many", example))
    return int(found[1])


def _unsaid(row: Row, what: str, example: str) -> str:
    """Return the reason why a load is not understood, with one that is, of its number if any."""
    word, *_ = example.split()
    if re.fullmatch(r"\d+(\.\d*)?", row.load):
        example = f"{word} {float(row.load):.15g}"
    return f"load {row.load or '(none)'} does not say {what}: say `{example}`"


def _rate(row: Row) -> float:
    number = r"(\d+(?:\.\d*)?)"
    found = re.search(rf"\brate {number}{WHOLE}|(?<![\w.,-]){number} req/s", row.load)
    if not found or not float(found[1] or found[2]):
        raise UnknownRowError(_unsaid(row, "at what rate", "rate 2.5"))
    return float(found[1] or found[2])


SCENARIOS: Mapping[str, Callable[[Row], Workload]] = MappingProxyType(
    {
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
)
"""How requests came, by the names that tables have for it."""
