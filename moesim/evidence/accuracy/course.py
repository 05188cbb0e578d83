"""An experiment's course: one replica, simulated from the first request to the last."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moesim.evidence.accuracy.builds import Built, reckoned, tabulated
from moesim.evidence.accuracy.costs import Costs, Slower, SlowerCost
from moesim.evidence.accuracy.experiments import Experiment, Figure
from moesim.evidence.accuracy.memory import kv_blocks, room
from moesim.evidence.accuracy.metrics import value_of
from moesim.evidence.accuracy.names import UnknownRowError
from moesim.evidence.accuracy.served import as_served
from moesim.evidence.accuracy.workloads import requests_of
from moesim.serving.kv_cache import KvCache
from moesim.serving.scheduling import Limits
from moesim.simulation.replica import Replica, Usage
from moesim.simulation.station import serve

LARGEST_PIECE = 8192
"""Tokens whose activations are alive at once in a static batch: longer passes reuse the room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What became of an experiment."""

    records: pd.DataFrame
    usage: Usage
    limits: Limits
    prompt_tokens: float
    kv_blocks_each: int
    """Blocks of one request when it ends."""

    @property
    def full(self) -> bool:
        """Whether the KV cache had no room for one more request."""
        return (self.usage.peak_running + 1) * self.kv_blocks_each > self.usage.kv_blocks

    @property
    def rounds(self) -> float:
        """How often the largest batch was filled."""
        return len(self.records) / max(1, self.usage.peak_running)


def simulated(
    experiment: Experiment,
    costs: Costs,
    *,
    slower: Slower | None = None,
    memory: float = 1.0,
    seed: int = 0,
) -> Course:
    """Simulate an experiment, with parts slower or `memory` times the KV cache.

    Raises UnknownRowError where it cannot have run as the table says.
    """
    system, engine, workload = experiment.system, experiment.engine, experiment.workload
    prompt = workload.prompt_tokens
    limits, blocks = _limits(experiment, prompt)
    cost = as_served(
        costs.cost(system, limits.max_batched_tokens, limits.max_num_seqs),
        system.spec,
        system.part,
        system.precision,
        host=engine.host,
        gathered=engine.gathered,
    )
    replica = Replica(
        name="replica",
        limits=limits,
        cache=KvCache(max(1, int(blocks * memory)), engine.block_size),
        cost=cost if slower is None else SlowerCost(cost, slower),
    )
    requests = requests_of(workload, seed)
    served = serve(replica, requests)
    records = served.records
    if (records["outcome"] != "completed").any():
        raise UnknownRowError(f"requests refused: {records['detail'].max()}".split(":")[0])
    if workload.users is not None:
        records = _asked_again(records, workload.users)
    return Course(
        records=records,
        usage=served.usage,
        limits=limits,
        prompt_tokens=prompt,
        kv_blocks_each=replica.cache.blocks_for(round(prompt + workload.output_tokens) - 1),
    )


def of_course(figure: Figure, course: Course) -> float:
    """Return a figure as a course has it."""
    return value_of(
        figure.metric,
        course.records,
        replicas=figure.replicas,
        devices=figure.experiment.system.part.devices,
        steady=figure.experiment.workload.steady,
    )


def _asked_again(records: pd.DataFrame, users: int) -> pd.DataFrame:
    """Return the records with each request arriving when its user's request before was answered.

    A queue of which `users` run at once serves them in the same order at the same times: whenever
    one is answered the next begins. Only when it came is another question.
    """
    answered = np.sort(records["finish_s"].to_numpy(dtype=float))
    arrival = records["arrival_s"].to_numpy(dtype=float).copy()
    arrival[users:] = answered[: len(arrival) - users]
    return records.assign(arrival_s=arrival)


def _limits(experiment: Experiment, prompt: float) -> tuple[Limits, int]:
    """Return what the replica accepts, and its KV blocks."""
    system, engine, workload = experiment.system, experiment.engine, experiment.workload
    output = workload.output_tokens
    longest = system.spec.max_position_embeddings
    if workload.together:
        sequences, tokens = workload.requests, workload.requests * max(1, round(prompt))
        each = -(-(round(prompt) + round(output)) // engine.block_size)
        pieces = min(tokens, LARGEST_PIECE)
        blocks = min(sequences * each, kv_blocks(system, engine, sequences, pieces))
    else:
        sequences, tokens = _accepted(experiment, prompt)
        if not engine.policy.chunked:
            tokens = max(
                tokens, round(prompt + output) if engine.policy.preempts else round(prompt)
            )
        if workload.users is not None:
            sequences = min(sequences, workload.users)
        blocks = kv_blocks(system, engine, sequences, tokens, round(prompt + output))
        if engine.policy.mixed:
            sequences = min(sequences, tokens - 1)  # so that a prompt can always get on
    return (
        Limits(
            max_num_seqs=sequences,
            max_batched_tokens=tokens,
            max_model_len=max(longest, round(prompt + output)),
            policy=engine.policy,
        ),
        blocks,
    )


def _accepted(experiment: Experiment, prompt: float) -> Built:
    """Return the sequences and tokens that an engine accepts."""
    system, engine = experiment.system, experiment.engine
    if engine.max_num_seqs is not None and engine.context is not None:
        least, most = engine.context
        return engine.max_num_seqs, min(max(system.spec.max_position_embeddings, least), most)
    if engine.max_num_seqs is not None and engine.max_batched_tokens is not None:
        return engine.max_num_seqs, engine.max_batched_tokens
    output = experiment.workload.output_tokens
    each = prompt + output
    built = tabulated(experiment.model, system.part.devices, round(each))
    if built is None or not engine.tabulated:
        built = reckoned(room(system, each), prompt, output)
    return built
