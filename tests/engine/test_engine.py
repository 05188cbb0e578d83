"""The engine's loop: same tokens as transformers, whatever the batching; nothing leaks."""

from collections.abc import Iterable
from dataclasses import dataclass
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
from moesim.errors import EngineError
from moesim.serving.policies import POLICIES
from moesim.serving.records import Record
from moesim.serving.scheduling import Limits

OUTPUT = 12
PREEMPTING = [name for name, policy in POLICIES.items() if policy.preempts]


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


def engine_of(
    decoder: Decoder,
    *,
    budget: int = 64,
    num_blocks: int = 64,
    policy: str = "chunked_prefill",
    swap_blocks: int = 0,
    prefix_caching: bool = False,
) -> Engine:
    limits = Limits(
        max_num_seqs=8,
        max_batched_tokens=budget,
        max_model_len=128,
        policy=POLICIES[policy],
        swap_blocks=swap_blocks,
    )
    config = EngineConfig(
        limits=limits, num_blocks=num_blocks, block_size=4, prefix_caching=prefix_caching
    )
    return Engine(decoder, config)


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


def serve(engine: Engine, prompts: list[list[int]], output: int = OUTPUT) -> list[list[int]]:
    """Return the answers, with NaN in every block that holds nothing of use.

    After each iteration the runner's free blocks and the kept ones that nobody uses are together
    what the scheduler counts as free.
    """
    for number, prompt in enumerate(prompts):
        engine.submit(record(number, len(prompt), output), prompt)
    poison(engine)
    while engine.step():
        poison(engine)
        assert engine.runner.free_blocks + kept(engine) == engine.scheduler.cache.free_blocks
    assert not engine.runner.tokens
    assert engine.scheduler.cache.free_blocks == engine.config.num_blocks
    return [engine.outputs[number] for number in range(len(prompts))]


def poison(engine: Engine) -> None:
    """Fill the free blocks with NaN, so that whoever reads one without writing it shows."""
    runner = engine.runner
    for half in (runner.cache.keys, runner.cache.values):
        half[:, runner.blocks.free] = torch.nan


def kept(engine: Engine) -> int:
    """Count the named blocks that no sequence lies in."""
    blocks = engine.runner.blocks
    used = {block for number in engine.runner.tokens for block in blocks.of(number)}
    return len(set(blocks.named.values()) - used)


@pytest.mark.parametrize("num_blocks", [9, 64])
@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_changes_a_token(
    decoder: Decoder,
    prompts: list[list[int]],
    greedy: list[list[int]],
    policy: str,
    num_blocks: int,
) -> None:
    """With room for all, or for barely more than one sequence, where some are computed again."""
    engine = engine_of(decoder, policy=policy, num_blocks=num_blocks)
    assert serve(engine, prompts * 2) == greedy * 2
    pressed = num_blocks == 9 and POLICIES[policy].preempts
    assert bool(engine.ledger.frame()["preemptions"].sum()) == pressed


@pytest.mark.parametrize("swap_blocks", [3, 32])
@pytest.mark.parametrize("policy", PREEMPTING)
def test_swapping_changes_no_token(
    decoder: Decoder,
    prompts: list[list[int]],
    greedy: list[list[int]],
    policy: str,
    swap_blocks: int,
) -> None:
    """Blocks that left for host memory come back as they were; what finds no room is recomputed."""
    engine = engine_of(decoder, policy=policy, num_blocks=9, swap_blocks=swap_blocks)
    swap = spied_on(engine)
    assert serve(engine, prompts * 2) == greedy * 2
    assert swap.stored == swap.restored > 0
    assert engine.runner.swap.free_blocks == engine.scheduler.free_swap_blocks == swap_blocks


@dataclass
class Spy:
    """Counts the blocks that leave and come back."""

    stored: int = 0
    restored: int = 0


def spied_on(engine: Engine) -> Spy:
    """Count what an engine copies from now on."""
    spy, space = Spy(), engine.runner.swap
    store, restore = space.store, space.restore

    def storing(request_id: int, blocks: list[int]) -> None:
        spy.stored += len(blocks)
        store(request_id, blocks)

    def restoring(request_id: int, blocks: list[int]) -> None:
        spy.restored += len(blocks)
        restore(request_id, blocks)

    space.store, space.restore = storing, restoring  # type: ignore[method-assign]
    return spy


@pytest.fixture(scope="module")
def alike(prompts: list[list[int]]) -> list[list[int]]:
    """Return twelve prompts of three beginnings, the second of each three the first's twin."""
    beginnings = [prompts[1][:12], prompts[0][:8], prompts[1][:4] + prompts[2][:5]]
    tails = [[1, 2, 3], [1, 2, 3], [7], []]
    return [beginning + tail for tail in tails for beginning in beginnings]


@pytest.fixture(scope="module")
def alone(decoder: Decoder, alike: list[list[int]]) -> list[list[int]]:
    """Return what is generated from each of these prompts by itself."""
    return [generate(decoder, [prompt], output_tokens=OUTPUT)[0] for prompt in alike]


@pytest.mark.parametrize("num_blocks", [9, 14, 64])
@pytest.mark.parametrize("policy", POLICIES)
def test_shared_blocks_change_no_token(
    decoder: Decoder, alike: list[list[int]], alone: list[list[int]], policy: str, num_blocks: int
) -> None:
    """Prompts that begin alike share blocks, kept, evicted or preempted, and answer as alone."""
    engine = engine_of(decoder, policy=policy, num_blocks=num_blocks, prefix_caching=True)
    evicted = evictions_of(engine)
    assert serve(engine, alike) == alone
    frame = engine.ledger.frame()
    assert frame["cached_tokens"].sum() > 0
    assert bool(evicted) == (num_blocks < 64)
    assert bool(frame["preemptions"].sum()) == (num_blocks < 64 and POLICIES[policy].preempts)


def evictions_of(engine: Engine) -> list[int]:
    """Collect the names that an engine forgets from now on."""
    names: list[int] = []
    forget = engine.runner.blocks.forget

    def forgetting(evicted: Iterable[int]) -> None:
        listed = list(evicted)
        names.extend(listed)
        forget(listed)

    engine.runner.blocks.forget = forgetting  # type: ignore[method-assign]
    return names


def test_given_names_are_believed(decoder: Decoder) -> None:
    """Names stand for content: a full block by a known name is not computed again."""
    engine = engine_of(decoder, prefix_caching=True)
    for number, prompt in enumerate([[1, 2, 3, 4, 5], [9, 9, 9, 9, 5]]):
        engine.submit(record(number, 5, 1), prompt, names=(77, 78))
        engine.step()
    assert engine.ledger.frame()["cached_tokens"].tolist() == [0, 4]
    assert engine.outputs[0] == engine.outputs[1]
    assert set(engine.runner.blocks.named) == {77}


def test_swapping_shared_blocks_is_refused() -> None:
    """As in a scenario."""
    limits = Limits(max_num_seqs=1, max_batched_tokens=8, max_model_len=64, swap_blocks=2)
    with pytest.raises(EngineError, match="swap_blocks: 2 do not go with prefix_caching"):
        EngineConfig(limits=limits, num_blocks=4, prefix_caching=True)


def test_an_unknown_order_is_refused() -> None:
    """The message lists those there are."""
    limits = Limits(max_num_seqs=1, max_batched_tokens=8, max_model_len=64)
    with pytest.raises(EngineError, match="order: 'lifo' is none of fcfs, priority, fair"):
        EngineConfig(limits=limits, num_blocks=4, order="lifo")


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
