"""A replica: one model on one slice, and what it made of its requests."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.cost.iteration import CostModel
from moesim.serving.kv_cache import KvCache
from moesim.serving.records import COLUMNS, COMPLETED, REFUSED
from moesim.serving.scheduling import Limits, refusal
from moesim.simulation.ahead import can_run_ahead, run_ahead
from moesim.simulation.course import Course, Stream
from moesim.simulation.pressure import Pressed


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """What a replica is made of."""

    name: str
    limits: Limits
    cache: KvCache
    cost: CostModel


@dataclass(slots=True)
class Usage:
    """What a replica did over a run."""

    replica: str
    iterations: int = 0
    busy_s: float = 0.0
    batched_tokens: int = 0
    peak_running: int = 0
    kv_blocks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a replica made of its requests."""

    records: pd.DataFrame
    usage: Usage
    basis: dict[str, str]


def serve(replica: Replica, requests: pd.DataFrame) -> Served:
    """Serve an open-loop stream, which nothing outside can disturb, in jumps."""
    refused = _refused(replica, requests)
    accepted = requests if not refused.any() else requests[~refused]
    stream = Stream.of(accepted, replica.cache)
    course = Course()
    parts = (stream, course, replica.limits, replica.cache, replica.cost)
    if can_run_ahead(replica.limits):
        while not run_ahead(*parts) and not Pressed(*parts).run():
            pass
    else:
        Pressed(*parts).run(stay=True)
    return Served(
        records=_records(replica, requests, refused, stream),
        usage=Usage(
            replica=replica.name,
            iterations=course.iterations,
            busy_s=course.busy_s,
            batched_tokens=course.batched_tokens,
            peak_running=course.peak_running,
            kv_blocks=replica.cache.num_blocks,
        ),
        basis=replica.cost.basis(),
    )


def _refused(replica: Replica, requests: pd.DataFrame) -> NDArray[np.bool]:
    """Say for each request whether it can never be served; the rules are `refusal`'s."""
    limits, cache = replica.limits, replica.cache
    longest = min(limits.max_model_len, cache.num_blocks * cache.block_size + 1)
    prompt = requests["prompt_tokens"].to_numpy()
    output = requests["output_tokens"].to_numpy()
    suspects: NDArray[np.bool] = (prompt < 1) | (output < 1) | (prompt + output > longest)
    for index in np.flatnonzero(suspects):
        suspects[index] = _reason(replica, int(prompt[index]), int(output[index])) is not None
    return suspects


def _reason(replica: Replica, prompt: int, output: int) -> str | None:
    return refusal(prompt, output, replica.limits, replica.cache)


def _records(
    replica: Replica,
    requests: pd.DataFrame,
    refused: NDArray[np.bool],
    stream: Stream,
) -> pd.DataFrame:
    """Lay the stream's outcome out as a record table, refused requests among the others."""
    count = len(requests)
    served = ~refused
    times = {}
    for name in ("scheduled_s", "first_token_s", "finish_s"):
        times[name] = np.full(count, np.nan)
        times[name][served] = getattr(stream, name)
    preemptions = np.zeros(count, dtype=np.int64)
    places = np.flatnonzero(served)
    for place, often in stream.preemptions.items():
        preemptions[places[place]] = often
    prompt = requests["prompt_tokens"].to_numpy()
    output = requests["output_tokens"].to_numpy()
    details: NDArray[np.object_] | str = ""
    if refused.any():
        details = np.full(count, "", dtype=object)
        for index in np.flatnonzero(refused):
            details[index] = _reason(replica, int(prompt[index]), int(output[index]))
    columns = {
        "request_id": requests["request_id"].to_numpy(),
        "tenant": requests["tenant"].array,
        "model": requests["model"].array,
        "replica": replica.name,
        "arrival_s": requests["arrival_s"].to_numpy(),
        **times,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "preemptions": preemptions,
        "swaps": 0,
        "expert_misses": 0,
        "outcome": np.where(refused, REFUSED, COMPLETED) if refused.any() else COMPLETED,
        "detail": details,
    }
    return pd.DataFrame(columns, columns=list(COLUMNS))
