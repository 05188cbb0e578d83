"""What engines add to kernels, against sums by hand and stepping through every iteration."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.cost.affine import AffineCost, AffineParameters
from moesim.cost.iteration import Cost
from moesim.cost.kernels.uncertainty import added
from moesim.evidence.accuracy.costs import Costs
from moesim.evidence.accuracy.engines import engine_of
from moesim.evidence.accuracy.experiments import System, figure_of
from moesim.evidence.accuracy.routing import routed_alike
from moesim.evidence.accuracy.served import (
    SESSION_2024,
    VLLM_2024,
    XQA_0_9,
    Gathered,
    Host,
    Served,
    as_served,
    found_on,
)
from moesim.evidence.accuracy.workloads import requests_of
from moesim.serving.kv_cache import KvCache
from moesim.serving.policies import POLICIES
from moesim.serving.scheduling import Limits
from moesim.simulation.replica import Replica
from moesim.simulation.station import Station, serve
from moesim.simulation.stepwise import step_through
from tests.evidence.accuracy.test_understanding import ROW

FIGURE = figure_of(replace(ROW, tp=1, precision="FP16"))
HOST = Host(alone_s=1e-3, doubling_s=2e-3, sequence_s=1e-4)


def _kernels() -> Cost:
    """Return a cost whose decoding of a context token takes a microsecond."""
    parameters = AffineParameters(
        fixed_s=5e-3, mixed_s=1e-3, token_s=1e-5, context_s=1e-6, pair_s=0.0
    )
    return AffineCost(parameters, max_batched_tokens=2048, max_num_seqs=64)


def _more(served: Cost, *of: int) -> float:
    return served.but_prefill_attention_s(*of) - _kernels().but_prefill_attention_s(*of)


def test_a_host_takes_its_time_in_every_iteration() -> None:
    """Decodes alone, and decodes beside a prompt: 1 ms and 0.1 ms a sequence."""
    served = Served(_kernels(), fixed_s=1e-3, sequence_s=1e-4, context_s=0.0)
    assert _more(served, 8, 8, 8, 8, 800) == pytest.approx(1.8e-3)
    assert _more(served, 107, 8, 8, 7, 700) == pytest.approx(1.8e-3)


def test_a_group_takes_longer_with_each_doubling() -> None:
    assert HOST.fixed_s(1) == pytest.approx(1e-3)
    assert HOST.fixed_s(8) == pytest.approx(7e-3)


def test_decoding_takes_at_least_what_reading_again_takes() -> None:
    """Three microseconds a context token in place of one; never less than the kernels."""
    again = Served(_kernels(), fixed_s=0.0, sequence_s=0.0, context_s=3e-6)
    assert _more(again, 8, 8, 8, 8, 800) == pytest.approx(2e-6 * 800)
    assert _more(again, 107, 8, 8, 7, 700) == pytest.approx(2e-6 * 700)
    faster = Served(_kernels(), fixed_s=0.0, sequence_s=0.0, context_s=1e-7)
    assert _more(faster, 8, 8, 8, 8, 800) == pytest.approx(0.0)


def test_heads_are_read_again_where_no_kernel_gathers_them() -> None:
    """Mixtral: 32 layers, 32 query heads of 128, keys and values, two bytes each."""
    system = FIGURE.experiment.system

    def slope(gathered: Gathered) -> float:
        served = as_served(
            _kernels(),
            system.spec,
            system.part,
            system.precision,
            host=None,
            gathered=gathered,
        )
        return served.tables.lines[8][1]

    assert slope(Gathered(groups=(1, 4), bytes_per_s=1e9)) == pytest.approx(1e-6)
    assert slope(Gathered(groups=(1, 8), bytes_per_s=1e9)) == pytest.approx(
        32 * 32 * 128 * 2 * 2 / 1e9
    )


def test_what_engines_are_known_to_add() -> None:
    assert engine_of("vLLM", "static_batch").host is VLLM_2024
    assert engine_of("vLLM 0.5.4", "static_batch").host is VLLM_2024
    assert engine_of("vLLM 0.6.0", "static_batch").host is None
    assert engine_of("vllm 0.12.0", "online_closed_loop").host is None
    assert engine_of("TensorRT-LLM", "static_batch").host is SESSION_2024
    assert engine_of("TensorRT-LLM 0.9.0", "static_batch").gathered is XQA_0_9
    assert engine_of("TensorRT-LLM 0.10", "static_batch").gathered is None


def test_rows_on_which_it_was_found_do_not_judge() -> None:
    row = replace(ROW, software="vLLM", gpu="H100-80GB", model="Llama-3-8B", isl=128.0)
    assert found_on(row)
    assert not found_on(replace(row, isl=256.0))
    assert not found_on(replace(row, model="Mixtral-8x7B"))
    old = replace(ROW, software="TensorRT-LLM 0.9.0", isl=2048.0, osl=1.0)
    assert found_on(old)
    assert not found_on(replace(old, isl=128.0))
    assert not found_on(replace(old, gpu="A100-SXM4-80GB"))
    assert found_on(replace(old, gpu="A100-SXM4-80GB", isl=128.0))


def test_served_costs_run_ahead_as_they_are_stepped() -> None:
    served = Served(_kernels(), fixed_s=1e-3, sequence_s=1e-4, context_s=3e-6)
    workload = replace(
        FIGURE.experiment.workload, requests=200, prompt_tokens=60, output_tokens=40, rate_per_s=40
    )
    requests = requests_of(workload, seed=3)

    def replica() -> Replica:
        limits = Limits(
            max_num_seqs=32,
            max_batched_tokens=256,
            max_model_len=4096,
            policy=POLICIES["chunked_prefill"],
        )
        return Replica(name="r", limits=limits, cache=KvCache(4000, 16), cost=served)

    ahead = serve(replica(), requests).records
    (stepped,) = step_through(Station(replicas=(replica(),), models=("",)), [requests])
    for column in ("first_token_s", "finish_s"):
        assert np.allclose(ahead[column], stepped.records[column], atol=1e-9)


def test_copies_of_one_prompt_choose_the_same_experts() -> None:
    """Eight experts, two a token: 64 copies read what one token reads, 64 others nearly four times.

    By the roofline, whose small batches only read.
    """
    costs = Costs("roofline")
    system = FIGURE.experiment.system
    copies = replace(system, alike=True)

    def decode_s(system: System, sequences: int) -> float:
        cost = costs.cost(system, 16384, 4096)
        return cost.but_prefill_attention_s(sequences, sequences, sequences, 0, 0)

    assert decode_s(copies, 64) < 1.1 * decode_s(system, 1)
    assert decode_s(system, 64) > 3.0 * decode_s(copies, 64)
    assert costs.cost(copies, 16384, 4096) is costs.cost(copies, 16384, 4096)


def test_a_profile_of_copies_has_shares_that_add_up() -> None:
    profile = Costs("roofline")._profiles(FIGURE.experiment.system, 2048, 64)
    assert sum(routed_alike(profile).router.popularity[0]) == pytest.approx(2.0)


def test_rows_are_known_under_other_spellings() -> None:
    row = replace(ROW, model="Llama-3.1-8B", gpu="H100-SXM-80GB", osl=128.0)
    spelled = replace(row, model="meta-llama/Llama-3.1-8B-Instruct", gpu="NVIDIA H100 80GB HBM3")
    for software in ("TensorRT-LLM 0.14", "TensorRT-LLM v0.14.0", "tensorrt-llm-0.14"):
        assert found_on(replace(spelled, software=software))
    assert not found_on(replace(spelled, software="TensorRT-LLM 0.15"))
    assert len(added("TensorRT-LLM v0.14.0")) == len(added("TensorRT-LLM 0.14")) < len(added())
