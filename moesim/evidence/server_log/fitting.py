"""Fitting an iteration's cost to the beginning of a server's log.

Two stretches of each request are iterations from end to end: from being scheduled to its first
token, and from there to its last. What was in those iterations follows from simulating the log with
every request arriving when the server scheduled it, so that no queue is in between. The duration is
linear in the parameters, so they are the bounded least squares of measured stretches on their
contents. New parameters shift the contents a little: a few dozen rounds are averaged.

Until the server schedules the first request of the rest, no request of the rest has touched it. The
fit uses the stretches that end before that moment, nothing else.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import inf

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.cost.affine import BOUNDS, PARAMETERS, AffineCost, AffineParameters
from moesim.errors import CalibrationError
from moesim.evidence.server_log.reading import BLOCK_SIZE, ServerLog
from moesim.serving.kv_cache import KvCache
from moesim.simulation.replica import Replica, Served
from moesim.simulation.station import serve

Floats = NDArray[np.float64]

Integers = NDArray[np.int64]

ROUNDS = 40
"""Simulations that a fit averages over."""

REWEIGHTINGS = 20
"""Rounds of weighing down errors that are far out."""

FINE = 1e-3
"""Relative error of an iteration below which no error counts as far out."""

CLOCK_S = 1e-9
"""Times of a simulation that are no further apart are one time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Fitted parameters, and what they rest on.

    `requests` is how many requests were looked at, up to `until_s`. `stretches` counts what was
    fitted by kind, `scatter` is the median relative error left of each kind.
    """

    parameters: AffineParameters
    requests: int
    until_s: float
    stretches: dict[str, int]
    scatter: dict[str, float]

    @property
    def at_bound(self) -> list[str]:
        """Parameters that the fit would have pushed further: the data do not determine them."""
        values = asdict(self.parameters)
        return [name for name in PARAMETERS if values[name] in BOUNDS[name]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What the iterations of a simulation held: (I,) times, and (I + 1, P) contents summed up."""

    begin_s: Floats
    end_s: Floats
    total: Floats

    def begun(self, at_s: Floats) -> Integers:
        """Return the number of the iteration that begins at each time."""
        return np.searchsorted(self.begin_s, at_s - CLOCK_S)

    def ended(self, at_s: Floats) -> Integers:
        """Return how many iterations have ended at each time, at which one ends."""
        return np.searchsorted(self.end_s, at_s - CLOCK_S) + 1

    def one_before(self, number: Integers) -> Integers:
        """Return the iteration that runs until each begins; itself where the replica was idle."""
        before = np.maximum(number - 1, 0)
        return np.where(self.begin_s[number] - self.end_s[before] < CLOCK_S, before, number)

    def between(self, first: Integers, last: Integers) -> Floats:
        """Return what iterations `first` to `last - 1` held, (N, P)."""
        return np.asarray(self.total[last] - self.total[first])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stretches:
    """Measured durations of two kinds: to the first token, and from there to the last."""

    records: pd.DataFrame
    first: NDArray[np.bool]
    stream: NDArray[np.bool]
    ahead: bool

    @property
    def measured_s(self) -> Floats:
        """The durations, those to first tokens before the others, (N,)."""
        table = self.records
        to_first = table["first_token_s"] - table["scheduled_s"]
        to_last = table["finish_s"] - table["first_token_s"]
        return np.concatenate([to_first[self.first], to_last[self.stream]])

    @property
    def kinds(self) -> dict[str, slice]:
        """Where either kind is."""
        count = int(self.first.sum())
        return {"to the first token": slice(0, count), "to the last token": slice(count, None)}

    def contents(self, served: Served) -> Floats:
        """Return what the same stretches of a simulation hold, (N, P)."""
        work, records = contents_of(served), served.records
        begun = work.begun(records["scheduled_s"].to_numpy())
        start = work.one_before(begun) if self.ahead else begun
        first = work.ended(records["first_token_s"].to_numpy())
        last = work.ended(records["finish_s"].to_numpy())
        to_first, to_last = work.between(start, first), work.between(first, last)
        return np.concatenate([to_first[self.first], to_last[self.stream]])


def fit(log: ServerLog, requests: int) -> Fit:
    """Fit the parameters to what the server showed before it began with any but the first requests.

    `requests` is how many come first, in order of arrival. CalibrationError where they do not
    suffice.
    """
    until_s = _untouched_until(log, requests)
    part = replace(log, records=log.records[:requests])
    stretches = _stretches(part, until_s)
    measured_s = stretches.measured_s
    arrivals = asked_of(part.records, part.records["scheduled_s"]).sort_values(
        "arrival_s", kind="stable"
    )
    parameters = _start(stretches)
    contents = np.zeros((len(measured_s), len(PARAMETERS)))
    for number in range(ROUNDS):
        served = served_by(part, parameters, arrivals)
        # Who shares an iteration with whom is touch and go: an average of rounds, late ones more.
        contents += (stretches.contents(served) - contents) * 2 / (number + 2)
        parameters, errors = _solve(contents, measured_s)
    return Fit(
        parameters=parameters,
        requests=requests,
        until_s=until_s,
        stretches={name: len(errors[kind]) for name, kind in stretches.kinds.items()},
        scatter={name: _median(errors[kind]) for name, kind in stretches.kinds.items()},
    )


def _untouched_until(log: ServerLog, requests: int) -> float:
    """Return when the server scheduled the first of the rest [s], infinity if there is no rest."""
    if not 0 < requests <= len(log.records):
        raise CalibrationError(
            f"{requests} requests to fit on: the log has {len(log.records)}; give 1 to that many"
        )
    rest = log.records["scheduled_s"][requests:]
    return float(rest.min()) if len(rest) else inf


def _stretches(part: ServerLog, until_s: float) -> _Stretches:
    table = part.records
    stretches = _Stretches(
        records=table,
        first=(
            (table["first_token_s"] <= until_s) & (table["first_token_s"] > table["scheduled_s"])
        ).to_numpy(),
        stream=((table["finish_s"] <= until_s) & (table["output_tokens"] > 1)).to_numpy(),
        ahead=part.ahead,
    )
    for kind, where in stretches.kinds.items():
        found = len(stretches.measured_s[where])
        if found < len(PARAMETERS):
            raise CalibrationError(
                f"only {found} of the first {len(table)} requests got {kind} before the server "
                f"began with the rest, {len(PARAMETERS)} are needed; fit on more requests"
            )
    if not (stretches.measured_s > 0).all():
        raise CalibrationError("a request of several tokens got them all at once; not a log to fit")
    return stretches


def _start(stretches: _Stretches) -> AffineParameters:
    """Return parameters of about the right size: half the shortest gap, and the fastest prompt."""
    table = stretches.records
    tpot_s = (table["finish_s"] - table["first_token_s"]) / (table["output_tokens"] - 1)
    prompt_s = (table["first_token_s"] - table["scheduled_s"]) / table["prompt_tokens"]
    values = dict.fromkeys(PARAMETERS, 0.0)
    values["fixed_s"] = tpot_s[stretches.stream].min() / 2
    values["token_s"] = prompt_s[stretches.first].min()
    return AffineParameters(**{name: _within(name, value) for name, value in values.items()})


def _within(name: str, value: float) -> float:
    least, most = BOUNDS[name]
    return float(min(max(value, least), most))


def asked_of(records: pd.DataFrame, arrival_s: pd.Series) -> pd.DataFrame:
    """Return what was asked of the server, as if it had arrived then."""
    asked = ["request_id", "tenant", "model", "prompt_tokens", "output_tokens"]
    return records[asked].assign(arrival_s=arrival_s)


def served_by(log: ServerLog, parameters: AffineParameters, requests: pd.DataFrame) -> Served:
    """Simulate a server of these parameters; the records are in order of request id."""
    limits = log.limits
    cost = AffineCost(
        parameters,
        max_batched_tokens=limits.max_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
    )
    cache = KvCache(log.kv_blocks, BLOCK_SIZE)
    served = serve(Replica(name="predicted", limits=limits, cache=cache, cost=cost), requests)
    return replace(served, table=served.table.take(np.argsort(served.table["request_id"])))


def contents_of(served: Served) -> _Work:
    """Write a simulation's iterations out one by one."""
    log, records = served.log, served.records
    run = np.repeat(np.arange(len(log)), log.iterations)
    step = np.arange(len(run)) - np.repeat(
        np.cumsum(log.iterations) - log.iterations, log.iterations
    )
    first_s, growth_s = log.first_s[run], log.growth_s[run]
    begin_s = log.start_s[run] + step * (first_s + growth_s * (step - 1) / 2)
    end_s = begin_s + first_s + growth_s * step
    tokens, decodes = log.tokens[run], log.sequences[run]
    prompt = records["prompt_tokens"].to_numpy()
    done = np.searchsorted(end_s, records["first_token_s"].to_numpy() - CLOCK_S)
    contents = {
        "fixed_s": np.ones(len(run)),
        "mixed_s": tokens > decodes,
        "token_s": tokens,
        "context_s": log.context[run] + decodes * (step + 1),
        "pair_s": np.bincount(done, weights=prompt**2 / 2, minlength=len(run)),
    }
    columns = np.stack([np.asarray(contents[name], dtype=float) for name in PARAMETERS], axis=1)
    total = np.concatenate([np.zeros((1, len(PARAMETERS))), np.cumsum(columns, axis=0)])
    return _Work(begin_s=begin_s, end_s=end_s, total=total)


def _solve(contents: Floats, measured_s: Floats) -> tuple[AffineParameters, Floats]:
    """Return the parameters nearest to the measured durations, and the relative errors left, (N,).

    If iterations miss independently of each other, a stretch of n misses by 1/sqrt(n) as much of
    its duration; so errors are taken times sqrt(n). Huber's estimate (Ann. Math. Statist. 35, 1964)
    by reweighting keeps the few that are far out, as prompts found in a prefix cache, from ruling.
    """
    shares = contents / measured_s[:, None]
    iterations = contents[:, PARAMETERS.index("fixed_s")]
    trust = np.ones(len(shares))
    for _ in range(REWEIGHTINGS):
        values = _bounded_least_squares(shares, iterations * trust)
        errors = shares @ values - 1
        trust = _trust(errors * np.sqrt(iterations))
    return AffineParameters(**dict(zip(PARAMETERS, values.tolist(), strict=True))), errors


def _trust(errors: Floats) -> Floats:
    """Return Huber's weights: 1, less for errors beyond 1.345 standard deviations."""
    deviation = max(1.4826 * _median(errors), FINE)
    return np.asarray(1 / np.maximum(np.abs(errors) / (1.345 * deviation), 1.0))


def _bounded_least_squares(shares: Floats, weights: Floats) -> Floats:
    """Return the values of BOUNDS or more whose weighted sums of `shares` come nearest to 1, (P,).

    Of every choice of parameters held at their least, the best whose others are above theirs; with
    so few parameters trying them all is exact and quick. CalibrationError for one beyond its most.
    """
    gram, target = shares.T @ (shares * weights[:, None]), shares.T @ weights
    least, most = np.array([BOUNDS[name] for name in PARAMETERS]).T
    found = [_held(gram, target, least, np.array(free)) for free in _choices(len(least))]
    feasible = [values for values in found if (values >= least).all()]
    best = min(feasible, key=lambda values: float(values @ gram @ values / 2 - target @ values))
    for name, value, bound in zip(PARAMETERS, best, most, strict=True):
        if value > bound:
            raise CalibrationError(
                f"{name}: the log asks for {value:.3g} s, more than {bound:g} s; "
                "is it that of one replica, with times in seconds?"
            )
    return best


def _choices(count: int) -> Iterator[tuple[bool, ...]]:
    """Yield which parameters are free, every choice once."""
    return product((False, True), repeat=count)


def _held(gram: Floats, target: Floats, least: Floats, free: NDArray[np.bool]) -> Floats:
    """Return the least squares with all but the free values at their least, (P,)."""
    values = least.copy()
    inner = gram[np.ix_(free, free)]
    unit = 1 / np.sqrt(np.maximum(np.diag(inner), 1e-300))
    pull = target[free] - gram[np.ix_(free, ~free)] @ least[~free]
    scaled = np.linalg.lstsq(inner * np.outer(unit, unit), pull * unit, rcond=1e-12)[0]
    values[free] = scaled * unit
    return values


def _median(errors: Floats) -> float:
    return float(np.median(np.abs(errors)))
