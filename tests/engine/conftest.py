"""Tiny Mixtral models by transformers, our oracle, and batches laid out by hand."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from engine.model.step import Segment, StepInput

BLOCK_SIZE = 4
NUM_BLOCKS = 32

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "sliding_window": None,
    # Large, so that attention and routing differ from token to token.
    "initializer_range": 0.3,
}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute tiny matrices in one thread, here and in the processes that tests start.

    Several would wait for each other after each of them, on a busy host a time slice long.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


@pytest.fixture(scope="session")
def mixtral() -> Callable[..., MixtralForCausalLM]:
    """Build a tiny random Mixtral, its shape changed by keyword."""

    def build(**changes: Any) -> MixtralForCausalLM:
        torch.manual_seed(0)
        return MixtralForCausalLM(MixtralConfig(**{**SHAPE, **changes})).eval()

    return build


@pytest.fixture(scope="session")
def oracle(mixtral: Callable[..., MixtralForCausalLM]) -> MixtralForCausalLM:
    """Return the tiny Mixtral that most tests compare with."""
    return mixtral()


@pytest.fixture(scope="session")
def checkpoint(oracle: MixtralForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the oracle, in the layout transformers writes by default."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    oracle.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Return four prompts of 9, 13, 7 and 1 tokens."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(SHAPE["vocab_size"], (length,), generator=generator).tolist()
        for length in (9, 13, 7, 1)
    ]


@pytest.fixture(scope="session")
def expected(oracle: MixtralForCausalLM, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Return the oracle's logits at every position of every prompt."""
    with torch.inference_mode():
        return [oracle(torch.tensor([prompt])).logits[0] for prompt in prompts]


class Batcher:
    """Lays parts of prompts out as a step; each prompt owns random, scattered blocks."""

    def __init__(self, prompts: list[list[int]], device: str = "cpu") -> None:
        ids = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(2))
        self.prompts = prompts
        self.blocks = ids.view(len(prompts), -1)
        self.device = device

    def step(self, *parts: tuple[int, int, int]) -> StepInput:
        """Return the step of `(prompt, first position, end position)` parts; all rows emit."""
        segments: list[Segment] = []
        tokens: list[int] = []
        positions: list[torch.Tensor] = []
        slots: list[torch.Tensor] = []
        for prompt, first, end in parts:
            span = torch.arange(first, end)
            pages = self.blocks[prompt]
            used = pages[: -(-end // BLOCK_SIZE)]
            segments.append(
                Segment(
                    start=len(tokens),
                    length=end - first,
                    context=first,
                    blocks=used.to(self.device),
                )
            )
            tokens += self.prompts[prompt][first:end]
            positions.append(span)
            slots.append(pages[span // BLOCK_SIZE] * BLOCK_SIZE + span % BLOCK_SIZE)
        return StepInput(
            token_ids=torch.tensor(tokens, device=self.device),
            positions=torch.cat(positions).to(self.device),
            slots=torch.cat(slots).to(self.device),
            segments=segments,
            emit_rows=torch.arange(len(tokens), device=self.device),
        )


@pytest.fixture(scope="session")
def batcher(prompts: list[list[int]]) -> Batcher:
    """Return the layout of the prompts in the cache."""
    return Batcher(prompts)


@pytest.fixture(scope="session")
def cuda_batcher(prompts: list[list[int]]) -> Batcher:
    """Return the same layout with its tensors on the GPU."""
    return Batcher(prompts, "cuda")
