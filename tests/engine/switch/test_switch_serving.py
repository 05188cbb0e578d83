"""Serving Switch Transformers: transformers' answers, whatever the batching; nothing leaks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.model.switch.checkpoint import load_switch
from engine.model.switch.model import Switch
from engine.serve.engine import Engine, EngineConfig
from engine.serve.generate import generate
from engine.serve.sampling import Sampling
from moesim.errors import EngineError
from moesim.serving.policies import POLICIES
from moesim.serving.records import Record
from moesim.serving.scheduling import Limits

OUTPUT = 12
PREEMPTING = [name for name, policy in POLICIES.items() if policy.preempts]


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Switch:
    return load_switch(checkpoint)


def answers_of(oracle: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Return what transformers generates greedily from a batch, padded on the right."""
    longest = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
    mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in prompts])
    found = oracle.generate(
        ids, attention_mask=mask, max_new_tokens=OUTPUT, do_sample=False, eos_token_id=None
    )
    return [row[1:].tolist() for row in found]


@pytest.fixture(scope="module")
def greedy(oracle: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Return the oracle's answers, which differ from each other and within themselves."""
    answers = answers_of(oracle, prompts)
    assert all(len(set(answer)) > 5 for answer in answers)
    return answers


def engine_of(
    model: Switch,
    *,
    budget: int = 64,
    num_blocks: int = 64,
    policy: str = "max_utilisation",
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
    return Engine(model, config)


def record(number: int, prompt: int, output: int = OUTPUT) -> Record:
    return Record(request_id=number, prompt_tokens=prompt, output_tokens=output)


def serve(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    """Return the answers, with NaN in every block that holds nothing of use."""
    for number, prompt in enumerate(prompts):
        engine.submit(record(number, len(prompt)), prompt)
    poison(engine)
    while engine.step():
        poison(engine)
        assert engine.runner.free_blocks == engine.scheduler.cache.free_blocks
    empty(engine)
    return [engine.outputs[number] for number in range(len(prompts))]


def poison(engine: Engine) -> None:
    """Fill the free blocks with NaN, so that whoever reads one without writing it shows."""
    for half in (engine.runner.cache.keys, engine.runner.cache.values):
        half[:, engine.runner.blocks.free] = torch.nan


def empty(engine: Engine) -> None:
    """Demand that nothing is left of those that were served."""
    assert not engine.runner.tokens
    assert not vars(engine.runner)["_openings"]
    assert engine.runner.free_blocks == engine.config.num_blocks


def test_greedy_generation(
    model: Switch, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    """Prompts of unequal length, batched, are answered as by transformers."""
    assert generate(model, prompts, output_tokens=OUTPUT) == greedy


@pytest.mark.parametrize(
    "shape",
    [{"tie_word_embeddings": False}, {"decoder_start_token_id": 9}, {"expert_capacity": 1}],
    ids=["untied", "start", "narrow"],
)
def test_other_shapes(
    switch: Callable[..., Any], prompts: list[list[int]], tmp_path: Path, shape: dict[str, Any]
) -> None:
    """Other heads, start tokens and capacities too."""
    oracle = switch(**shape)
    oracle.save_pretrained(tmp_path / "model")
    model = load_switch(tmp_path / "model")
    assert generate(model, prompts, output_tokens=OUTPUT) == answers_of(oracle, prompts)


@pytest.mark.parametrize("budget", [2, 5, 16, 512])
def test_prompts_in_chunks(
    model: Switch, prompts: list[list[int]], greedy: list[list[int]], budget: int
) -> None:
    """A prompt that the policy splits is encoded with its last chunk."""
    assert generate(model, prompts, output_tokens=OUTPUT, max_batched_tokens=budget) == greedy


@pytest.mark.parametrize("policy", POLICIES)
def test_policies(
    model: Switch, prompts: list[list[int]], greedy: list[list[int]], policy: str
) -> None:
    """Whatever enters when, each prompt has its answer, with room enough and with little."""
    for num_blocks in (64, 16):
        engine = engine_of(model, policy=policy, num_blocks=num_blocks)
        assert serve(engine, prompts * 2) == greedy * 2
        preempted = engine.ledger.frame()["preemptions"].sum() > 0
        assert preempted == (POLICIES[policy].preempts and num_blocks < 64)


@pytest.mark.parametrize("swap_blocks", [7, 40])
@pytest.mark.parametrize("policy", PREEMPTING)
def test_swapping(
    model: Switch,
    prompts: list[list[int]],
    greedy: list[list[int]],
    policy: str,
    swap_blocks: int,
) -> None:
    """Blocks leave for host memory and come back, prompt and answer together."""
    engine = engine_of(model, policy=policy, num_blocks=16, swap_blocks=swap_blocks)
    assert serve(engine, prompts * 2) == greedy * 2
    assert engine.runner.swap.free_blocks == engine.scheduler.free_swap_blocks == swap_blocks


def test_blocks_hold_prompt_and_answer(model: Switch, prompts: list[list[int]]) -> None:
    """A prompt of 9 and 12 tokens of answer need 20 slots, five blocks of 4, and no more."""
    engine = engine_of(model, num_blocks=5)
    assert serve(engine, prompts[:1]) == generate(model, prompts[:1], output_tokens=OUTPUT)
    assert engine.submit(record(1, 10), prompts[1][:10]) is False
    assert "needs 6 KV blocks" in engine.ledger.records[1].detail


def test_the_prompt_is_encoded_once(model: Switch, prompts: list[list[int]]) -> None:
    """Then one token an iteration passes through the decoder, and only there."""
    engine, seen = engine_of(model), []
    encode = model.encode

    def counting(ids: torch.Tensor, lengths: list[int], *rest: Any) -> torch.Tensor:
        seen.append(lengths)
        return encode(ids, lengths, *rest)

    model.encode = counting  # type: ignore[method-assign]
    try:
        serve(engine, prompts)
    finally:
        model.encode = encode  # type: ignore[method-assign]
    assert seen == [[9, 30, 1, 14]]


def test_an_answer_ends_with_eos(
    model: Switch, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    """As in a decoder, whoever reads the tokens says when the answer is over."""
    engine, eos = engine_of(model), greedy[1][4]
    shown: list[int] = []

    def reader(token: int, _: Any) -> bool:
        shown.append(token)
        return token == eos

    engine.submit(record(0, 30), prompts[1], reader=reader)
    engine.submit(record(1, 9), prompts[0])
    while engine.step():
        pass
    ended = greedy[1][: greedy[1].index(eos) + 1]
    assert engine.outputs == {0: ended, 1: greedy[0]}
    assert shown == ended
    assert engine.ledger.records[0].output_tokens == len(ended)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_cancelling_leaves_nothing(model: Switch, prompts: list[list[int]], steps: int) -> None:
    """Before its prompt is encoded, after, and in its answer."""
    engine = engine_of(model)
    engine.submit(record(0, 9), prompts[0])
    for _ in range(steps):
        engine.step()
    assert engine.cancel(0)
    empty(engine)


def test_each_request_samples_by_its_own_rule(
    model: Switch, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    """A seeded draw repeats beside a greedy neighbour, with log-probabilities where asked."""
    drawn = []
    for _ in range(2):
        engine = engine_of(model)
        rule = Sampling(temperature=2.0, seed=8, logprobs=1)
        engine.submit(record(0, 9), prompts[0], sampling=rule)
        engine.submit(record(1, 14), prompts[3])
        engine.step()
        assert list(engine.runner.logprobs) == [0]
        while engine.step():
            pass
        assert engine.outputs[1] == greedy[3]
        drawn.append(engine.outputs[0])
    assert drawn[0] == drawn[1] != greedy[0]


def test_prefix_caching_is_refused(model: Switch) -> None:
    """The end of a prompt changes what its beginning is encoded to."""
    with pytest.raises(EngineError, match="prefix_caching: not for an encoder-decoder"):
        engine_of(model, prefix_caching=True)
