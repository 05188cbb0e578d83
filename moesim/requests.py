"""A scenario's requests: every tenant's arrivals and lengths, drawn and merged by time.

Each tenant's arrivals, prompts and outputs come from streams of their own, keyed by seed and
tenant, so that changing one tenant leaves the others' requests as they were.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.errors import ScenarioError
from moesim.scenario import Arrivals, Lengths, Scenario, Tenant, TraceArrivals, TraceLengths
from moesim.serving.columns import Columns, Table, joined
from moesim.traffic.lengths import Fixed
from moesim.traffic.modulated import Diurnal, OnOff
from moesim.traffic.servegen import (
    ServeGenArrivals,
    ServeGenLengths,
    clients_from,
    lengths_from,
    quantiles_of,
    windows_of,
)
from moesim.traffic.tables import read_table
from moesim.traffic.traces import Trace, Window, cut, read_trace
from moesim.traffic.users import Users


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, before anything has happened to it."""

    request_id: int
    tenant: str
    model: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix: tuple[int, ...] = ()
    """Names of the prompt's full blocks: equal names, equal prompts up to there."""
    delay_s: float = 0.0
    """How long after its arrival it reaches a replica: what a gateway took."""

    @property
    def reaches_s(self) -> float:
        """When it reaches a replica [s]."""
        return self.arrival_s + self.delay_s


COLUMNS = ("tenant", "model", "arrival_s", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """The files that a scenario's traffic comes from, each read once, by the path it gives."""

    requests: Mapping[str, Trace]
    clients: Mapping[str, pd.DataFrame]
    """ServeGen's windows of arrivals."""
    lengths: Mapping[str, pd.DataFrame]
    """ServeGen's windows of lengths."""


def load_traces(scenario: Scenario) -> Traces:
    """Read the files that a scenario's traffic comes from; ScenarioError where one is wrong.

    Bad rows are skipped only if all tenants that replay a trace say so.
    """
    tenants = scenario.tenants.values()
    arrivals = [tenant.arrivals for tenant in tenants]
    lengths = [part for tenant in tenants for part in (tenant.prompt_tokens, tenant.output_tokens)]
    replays = [part for part in arrivals if isinstance(part, TraceArrivals)]
    strict = {part.path for part in replays if not part.skip_bad_rows}
    return Traces(
        requests={
            path: read_trace(_located(path, scenario), skip_bad_rows=path not in strict)
            for path in dict.fromkeys(part.path for part in replays)
        },
        clients={
            path: clients_from(read_table(_located(path, scenario)))
            for path in {part.path for part in arrivals if isinstance(part, ServeGenArrivals)}
        },
        lengths={
            path: lengths_from(read_table(_located(path, scenario)))
            for path in {part.path for part in lengths if isinstance(part, ServeGenLengths)}
        },
    )


MOST_REQUESTS = 2e7
"""Requests of a tenant beyond which memory would not do: about a kilobyte each."""


def draw_requests(scenario: Scenario, seed: int, traces: Traces | None = None) -> pd.DataFrame:
    """Draw a scenario's requests as a frame; see `drawn`."""
    return drawn(scenario, seed, traces).frame


def drawn(scenario: Scenario, seed: int, traces: Traces | None = None) -> Columns:
    """Draw a scenario's requests in order of arrival, columns as in `Request`, numbered from 0.

    Where a replayed trace names its prompts' blocks by hashes there is a column `prefix`, a tuple
    of them a request, and `attrs["prefix_block"]` is how many tokens a block has. `traces` are the
    scenario's files if they are read already, to draw with many seeds.

    Users in a closed loop ask while a simulation runs, so theirs are not among them. Raises
    ScenarioError when there is not one request, and no user either.
    """
    if seed < 0:
        raise ScenarioError(f"seed: {seed} must not be negative")
    traces = traces or load_traces(scenario)
    _check_size(scenario, traces)
    merged = _merged(
        [
            _tenant_requests(name, tenant, scenario, seed, traces)
            for name, tenant in scenario.tenants.items()
        ]
    )
    asking = any(isinstance(tenant.arrivals, Users) for tenant in scenario.tenants.values())
    if not len(merged) and not asking:
        raise ScenarioError(
            f"scenario {scenario.name}: duration_s: {scenario.duration_s:g}: no request arrives; "
            "make it longer or raise a rate"
        )
    names = ("request_id", *COLUMNS, *(["prefix"] if "prefix" in merged else []))
    return merged.assign(request_id=np.arange(len(merged))).only(names)


def _expected(arrivals: Arrivals, duration_s: float, traces: Traces) -> float:
    """Return about how many requests there will be at most."""
    if isinstance(arrivals, Users):
        # Nobody asks more often than thinking and a first token allow.
        return arrivals.count * duration_s / max(1e-2, arrivals.think_s)
    if isinstance(arrivals, ServeGenArrivals):
        windows = windows_of(traces.clients[arrivals.path], arrivals.client, Path(arrivals.path))
        return arrivals.expected(windows, duration_s)
    return float(getattr(arrivals, "rate_per_s", 0.0)) * duration_s


def _check_size(scenario: Scenario, traces: Traces) -> None:
    """Raise ScenarioError before memory runs out over a slip of the pen."""
    for name, tenant in scenario.tenants.items():
        arrivals = tenant.arrivals
        if isinstance(arrivals, (OnOff, Diurnal)):
            pieces = arrivals.pieces(scenario.duration_s)
            if pieces > MOST_REQUESTS:
                raise ScenarioError(
                    f"tenants.{name}.arrivals: the rate changes about {pieces:.2g} times in "
                    f"duration_s {scenario.duration_s:g}, more than {MOST_REQUESTS:.0g}; make its "
                    "periods longer or simulate a shorter time"
                )
        expected = _expected(arrivals, scenario.duration_s, traces)
        if expected > MOST_REQUESTS:
            raise ScenarioError(
                f"tenants.{name}: about {expected:.2g} requests in duration_s "
                f"{scenario.duration_s:g}, more than {MOST_REQUESTS:.0g} at once; simulate a "
                "shorter time"
            )


def requests_of(scenario: Scenario, seed: int) -> list[Request]:
    """Draw a scenario's requests as objects."""
    return requests_from(draw_requests(scenario, seed))


def requests_from(table: Table) -> list[Request]:
    """Return the rows of a table of requests as objects, for the engine and for stepping."""
    prefix = table["prefix"].tolist() if "prefix" in table else [()] * len(table)
    delays = table["delay_s"].tolist() if "delay_s" in table else [0.0] * len(table)
    columns = (*(table[name].tolist() for name in ("request_id", *COLUMNS)), prefix, delays)
    return [
        Request(
            request_id=request_id,
            tenant=tenant,
            model=model,
            arrival_s=arrival_s,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            prefix=names,
            delay_s=delay_s,
        )
        for (
            request_id,
            tenant,
            model,
            arrival_s,
            prompt_tokens,
            output_tokens,
            names,
            delay_s,
        ) in zip(*columns, strict=True)
    ]


def _merged(parts: list[Columns]) -> Columns:
    """Return all tenants' requests by time, those of one instant in the order of the tenants."""
    blocks = {part.attrs["prefix_block"] for part in parts if "prefix" in part}
    if len(blocks) > 1:
        sizes = " and ".join(map(str, sorted(blocks)))
        raise ScenarioError(
            f"tenants replay traces whose hashes stand for different numbers of tokens ({sizes}); "
            "give them prompt lengths of another kind, or scenarios of their own"
        )
    if len(parts) == 1:
        return parts[0]
    if blocks:
        parts = [part if "prefix" in part else _without_hashes(part) for part in parts]
    merged = joined(parts)
    if blocks:
        merged.attrs["prefix_block"] = blocks.pop()
    return merged.take(np.argsort(merged["arrival_s"], kind="stable"))


def _without_hashes(part: Columns) -> Columns:
    nothing: list[tuple[int, ...]] = [()] * len(part)
    return part.assign(prefix=np.fromiter(nothing, dtype=object, count=len(part)))


def _tenant_requests(
    name: str, tenant: Tenant, scenario: Scenario, seed: int, traces: Traces
) -> Columns:
    arrivals, prompts, outputs = (_stream(seed, name, number) for number in range(3))
    trace = _replayed(tenant.arrivals, scenario.duration_s, traces)
    times = _times(tenant.arrivals, trace, scenario.duration_s, traces, arrivals)
    columns = Columns(
        len(times),
        {
            "tenant": name,
            "model": tenant.model,
            "arrival_s": times,
            "prompt_tokens": _lengths(tenant, "prompt_tokens", trace, times, traces, prompts),
            "output_tokens": _lengths(tenant, "output_tokens", trace, times, traces, outputs),
        },
    )
    if trace is not None and "prefix" in trace:
        return _with_prefix(columns, tenant, trace)
    return columns


Stream = Callable[[], np.random.Generator]
"""Makes the generator of one source of chance, where it is needed."""


def _stream(seed: int, tenant: str, number: int) -> Stream:
    """Return the numbered child of a tenant's seed, as `SeedSequence.spawn` makes it."""

    def generator() -> np.random.Generator:
        entropy = [seed, crc32(tenant.encode())]
        return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(number,)))

    return generator


def _located(path: str, scenario: Scenario) -> Path:
    """Return where a scenario's file lies; what is not here is beside the scenario."""
    here = Path(path)
    if here.is_absolute() or here.exists() or scenario.folder is None:
        return here
    return scenario.folder / here


def _replayed(arrivals: Arrivals, duration_s: float, traces: Traces) -> pd.DataFrame | None:
    """Return the part of a trace that a tenant replays; None where it replays none."""
    if not isinstance(arrivals, TraceArrivals):
        return None
    window = Window(
        start_s=arrivals.start_s,
        duration_s=duration_s * arrivals.speedup,
        speedup=arrivals.speedup,
        tenant=arrivals.only_tenant,
        max_requests=arrivals.max_requests,
    )
    trace = traces.requests[arrivals.path]
    part = cut(trace.frame, window, Path(arrivals.path))
    part.attrs["prefix_block"] = trace.prefix_block
    return part


def _times(
    arrivals: Arrivals,
    trace: pd.DataFrame | None,
    duration_s: float,
    traces: Traces,
    stream: Stream,
) -> NDArray[np.float64]:
    if trace is not None:
        return trace["arrival_s"].to_numpy(dtype=float)
    if isinstance(arrivals, (Users, TraceArrivals)):
        return np.empty(0)  # users ask while the simulation runs
    if isinstance(arrivals, ServeGenArrivals):
        clients = traces.clients[arrivals.path]
        windows = windows_of(clients, arrivals.client, Path(arrivals.path))
        return arrivals.times_in(windows, duration_s, stream())
    return arrivals.times_s(duration_s, stream())


def _lengths(
    tenant: Tenant,
    field: str,
    trace: pd.DataFrame | None,
    times: NDArray[np.float64],
    traces: Traces,
    stream: Stream,
) -> NDArray[np.int64] | int:
    lengths: Lengths = getattr(tenant, field)
    if isinstance(lengths, TraceLengths):
        if trace is None:
            raise ScenarioError(f"{field}.kind: trace needs arrivals.kind: trace")
        original = trace[field].to_numpy()
        scaled = np.clip(np.rint(original * lengths.scale), 1, lengths.max).astype(np.int64)
        # A zero in the trace stays zero: scaling must not invent work that was refused.
        return np.where(original == 0, 0, scaled)
    if isinstance(lengths, ServeGenLengths):
        table = traces.lengths[lengths.path]
        quantiles = quantiles_of(table, lengths.client, field, Path(lengths.path))
        return lengths.draw_at(_recorded(tenant.arrivals, times), quantiles, stream())
    if isinstance(lengths, Fixed):
        return lengths.tokens
    return lengths.draw(len(times), stream())


def _recorded(arrivals: Arrivals, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return when arrivals drawn from a ServeGen file happen in the file's own time."""
    if isinstance(arrivals, ServeGenArrivals):
        return arrivals.start_s + times * arrivals.speedup
    return times


def _with_prefix(columns: Columns, tenant: Tenant, trace: pd.DataFrame) -> Columns:
    """Add the hashes of a trace's prompts, where its prompts are what is replayed."""
    lengths = tenant.prompt_tokens
    if not isinstance(lengths, TraceLengths):
        return columns
    hashed = columns.assign(prefix=trace["prefix"].to_numpy())
    # A prompt scaled down has its blocks scaled down.
    hashed.attrs["prefix_block"] = max(1, round(trace.attrs["prefix_block"] * lengths.scale))
    return hashed
