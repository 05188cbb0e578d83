"""ServeGen: traffic generated from measured clients of a production service.

ServeGen (Xiang et al., NSDI 2026, github.com/alibaba/ServeGen) publishes no requests but, for each
client, the rate and burstiness of its arrivals in windows of 10 minutes (`servegen-trace`),
quantiles of its lengths in windows of 6 hours (`servegen-lengths`) and its mean rate
(`servegen-rates`). One client makes one tenant.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from moesim.errors import ScenarioError
from moesim.traffic.arrivals import ArrivalProcess, weibull_shape
from moesim.traffic.lengths import LONGEST, LengthDistribution, whole_tokens
from moesim.traffic.rows import Rows
from moesim.traffic.tables import Table
from moesim.traffic.traces import layout_of

Floats = NDArray[np.float64]

QUANTILES = {
    "prompt_tokens": "input_tokens_quantiles",
    "output_tokens": "output_tokens_quantiles",
}
"""Columns of the lengths, by the field of a tenant that they describe."""

USUAL_WINDOW_S = 600.0
"""How long windows last in a file that has only one."""

FAMILIES: Mapping[str, Callable[[float, int, np.random.Generator], Floats]] = {
    "Gamma": lambda cv, count, rng: rng.gamma(cv**-2, 1.0, count),
    "Weibull": lambda cv, count, rng: rng.weibull(weibull_shape(cv), count),
}
"""Gaps of a coefficient of variation, of any mean, by the family that a window names."""


class ServeGenArrivals(ArrivalProcess):
    """Arrivals drawn from a ServeGen client's rate and burstiness, window by window."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    kind: Literal["servegen"]
    """`servegen`."""
    path: str
    """The client windows: a CSV with client_id, window_start_s, rate_req_s, cv, arrival_family."""
    client: str
    """Which client, by its id in the file."""
    start_s: float = Field(default=0.0, ge=0, le=1e12, allow_inf_nan=False)
    """Where in the file's time to begin [s]."""
    speedup: float = Field(default=1.0, ge=1e-6, le=1e6, allow_inf_nan=False)
    """How much faster than recorded; 0.5 is half as fast."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the client's requests that come here, each by chance; the others are left out."""

    def times_in(
        self, windows: pd.DataFrame, duration_s: float, rng: np.random.Generator
    ) -> Floats:
        """Draw the arrival times in `[0, duration_s)` from the client's windows."""
        end_s = self.start_s + duration_s * self.speedup
        here = windows[(windows["end_s"] > self.start_s) & (windows["start_s"] < end_s)]
        drawn = [
            self._kept(_in_window(start_s, end_s, rate_per_s, cv, family, rng), rng)
            for start_s, end_s, rate_per_s, cv, family in here.itertuples(index=False, name=None)
        ]
        times = np.concatenate([np.empty(0), *drawn])
        inside = times[(times >= self.start_s) & (times < end_s)]
        replayed: Floats = (inside - self.start_s) / self.speedup
        # Dividing may round the last arrival up to the end.
        return replayed[replayed < duration_s]

    def expected(self, windows: pd.DataFrame, duration_s: float) -> float:
        """Return how many arrivals the windows that this touches hold, before `share`."""
        end_s = self.start_s + duration_s * self.speedup
        here = windows[(windows["end_s"] > self.start_s) & (windows["start_s"] < end_s)]
        return float(((here["end_s"] - here["start_s"]) * here["rate_per_s"]).sum())

    def _kept(self, times: Floats, rng: np.random.Generator) -> Floats:
        return times[rng.random(times.size) < self.share]


class ServeGenLengths(LengthDistribution):
    """Lengths drawn from a ServeGen client's quantiles, those in force at each arrival."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    kind: Literal["servegen"]
    """`servegen`."""
    path: str
    """The client lengths: JSONL with client_id, window_start_s and quantiles of both lengths."""
    client: str
    """Which client, by its id in the file."""
    scale: float = Field(default=1.0, gt=0, le=1e6)
    """Factor on every length."""
    max: int = Field(default=LONGEST, gt=0, le=LONGEST)
    """Longest length; longer draws are clipped to it [tokens]."""

    def draw_at(
        self, times_s: Floats, table: "QuantileWindows", rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Draw a length for each arrival, the times being the file's own."""
        window = np.searchsorted(table.starts_s, times_s, side="right") - 1
        # Before the first window its quantiles hold, and after each until the next.
        values = table.inverted(np.maximum(window, 0), rng.random(times_s.size))
        return whole_tokens(values * self.scale, self.max)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileWindows:
    """A client's quantiles of a length: `tokens` (windows, levels), from `starts_s` (windows,) on.

    Level i of n stands for the middle of the i-th n-th: 64 quantiles are those at 1/128, 3/128, ...
    The lowest and the highest hold to the ends, so that the mean drawn is the quantiles' mean.
    """

    starts_s: Floats
    tokens: Floats

    def inverted(self, window: NDArray[np.int64], level: Floats) -> Floats:
        """Return the length at a level between 0 and 1, in a window each."""
        last = self.tokens.shape[1] - 1
        place = np.clip(level * (last + 1) - 0.5, 0, last)
        below = np.minimum(place.astype(np.int64), last - 1)
        low, high = self.tokens[window, below], self.tokens[window, below + 1]
        lengths: Floats = low + (place - below) * (high - low)
        return lengths


def clients_from(table: Table, *, skip_bad_rows: bool = False) -> pd.DataFrame:
    """Return the windows of all clients: client, start_s, end_s, rate_per_s, cv, family.

    All windows last as long as the shortest step between two of them.
    """
    _expect(table, "servegen-trace")
    rows = Rows(table)
    frame = pd.DataFrame(
        {
            "client": rows.texts("client_id"),
            "start_s": rows.numbers("window_start_s"),
            "rate_per_s": rows.numbers("rate_req_s"),
            "cv": rows.numbers("cv"),
            "family": rows.texts("arrival_family"),
        }
    )
    _check_windows(rows, frame)
    frame = _in_order(frame[rows.settle(skip=skip_bad_rows)], table)
    steps = np.diff(np.unique(frame["start_s"]))
    frame.insert(
        2, "end_s", frame["start_s"] + steps.min(initial=np.inf if steps.size else USUAL_WINDOW_S)
    )
    return frame


def lengths_from(table: Table, *, skip_bad_rows: bool = False) -> pd.DataFrame:
    """Return the length windows of all clients: client, start_s, prompt_tokens, output_tokens.

    The lengths are rising quantiles at evenly spaced levels, as tuples.
    """
    _expect(table, "servegen-lengths")
    rows = Rows(table)
    frame = pd.DataFrame(
        {"client": rows.texts("client_id"), "start_s": rows.numbers("window_start_s")}
    )
    for field, column in QUANTILES.items():
        quantiles = [_rising(value) for value in table.frame[column]]
        wrong = np.array([value is None for value in quantiles], dtype=bool)
        rows.refuse(column, wrong, f"a list of rising lengths of at most {LONGEST} tokens")
        frame[field] = pd.Series(quantiles, dtype=object)
    return _in_order(frame[rows.settle(skip=skip_bad_rows)], table)


def rates_from(table: Table, *, skip_bad_rows: bool = False) -> pd.DataFrame:
    """Return each client's mean rate: client, rate_per_s, the busiest first."""
    _expect(table, "servegen-rates")
    rows = Rows(table)
    frame = pd.DataFrame(
        {"client": rows.texts("client_id"), "rate_per_s": rows.numbers("mean_rate_req_s")}
    )
    rows.refuse("mean_rate_req_s", (frame["rate_per_s"] < 0).to_numpy(), "a rate")
    kept = frame[rows.settle(skip=skip_bad_rows)]
    return kept.sort_values("rate_per_s", ascending=False, kind="stable", ignore_index=True)


def windows_of(clients: pd.DataFrame, client: str, path: Path) -> pd.DataFrame:
    """Return one client's windows, in order; ScenarioError where it has none."""
    mine = clients[clients["client"] == client].drop(columns="client")
    if mine.empty:
        raise ScenarioError(f"{path}: client {client!r} is not in it; {_there(clients)}")
    return mine


def quantiles_of(lengths: pd.DataFrame, client: str, field: str, path: Path) -> QuantileWindows:
    """Return one client's quantiles of `prompt_tokens` or `output_tokens`."""
    mine = lengths[lengths["client"] == client]
    if mine.empty:
        raise ScenarioError(
            f"{path}: no lengths of client {client!r} (a few clients have none); {_there(lengths)}"
        )
    counts = {len(quantiles) for quantiles in mine[field]}
    if len(counts) > 1:
        raise ScenarioError(f"{path}: client {client!r}: {field}: quantiles differ in number")
    return QuantileWindows(
        starts_s=mine["start_s"].to_numpy(),
        tokens=np.array(mine[field].tolist(), dtype=float),
    )


def _in_window(
    start_s: float, end_s: float, rate_per_s: float, cv: float, family: str,
    rng: np.random.Generator,
) -> Floats:  # fmt: skip
    """Draw a window's arrivals: as many as its rate says, with gaps of its family that fill it.

    Counting from the rate rather than from the gaps keeps every window's rate as measured: a cv of
    100, of which there are many, would make a renewal process's count anything.
    """
    count = int((end_s - start_s) * rate_per_s + rng.random())
    if count == 0:
        return np.empty(0)
    gaps = FAMILIES[family](cv, count + 1, rng)
    if not gaps.any():
        # So bursty that all gaps round to zero: in the limit, one gap is the whole window.
        gaps[rng.integers(count + 1)] = 1.0
    reached: Floats = np.cumsum(gaps)
    times: Floats = start_s + (end_s - start_s) * reached[:-1] / reached[-1]
    # Rounding must not lift an arrival onto the window's end.
    return times.clip(max=np.nextafter(end_s, start_s))


def _check_windows(rows: Rows, frame: pd.DataFrame) -> None:
    rate, busy = frame["rate_per_s"], frame["rate_per_s"] > 0
    rows.refuse("rate_req_s", ~rate.between(0, 1e5).to_numpy(), "a rate from 0 to 100000")
    strange = busy & ~frame["cv"].between(1e-3, 1e5)
    rows.refuse("cv", strange.to_numpy(), "a coefficient of variation from 0.001 to 100000")
    unknown = busy & ~frame["family"].isin(FAMILIES.keys())
    rows.refuse("arrival_family", unknown.to_numpy(), f"one of {', '.join(FAMILIES)}")


def _in_order(frame: pd.DataFrame, table: Table) -> pd.DataFrame:
    if frame.empty:
        raise ScenarioError(f"{table.path}: no window in it, only a header or bad rows")
    twice = frame[frame.duplicated(["client", "start_s"])]
    if not twice.empty:
        client, start_s = twice.iloc[0][["client", "start_s"]]
        raise ScenarioError(
            f"{table.path}: client {client!r}: the window from {start_s:g} s is given twice"
        )
    return frame.sort_values(["client", "start_s"], kind="stable", ignore_index=True)


def _rising(value: object) -> tuple[float, ...] | None:
    """Return a list of two or more lengths that do not fall; None for anything else."""
    listed = list(value) if isinstance(value, (list, np.ndarray)) else []
    if len(listed) < 2 or not all(type(item) in (int, float) for item in listed):
        return None
    if not all(0 <= item <= LONGEST for item in listed):
        return None
    sound = np.all(np.diff(np.array(listed, dtype=float)) >= 0)
    return tuple(listed) if sound else None


def _there(frame: pd.DataFrame) -> str:
    return f"clients there: {', '.join(frame['client'].unique()[:20])}"


def _expect(table: Table, name: str) -> None:
    found = layout_of(table)
    if found != name:
        raise ScenarioError(f"{table.path}: {found}, expected {name}")
