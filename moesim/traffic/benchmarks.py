"""Results of `vllm bench serve --save-result --save-detailed`: a run is an object of arrays."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from moesim.errors import ScenarioError

ARRAYS = ("start_times", "input_lens", "output_lens")

SUMMARY = {"request_throughput", "total_input_tokens"}
"""Keys of every result, with details or without."""


def is_benchmark(objects: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether one of the objects is a benchmark's result rather than a request."""
    return any("input_lens" in run or run.keys() >= SUMMARY for run in objects)


def requests_of_runs(runs: Mapping[int, Mapping[str, Any]], path: Path) -> pd.DataFrame:
    """Return the requests of benchmark runs given by their lines, numbered from 1.

    Start times are read off a clock that begins anywhere, so several runs of one file are tenants
    `run 1`, `run 2`, each from a zero of its own.
    """
    frames = [_requests(run, f"{path}: line {line}") for line, run in runs.items()]
    if len(frames) > 1:
        frames = [
            frame.assign(start_times=_from_zero(frame["start_times"]), tenant=f"run {number}")
            for number, frame in enumerate(frames, start=1)
        ]
    requests = pd.concat(frames, ignore_index=True)
    requests.index = pd.RangeIndex(1, len(requests) + 1)
    return requests


def _requests(run: Mapping[str, Any], place: str) -> pd.DataFrame:
    missing = [name for name in ARRAYS if not isinstance(run.get(name), list)]
    if missing:
        raise ScenarioError(
            f"{place}: a benchmark result without {', '.join(missing)}; "
            "repeat it with vllm bench serve --save-result --save-detailed"
        )
    lengths = {name: len(run[name]) for name in ARRAYS}
    if len(set(lengths.values())) > 1:
        raise ScenarioError(f"{place}: arrays of different lengths: {lengths}")
    return pd.DataFrame({name: pd.Series(run[name], dtype=object) for name in ARRAYS})


def _from_zero(times: pd.Series) -> pd.Series:
    first = min((time for time in times if type(time) in (int, float)), default=0.0)
    return times - first
