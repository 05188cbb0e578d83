"""The engine's loop: same tokens as transformers, whatever the batching; nothing leaks."""

from pathlib import Path

import pytest
import torch
from transformers import MixtralForCausalLM

from engine.model.checkpoint import load_decoder
from engine.model.decoder import Decoder
from engine.serve.engine import Engine, EngineConfig
from engine.serve.generate import generate
from engine.serve.memory import default_blocks
from engine.serve.sampling import Sampler, Sampling
from moesim.cost.iteration import CostModel
from moesim.cost.profile import load_profile
from moesim.errors import EngineError
from moesim.requests import Request
from moesim.scenario import scenario_from
from moesim.serving.records import Record
from moesim.serving.scheduling import Limits
from moesim.serving.sequences import Batch
from moesim.simulation.run import limits_of, simulate
from moesim.simulation.stepwise import record_of

OUTPUT = 12


@pytest.fixture(scope="module")
def decoder(checkpoint: Path) -> Decoder:
    return load_decoder(checkpoint, "cpu")


@pytest.fixture(scope="module")
def greedy(oracle: MixtralForCausalLM, prompts: list[list[int]]) -> list[list[int]]:
    """Return what transformers generates greedily from each prompt alone."""
    answers = []
    for prompt in prompts:
        tokens = list(prompt)
        with torch.inference_mode():
            for _ in range(OUTPUT):
                tokens.append(int(oracle(torch.tensor([tokens])).logits[0, -1].argmax()))
        answers.append(tokens[len(prompt) :])
    return answers


def engine_of(decoder: Decoder, *, budget: int = 64, num_blocks: int = 64) -> Engine:
    limits = Limits(max_num_seqs=8, max_batched_tokens=budget, max_model_len=128)
    return Engine(decoder, EngineConfig(limits=limits, num_blocks=num_blocks, block_size=4))


def record(number: int, prompt: int, output: int) -> Record:
    return Record(
        request_id=number,
        tenant="t",
        model="m",
        replica="m/0",
        arrival_s=0.0,
        prompt_tokens=prompt,
        output_tokens=output,
    )


@pytest.mark.parametrize("budget", [2, 5, 16, 512])
def test_tokens_equal_transformers(
    decoder: Decoder, prompts: list[list[int]], greedy: list[list[int]], budget: int
) -> None:
    """Batched and chunked by any budget, generation is what transformers does one by one."""
    answers = generate(decoder, prompts, output_tokens=OUTPUT, max_batched_tokens=budget)
    assert answers == greedy


def test_preemption_changes_no_token(
    decoder: Decoder, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    """With room for barely more than one sequence, the others are recomputed to the same tokens."""
    engine = engine_of(decoder, num_blocks=9)
    for number, prompt in enumerate(prompts):
        engine.submit(record(number, len(prompt), OUTPUT), prompt)
    while engine.step():
        pass
    assert [engine.outputs[n] for n in range(len(prompts))] == greedy
    assert engine.ledger.frame()["preemptions"].sum() > 0


def test_no_block_leaks(decoder: Decoder, prompts: list[list[int]]) -> None:
    """After the last token the scheduler's count and the runner's free blocks are both whole."""
    engine = engine_of(decoder, num_blocks=12)
    for number, prompt in enumerate(prompts):
        engine.submit(record(number, len(prompt), 7), prompt)
    while engine.step():
        held = engine.config.num_blocks - engine.runner.free_blocks
        assert held == engine.config.num_blocks - engine.scheduler.cache.free_blocks
    assert engine.runner.free_blocks == engine.config.num_blocks
    assert not engine.runner.tokens


@pytest.mark.parametrize(
    ("prompt", "output", "reason"),
    [
        ([1] * 120, 20, "exceed the model's maximum of 128"),
        ([1, 2], 0, "no output tokens"),
        ([], 3, "empty prompt"),
        ([1] * 50, 20, "needs 18 KV blocks, the whole cache has 16"),
        ([1, 97], 4, "outside the vocabulary of 97"),
    ],
)
def test_impossible_requests_are_refused(
    decoder: Decoder, prompt: list[int], output: int, reason: str
) -> None:
    """A request that can never run is refused in its record, and the others go on."""
    engine = engine_of(decoder, num_blocks=16)
    engine.submit(record(0, len(prompt), output), prompt)
    engine.submit(record(1, 3, 2), [1, 2, 3])
    while engine.step():
        pass
    frame = engine.ledger.frame()
    assert frame["outcome"].tolist() == ["refused", "completed"]
    assert reason in frame["detail"][0]


class CostClock:
    """Virtual time: an iteration takes what the cost model says."""

    def __init__(self, cost: CostModel) -> None:
        self.cost = cost
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s

    def wait_until(self, moment_s: float) -> None:
        self.time_s = moment_s

    def ran(self, batch: Batch) -> None:
        self.time_s += self.cost.iteration_s(batch)


@pytest.mark.parametrize("kv_blocks", [None, 14])
def test_engine_on_predicted_time_is_the_simulator(kv_blocks: int | None) -> None:
    """On a virtual clock the real engine's records equal the simulator's, preemptions included."""
    profile = load_profile("demo-cpu")
    lengths = {"kind": "lognormal", "mean": 40, "cv": 0.6, "max": 150}
    scenario = scenario_from(
        {
            "name": "equal",
            "duration_s": 3,
            "models": {"demo": {"architecture": "demo-moe", "profile": "demo-cpu"}},
            "tenants": {
                "all": {
                    "model": "demo",
                    "arrivals": {"kind": "gamma", "rate_per_s": 12, "cv": 2},
                    "prompt_tokens": lengths,
                    "output_tokens": {**lengths, "mean": 10, "max": 30},
                }
            },
            "hardware": {"device": "cpu-2core"},
            "deployment": {
                "kind": "dedicated",
                "kv_blocks": kv_blocks,
                "scheduler": {"max_num_seqs": 8, "max_batched_tokens": 48},
            },
        }
    )
    simulated = simulate(scenario, {"demo": profile}, stepwise=True).records
    limits = limits_of(scenario, profile.spec, profile.kv.block_size)
    cost = CostModel(
        profile,
        max_batched_tokens=limits.max_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
    )
    config = EngineConfig(limits=limits, num_blocks=kv_blocks or profile.kv.num_blocks)
    engine = Engine(_thin_decoder(), config, CostClock(cost))
    arrivals = [
        (record_of(Request(**row), "demo/0"), [1] * row["prompt_tokens"])
        for row in simulated[
            ["request_id", "tenant", "model", "arrival_s", "prompt_tokens", "output_tokens"]
        ].to_dict(orient="records")
    ]
    served = engine.serve(arrivals)
    assert served.equals(simulated)
    if kv_blocks:
        assert simulated["preemptions"].sum() > 0


def _thin_decoder() -> Decoder:
    """Return a decoder that accepts the demo model's lengths and is quick to run."""
    from engine.model.checkpoint import random_decoder
    from moesim.facts.models import ModelSpec

    spec = ModelSpec(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        vocab_size=16,
        max_position_embeddings=1024,
        dtype="float32",
    )
    return random_decoder(spec, seed=0)


def test_sampling_is_seeded_and_follows_the_distribution() -> None:
    """Draws repeat under one seed, and their frequencies approach the softmax."""
    logits = torch.tensor([0.0, 1.0, 2.0]).repeat(20_000, 1)
    draws = [Sampler(Sampling(temperature=1.0, seed=7), torch.device("cpu"))(logits)] * 1
    again = Sampler(Sampling(temperature=1.0, seed=7), torch.device("cpu"))(logits)
    assert torch.equal(draws[0], again)
    shares = draws[0].bincount(minlength=3) / 20_000
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.015, rtol=0)


def test_negative_temperature_is_refused() -> None:
    """Temperatures below zero mean nothing."""
    with pytest.raises(EngineError, match="temperature: -1"):
        Sampling(temperature=-1.0)


def test_too_long_a_context_is_refused(decoder: Decoder) -> None:
    """A replica cannot promise more positions than its model has."""
    limits = Limits(max_num_seqs=1, max_batched_tokens=8, max_model_len=4096)
    with pytest.raises(EngineError, match="max_model_len: 4096 exceeds the model's 128"):
        Engine(decoder, EngineConfig(limits=limits, num_blocks=4))


def test_default_blocks_never_exceed_what_is_useful(decoder: Decoder) -> None:
    """A tiny model on a large host gets blocks for all its sequences, and no more."""
    limits = Limits(max_num_seqs=3, max_batched_tokens=8, max_model_len=100)
    assert default_blocks(decoder, limits, 16) == 3 * 7
