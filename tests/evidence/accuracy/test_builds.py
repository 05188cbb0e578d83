"""Engines of TensorRT-LLM as they were built, and what their runtime takes for a sequence."""

from dataclasses import replace

import pytest

from moesim.cost.affine import AffineCost, AffineParameters
from moesim.cost.iteration import Cost
from moesim.evidence.accuracy.builds import ON_EIGHT, tabulated
from moesim.evidence.accuracy.costs import Costs
from moesim.evidence.accuracy.course import simulated
from moesim.evidence.accuracy.engines import engine_of
from moesim.evidence.accuracy.experiments import System, figure_of
from moesim.evidence.accuracy.served import EXECUTOR_0, as_served, found_on
from tests.evidence.accuracy.test_understanding import ROW


def _flat(tokens: int, sequences: int) -> Cost:
    only = AffineParameters(fixed_s=0.01, mixed_s=0.0, token_s=0.0, context_s=0.0, pair_s=0.0)
    return AffineCost(only, max_batched_tokens=tokens, max_num_seqs=sequences)


class Flat(Costs):
    """Every iteration takes as long, whatever is in it."""

    def cost(self, system: System, tokens: int, sequences: int) -> Cost:
        return _flat(tokens, sequences)


@pytest.mark.parametrize(
    ("model", "ranks", "tokens", "built"),
    [
        ("mixtral-8x7b", 2, 4224, (2048, 3072)),
        ("mixtral-8x7b", 8, 4096, ON_EIGHT),
        ("mixtral-8x7b", 8, 4224, (512, 16384)),
        ("mixtral-8x22b", 8, 4224, ON_EIGHT),
        ("llama-2-70b", 4, 4224, (256, 8192)),
        ("mixtral-8x22b", 4, 4224, None),
    ],
)
def test_engines_are_told_apart_by_their_longest_sequences(
    model: str, ranks: int, tokens: int, built: tuple[int, int] | None
) -> None:
    assert tabulated(model, ranks, tokens) == built


def test_longest_answers_of_mixtral_on_eight_go_round_by_round() -> None:
    """1,500 requests of 128 and 4,096 tokens, 512 at once though more would fit."""
    long = replace(ROW, tp=8, isl=128.0, osl=4096.0)
    course = simulated(figure_of(long).experiment, Flat())
    assert course.usage.peak_running == 512
    assert not course.full
    later = simulated(figure_of(replace(long, software="TensorRT-LLM 0.15")).experiment, Flat())
    assert later.usage.peak_running > 512


def test_a_runtime_takes_its_time_for_each_sequence_in_each_layer() -> None:
    """Eight sequences through Mixtral's 32 layers, on one device or eight."""
    for ranks in (2, 8):
        system = figure_of(replace(ROW, tp=ranks)).experiment.system
        served = as_served(
            _flat(2048, 64),
            system.spec,
            system.part,
            system.precision,
            host=EXECUTOR_0,
            gathered=None,
        )
        more = served.but_prefill_attention_s(8, 8, 8, 8, 800) - 0.01
        assert more == pytest.approx(32 * 8 * 0.065e-6)


@pytest.mark.parametrize(
    ("software", "scenario", "known"),
    [
        ("TensorRT-LLM 0.14", "offline_max_load", True),
        ("TensorRT-LLM 0.17.0", "offline_max_load", True),
        ("TensorRT-LLM 1.0 (PyTorch backend)", "offline_max_load", False),
        ("TensorRT-LLM", "online_closed_loop", False),
        ("TensorRT-LLM 0.10", "static_batch", False),
        ("TensorRT 10.8", "mlperf_server", False),
    ],
)
def test_which_engines_have_that_runtime(software: str, scenario: str, known: bool) -> None:
    assert (engine_of(software, scenario).host is EXECUTOR_0) is known


def test_rows_by_which_engines_were_found_do_not_judge() -> None:
    long = replace(ROW, tp=8, isl=128.0, osl=4096.0)
    assert found_on(replace(long, gpu="A100-SXM4-80GB"))
    assert found_on(replace(long, gpu="L40S-48GB"))
    assert not found_on(long)
    assert not found_on(replace(long, gpu="A100-SXM4-80GB", tp=4))
    short = replace(ROW, model="Llama-3.1-8B", tp=1)
    assert found_on(short)
    assert not found_on(replace(short, osl=2048.0))
    assert not found_on(ROW)
