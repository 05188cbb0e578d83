"""Answers that end early: cancelled at any moment, or by whoever reads them."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.checkpoint import load_decoder
from engine.model.decoder import Decoder
from engine.serve.engine import Engine, EngineConfig
from engine.serve.generate import generate
from engine.serve.sampling import Logprob, Sampling
from moesim.serving.records import Record
from moesim.serving.scheduling import Limits

OUTPUT = 12


@pytest.fixture(scope="module")
def decoder(checkpoint: Path) -> Decoder:
    return load_decoder(checkpoint, "cpu")


@pytest.fixture(scope="module")
def alone(decoder: Decoder, prompts: list[list[int]]) -> list[list[int]]:
    """Return what is generated from each prompt by itself."""
    return [generate(decoder, [prompt], output_tokens=OUTPUT)[0] for prompt in prompts]


def engine_of(
    decoder: Decoder, num_blocks: int = 9, swap_blocks: int = 0, prefix_caching: bool = False
) -> Engine:
    """Return an engine with room for barely more than one sequence, so that some are preempted."""
    limits = Limits(
        max_num_seqs=8, max_batched_tokens=16, max_model_len=128, swap_blocks=swap_blocks
    )
    config = EngineConfig(
        limits=limits, num_blocks=num_blocks, block_size=4, prefix_caching=prefix_caching
    )
    return Engine(decoder, config)


def record(number: int, prompt: list[int]) -> Record:
    return Record(request_id=number, prompt_tokens=len(prompt), output_tokens=OUTPUT)


def assert_empty(engine: Engine) -> None:
    """Nothing is held by anybody."""
    kept = len(engine.runner.blocks.named)
    assert engine.scheduler.cache.free_blocks == engine.config.num_blocks
    assert engine.runner.free_blocks + kept == engine.config.num_blocks
    assert engine.runner.swap.free_blocks == engine.config.limits.swap_blocks
    assert engine.scheduler.free_swap_blocks == engine.config.limits.swap_blocks
    assert not engine.runner.tokens


@pytest.mark.parametrize("options", [{}, {"swap_blocks": 6}, {"prefix_caching": True}])
@settings(max_examples=15, deadline=None)
@given(cancelled=st.dictionaries(st.integers(0, 7), st.integers(0, 30), max_size=5))
def test_cancelling_changes_nobody_elses_tokens(
    decoder: Decoder,
    prompts: list[list[int]],
    alone: list[list[int]],
    options: dict[str, Any],
    cancelled: dict[int, int],
) -> None:
    """Waiting, running, preempted or swapped out: blocks come back, the others answer as alone."""
    engine = engine_of(decoder, **options)
    for number, prompt in enumerate(prompts * 2):
        engine.submit(record(number, prompt), prompt)
    for step in range(31):
        gone = [number for number, moment in cancelled.items() if moment == step]
        for number in gone:
            expected = engine.ledger.records[number].outcome != "completed"
            assert engine.cancel(number) == expected
        engine.step()
    while engine.step():
        pass
    assert_empty(engine)
    for number, entry in engine.ledger.records.items():
        if entry.outcome == "completed":
            assert engine.outputs[number] == alone[number % len(alone)]
        else:
            assert number in cancelled
            assert entry.detail == "cancelled"
            assert entry.output_tokens < OUTPUT
    assert not engine.cancel(99)


def test_a_reader_ends_an_answer(
    decoder: Decoder, prompts: list[list[int]], alone: list[list[int]]
) -> None:
    """With the token that it chooses; the record and the others are as they should be."""
    engine = engine_of(decoder, num_blocks=64)
    seen: dict[int, list[int]] = {number: [] for number in range(len(prompts))}
    for number, prompt in enumerate(prompts):

        def reader(token: int, _: Logprob | None, number: int = number) -> bool:
            seen[number].append(token)
            return len(seen[number]) == 5 + 20 * (number % 2)

        engine.submit(record(number, prompt), prompt, reader=reader)
    while engine.step():
        pass
    assert_empty(engine)
    lengths = [5, OUTPUT, 5, OUTPUT]
    assert [seen[number] for number in range(4)] == [
        answer[:length] for answer, length in zip(alone, lengths, strict=True)
    ]
    assert engine.ledger.frame()["output_tokens"].tolist() == lengths
    assert engine.outputs == seen


def test_rules_of_their_own_stay_apart(
    decoder: Decoder, prompts: list[list[int]], alone: list[list[int]]
) -> None:
    """Greedy answers stay what they are beside seeded ones, which repeat."""
    hot = Sampling(temperature=1.0, seed=3, logprobs=1)
    answers = []
    for order in (prompts, prompts[::-1]):
        engine = engine_of(decoder, num_blocks=64)
        for number, prompt in enumerate(order):
            rule = hot if prompt == prompts[0] else None
            engine.submit(record(number, prompt), prompt, sampling=rule)
        while engine.step():
            pass
        answers.append([engine.outputs[order.index(prompt)] for prompt in prompts])
    assert answers[0] == answers[1]
    assert answers[0][1:] == alone[1:]
    assert answers[0][0] != alone[0]
