"""A scenario's requests: every tenant's arrivals and lengths, drawn and merged by time.

Each tenant's arrivals, prompts and outputs come from streams of their own, keyed by seed and
tenant, so that changing one tenant leaves the others' requests as they were.
"""

from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.errors import ScenarioError
from moesim.scenario import Lengths, Scenario, Tenant, TraceArrivals, TraceLengths
from moesim.traffic.traces import Window, cut, read_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, before anything has happened to it."""

    request_id: int
    tenant: str
    model: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int


COLUMNS = ("tenant", "model", "arrival_s", "prompt_tokens", "output_tokens")


def draw_requests(scenario: Scenario, seed: int) -> pd.DataFrame:
    """Draw a scenario's requests in order of arrival, columns as in `Request`, numbered from 0.

    Raises ScenarioError when there is not one request.
    """
    if seed < 0:
        raise ScenarioError(f"seed: {seed} must not be negative")
    frames = [
        _tenant_requests(name, tenant, scenario, seed) for name, tenant in scenario.tenants.items()
    ]
    merged = frames[0] if len(frames) == 1 else pd.concat(frames)
    if merged.empty:
        raise ScenarioError(
            f"scenario {scenario.name}: duration_s: {scenario.duration_s:g}: no request arrives; "
            "make it longer or raise a rate"
        )
    if len(frames) > 1:
        merged = merged.sort_values("arrival_s", kind="stable", ignore_index=True)
    merged.insert(0, "request_id", np.arange(len(merged)))
    return merged


def requests_of(scenario: Scenario, seed: int) -> list[Request]:
    """Draw a scenario's requests as objects."""
    return requests_from(draw_requests(scenario, seed))


def requests_from(frame: pd.DataFrame) -> list[Request]:
    """Return the rows of a frame of requests as objects, for the engine and for stepping."""
    columns = (frame[name].tolist() for name in ("request_id", *COLUMNS))
    return [
        Request(
            request_id=request_id,
            tenant=tenant,
            model=model,
            arrival_s=arrival_s,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
        )
        for request_id, tenant, model, arrival_s, prompt_tokens, output_tokens in zip(
            *columns, strict=True
        )
    ]


def _tenant_requests(name: str, tenant: Tenant, scenario: Scenario, seed: int) -> pd.DataFrame:
    streams = np.random.SeedSequence([seed, crc32(name.encode())]).spawn(3)
    arrivals, prompts, outputs = (np.random.default_rng(stream) for stream in streams)
    trace = None
    if isinstance(tenant.arrivals, TraceArrivals):
        trace = _replayed(tenant.arrivals, scenario)
        times = trace["arrival_s"].to_numpy()
    else:
        times = tenant.arrivals.times_s(scenario.duration_s, arrivals)
    return pd.DataFrame(
        {
            "tenant": name,
            "model": tenant.model,
            "arrival_s": times,
            "prompt_tokens": _lengths(tenant.prompt_tokens, "prompt_tokens", trace, times, prompts),
            "output_tokens": _lengths(tenant.output_tokens, "output_tokens", trace, times, outputs),
        }
    )


def _replayed(arrivals: TraceArrivals, scenario: Scenario) -> pd.DataFrame:
    path = Path(arrivals.path)
    if not path.is_absolute() and not path.exists() and scenario.folder is not None:
        path = scenario.folder / path
    window = Window(
        start_s=arrivals.start_s,
        duration_s=scenario.duration_s * arrivals.speedup,
        speedup=arrivals.speedup,
    )
    return cut(read_trace(path), window, path)


def _lengths(
    lengths: Lengths,
    field: str,
    trace: pd.DataFrame | None,
    times: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    if isinstance(lengths, TraceLengths):
        if trace is None:
            raise ScenarioError(f"{field}.kind: trace needs arrivals.kind: trace")
        original = trace[field].to_numpy()
        scaled = np.clip(np.rint(original * lengths.scale), 1, lengths.max).astype(np.int64)
        # A zero in the trace stays zero: scaling must not invent work that was refused.
        return np.where(original == 0, 0, scaled)
    return lengths.draw(len(times), rng)
