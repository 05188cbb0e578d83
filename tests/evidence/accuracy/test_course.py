"""An experiment's course, against sums by hand and against stepping through every iteration."""

from dataclasses import replace
from math import ceil

import numpy as np
import pandas as pd
import pytest

from moesim.cost.affine import AffineCost, AffineParameters
from moesim.cost.iteration import Cost
from moesim.evidence.accuracy.causes import cause_of, limit_of
from moesim.evidence.accuracy.costs import Costs, Slower, SlowerCost
from moesim.evidence.accuracy.course import simulated
from moesim.evidence.accuracy.engines import engine_of
from moesim.evidence.accuracy.experiments import Experiment, Figure, System, figure_of
from moesim.evidence.accuracy.memory import kv_blocks, usable_bytes
from moesim.evidence.accuracy.metrics import metric_of, value_of
from moesim.evidence.accuracy.names import UnknownRowError
from moesim.evidence.accuracy.workloads import Workload, requests_of
from moesim.facts.catalog import load_device
from moesim.serving.kv_cache import KvCache
from moesim.serving.policies import POLICIES
from moesim.serving.scheduling import Limits
from moesim.simulation.replica import Replica
from moesim.simulation.station import Station, serve
from moesim.simulation.stepwise import step_through
from tests.evidence.accuracy.test_understanding import ROW

ITERATION_S = 0.01
FIGURE = figure_of(ROW)


class Flat(Costs):
    """Every iteration takes as long, whatever is in it."""

    def cost(self, system: System, tokens: int, sequences: int) -> Cost:
        only = AffineParameters(
            fixed_s=ITERATION_S, mixed_s=0.0, token_s=0.0, context_s=0.0, pair_s=0.0
        )
        return AffineCost(only, max_batched_tokens=tokens, max_num_seqs=sequences)


def _asked(**workload: object) -> Experiment:
    """Return an experiment of an engine whose host takes no time."""
    base = Workload(requests=64, prompt_tokens=100, output_tokens=50)
    return replace(
        FIGURE.experiment,
        engine=replace(FIGURE.experiment.engine, host=None),
        workload=replace(base, **workload),  # type: ignore[arg-type]
    )


def test_a_steady_rate_has_neither_beginning_nor_end() -> None:
    """Ten requests of ten tokens, one admitted every two seconds: five tokens a second."""
    count = 10
    records = pd.DataFrame(
        {
            "arrival_s": 0.0,
            "scheduled_s": 2.0 * np.arange(count),
            "finish_s": 2.0 * np.arange(count) + 100,
            "output_tokens": 10,
            "prompt_tokens": 1,
        }
    )
    metric = metric_of("output_tokens_per_s")
    assert value_of(metric, records, replicas=1, devices=1, steady=True) == pytest.approx(5.0)
    assert value_of(metric, records, replicas=1, devices=1) == pytest.approx(100 / 118)


def test_lengths_are_drawn_down_to_the_shortest() -> None:
    asked = Workload(requests=2000, prompt_tokens=100, output_tokens=50, shortest=0.8)
    drawn = requests_of(asked, seed=1)
    assert (drawn["prompt_tokens"].min(), drawn["prompt_tokens"].max()) == (80, 100)
    assert (drawn["output_tokens"].min(), drawn["output_tokens"].max()) == (40, 50)
    assert drawn["prompt_tokens"].mean() == pytest.approx(90, abs=0.5)


def test_all_at_once_by_hand() -> None:
    """Prompts take what decodes leave of each iteration's tokens; 49 iterations follow the last."""
    course = simulated(_asked(requests=300), Flat())
    budget, iterations, done, decodes = course.limits.max_batched_tokens, 0, 0, 0
    while done < 30_000:
        done += budget - decodes
        decodes = min(done, 30_000) // 100
        iterations += 1
    assert 1 < iterations < 50
    span_s = float(course.records["finish_s"].max())
    assert span_s == pytest.approx((iterations + 49) * ITERATION_S)
    rate = value_of(metric_of("output_tokens_per_s"), course.records, replicas=1, devices=2)
    assert rate == pytest.approx(300 * 50 / span_s)


def test_a_closed_loop_by_hand() -> None:
    """Eight users, a prompt of an iteration and 49 more tokens: each asks every 50 iterations."""
    course = simulated(_asked(users=8), Flat())
    records = course.records
    assert len(records) == 64
    ttft = value_of(metric_of("ttft_mean_ms"), records, replicas=1, devices=1)
    tpot = value_of(metric_of("tpot_mean_ms"), records, replicas=1, devices=1)
    assert (ttft, tpot) == pytest.approx((1e3 * ITERATION_S, 1e3 * ITERATION_S))
    waits = records["scheduled_s"] - records["arrival_s"]
    assert waits.abs().max() == pytest.approx(0.0, abs=1e-9)
    assert records["finish_s"].max() == pytest.approx(64 / 8 * 50 * ITERATION_S)


def test_a_static_batch_by_hand() -> None:
    static = engine_of("TensorRT-LLM 0.10", "static_batch")
    experiment = replace(_asked(together=True), engine=static)
    course = simulated(experiment, Flat())
    assert course.records["finish_s"].max() == pytest.approx(50 * ITERATION_S)
    assert course.usage.peak_running == 64


def test_a_static_batch_that_does_not_fit_runs_in_parts() -> None:
    """Weights leave no room for a thousand long answers at once."""
    static = engine_of("TensorRT-LLM 0.10", "static_batch")
    experiment = replace(_asked(together=True, requests=1000, output_tokens=8000), engine=static)
    course = simulated(experiment, Flat())
    parts = ceil(1000 / course.usage.peak_running)
    assert parts > 1
    assert course.records["finish_s"].max() == pytest.approx(parts * 8000 * ITERATION_S)


def test_rates_are_of_all_replicas_or_per_device() -> None:
    records = simulated(_asked(), Flat()).records
    whole = value_of(metric_of("output_tokens_per_s"), records, replicas=1, devices=4)
    assert value_of(metric_of("output_tokens_per_s"), records, replicas=3, devices=4) == 3 * whole
    per_gpu = metric_of("output_tokens_per_s_per_gpu")
    assert value_of(per_gpu, records, replicas=1, devices=4) == whole / 4
    everything = value_of(metric_of("total_tokens_per_s"), records, replicas=1, devices=1)
    assert everything == pytest.approx(3 * whole)


def test_the_cache_is_what_memory_leaves() -> None:
    """Mixtral in FP8 over two H100: a share of what weights and the rest leave, in blocks."""
    system, engine = FIGURE.experiment.system, FIGURE.experiment.engine
    blocks = kv_blocks(system, engine, 1, 1)
    weights = (46_702_792_704 + 2 * 131_072_000) / 2  # a rank's; embedding and head are in 16 bits
    free = 0.9 * (79.10 * 2**30 - weights - 1.76 * 2**30)
    assert blocks == pytest.approx(free / (64 * 131_072 / 2 / 2), rel=2e-3)
    halved = replace(system, precision=replace(system.precision, kv="bf16"))
    assert kv_blocks(halved, engine, 1, 1) == pytest.approx(blocks / 2, abs=1)


def test_devices_of_published_rows_have_less_than_their_memory() -> None:
    """CUDA keeps part of it: what is left is quoted by its out-of-memory messages."""
    devices = ("a100-pcie-80gb", "gh200-96gb", "h100-nvl-94gb", "l40s-48gb")
    for name in devices:
        whole = load_device(name).memory_bytes
        assert 0.98 * whole < usable_bytes(name) < 0.995 * whole


def test_logits_take_room_on_every_rank() -> None:
    """A thousand more sequences: logits in 16 bits, and six values of the decoder for each."""
    system, engine = FIGURE.experiment.system, FIGURE.experiment.engine
    fewer = kv_blocks(system, engine, 1, 1) - kv_blocks(system, engine, 1001, 1)
    assert fewer == pytest.approx(0.9 * 1000 * 32_000 * 26 / (64 * 131_072 / 2 / 2), abs=1)
    longer = kv_blocks(system, engine, 1001, 1) - kv_blocks(system, engine, 1001, 1, 4096)
    assert longer == pytest.approx(0.9 * 1001 * 4096 * 24 / (64 * 131_072 / 2 / 2), abs=1)


def test_what_does_not_fit_is_said() -> None:
    whole = figure_of(replace(ROW, tp=1, precision="FP16")).experiment
    with pytest.raises(UnknownRowError, match="does not fit"):
        simulated(whole, Flat())


@pytest.mark.parametrize("by", [Slower(), Slower.all_by(1.7), Slower(layers=2.0, sequences=0.5)])
def test_slower_costs_run_ahead_as_they_are_stepped(by: Slower) -> None:
    """And so does the policy of TensorRT-LLM's benchmark, which the scheduler has no name for."""
    system = figure_of(replace(ROW, model="Llama-3.1-8B", tp=1)).experiment.system
    own = Costs().cost(system, 256, 24)
    limits = Limits(
        max_num_seqs=24,
        max_batched_tokens=256,
        max_model_len=8192,
        policy=POLICIES["no_evict_chunked"],
    )
    rng = np.random.default_rng(3)
    requests = pd.DataFrame(
        {
            "request_id": range(80),
            "tenant": "",
            "model": "",
            "arrival_s": rng.exponential(0.01, 80).cumsum(),
            "prompt_tokens": rng.integers(1, 900, 80),
            "output_tokens": rng.integers(1, 60, 80),
        }
    )

    def replica() -> Replica:
        return Replica(name="r", limits=limits, cache=KvCache(120, 64), cost=SlowerCost(own, by))

    ahead = serve(replica(), requests).records
    (stepped,) = step_through(Station(replicas=(replica(),), models=("",)), [requests])
    for column in ("first_token_s", "finish_s"):
        assert np.allclose(ahead[column], stepped.records[column], atol=1e-9)


def test_slower_throughout_takes_that_much_longer() -> None:
    experiment = FIGURE.experiment
    few = replace(experiment, workload=replace(experiment.workload, requests=500))
    costs = Costs()
    before, after = simulated(few, costs), simulated(few, costs, slower=Slower.all_by(1.25))
    assert np.allclose(after.records["finish_s"], 1.25 * before.records["finish_s"])


def test_a_cause_names_the_part_that_decides() -> None:
    """Short prompts, long answers and a full cache: fewer sequences at once would tell most."""
    figure: Figure = figure_of(replace(ROW, precision="FP16", isl=128.0, osl=4096.0, value=4000.0))
    costs = Costs()
    cause = cause_of(figure, 5000.0, costs)
    assert set(cause.elasticities) > {"KV memory", "decode attention"}
    assert cause.elasticities["KV memory"] < 0
    assert cause.suspect == max(cause.elasticities, key=lambda name: abs(cause.elasticities[name]))
    assert "KV cache full" in cause.batch
    # With that much on the suspect alone the measured figure comes out, by the power law.
    assert 5000.0 * cause.by ** cause.elasticities[cause.suspect] == pytest.approx(4000.0)


def test_the_blocks_of_a_request_are_whole() -> None:
    course = simulated(_asked(), Flat())
    assert course.kv_blocks_each == ceil((100 + 50 - 1) / 64)


def test_users_are_not_taken_for_the_engine() -> None:
    """Eight users of an engine for a thousand sequences, and of one for four."""
    row = replace(
        ROW, tp=4, scenario="online_closed_loop", load="concurrency 8", software="vLLM 0.11"
    )
    experiment = figure_of(row).experiment
    few = simulated(experiment, Costs("roofline"))
    assert limit_of(few, experiment.workload) == "all 8 users at once"
    small = replace(experiment, engine=replace(experiment.engine, max_num_seqs=4))
    words = limit_of(simulated(small, Costs("roofline")), small.workload)
    assert words == "4 at once, the engine's limit"
