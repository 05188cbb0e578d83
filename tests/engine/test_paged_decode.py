"""Attention of decodes over tables of pages, against attention sequence by sequence.

Run as a script under TRITON_INTERPRET=1, this file prints how far the Triton kernels are off.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from engine.model.attention import attend
from engine.model.checkpoint import random_decoder
from engine.model.decoder import Decoder
from engine.model.paged_decode import PagedStep, paged_decode, pages_of, table
from engine.model.paged_layers import page_decodes
from engine.model.step import PagedKvCache, StepInput
from moesim.facts.models import ModelSpec

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

SHAPES = {
    # name: (heads, key heads, head size, block size)
    "mixtral_like": (8, 2, 16, 4),
    "no_grouping": (4, 4, 8, 4),
    "one_key_head": (6, 1, 20, 3),
    "large_blocks": (2, 1, 64, 16),
}
LENGTHS = {
    "one": [5],
    "first_token": [1, 1],
    "block_ends": [4, 8, 12, 16],
    "mixed": [1, 3, 30, 31, 7],
    "long_beside_short": [150, 2],
}
INTERPRETED = [*((shape, "first_token") for shape in SHAPES), ("one_key_head", "long_beside_short")]
"""What the slow interpreter can bear: every shape, and parts of one long sequence."""


@dataclass
class World:
    """Sequences that lie scattered in a cache in which nothing else is a number."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    blocks: list[list[int]]
    lengths: list[int]

    @property
    def expected(self) -> Tensor:
        """Attention of each sequence alone, (B, N, D)."""
        rows = []
        for row, (held, length) in enumerate(zip(self.blocks, self.lengths, strict=True)):
            keys, values = (
                pages[held].flatten(0, 1)[:length] for pages in (self.keys, self.values)
            )
            rows.append(attend(self.queries[row : row + 1], keys, values))
        return torch.cat(rows)

    @property
    def table(self) -> tuple[Tensor, Tensor]:
        """The table (B, P) and the lengths (B,)."""
        return torch.from_numpy(table(self.blocks)), torch.tensor(self.lengths)


def world(lengths: list[int], shape: str = "mixtral_like", seed: int = 0) -> World:
    heads, kv_heads, size, block_size = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)
    needed = [-(-length // block_size) for length in lengths]
    ids = torch.randperm(sum(needed), generator=generator)
    blocks = [part.tolist() for part in ids.split(needed)]
    pages = torch.randn(2, sum(needed), block_size, kv_heads, size, generator=generator)
    for held, length in zip(blocks, lengths, strict=True):
        pages[:, held[-1], (length - 1) % block_size + 1 :] = torch.nan
    # As in the model, a part of a wider tensor.
    queries = torch.randn(len(lengths), heads + 3, size, generator=generator)[:, :heads]
    return World(queries, *pages, blocks, lengths)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_equals_attention_alone(lengths: list[int], shape: str) -> None:
    """Each row is what its sequence alone gives; what was never written is never read."""
    here = world(lengths, shape)
    out = paged_decode(here.queries, here.keys, here.values, *here.table)
    assert_close(out, here.expected, atol=1e-5, rtol=1e-5)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_groups_cover_all_rows(lengths: list[int]) -> None:
    """Every decode is in one group, and less than half of what a group copies is filling."""
    here = world(lengths)
    pages = pages_of(here.blocks, lengths, 4, torch.device("cpu"))
    rows = [row for part in pages for row in torch.arange(len(lengths))[part.rows].tolist()]
    assert sorted(rows) == list(range(len(lengths)))
    for part in pages:
        held = (part.lengths + 3) // 4
        assert 2 * held.sum() > part.blocks.numel()


def interpreted_errors() -> dict[str, float]:
    """Return the largest error of the Triton kernels in each case, in Triton's interpreter."""
    from engine.model.paged_kernels import paged_attention

    errors = {}
    for shape, name in INTERPRETED:
        here = world(LENGTHS[name], shape)
        out = paged_attention(here.queries, here.keys, here.values, *here.table)
        errors[f"{shape} {name}"] = (out - here.expected).abs().max().item()
    return errors


@needs_triton
def test_kernels_equal_attention_alone() -> None:
    """Triton's interpreter runs the kernels on the CPU, in parts of sequences and whole ones."""
    ran = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    errors = json.loads(ran.stdout)
    assert len(errors) == len(INTERPRETED)
    assert max(errors.values()) < 1e-5, errors


SPEC = ModelSpec.from_config(
    {
        "model_type": "mixtral",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 97,
        "max_position_embeddings": 64,
        "dtype": "float32",
    },
    "tiny",
)


@pytest.fixture
def decoder() -> Decoder:
    return random_decoder(SPEC, seed=0)


def test_a_mixed_step_with_pages(
    decoder: Decoder, batcher: object, prompts: list[list[int]]
) -> None:
    """Decodes by pages and a chunk by its segment: logits and laps are those of segments alone."""
    caches = [PagedKvCache(SPEC, 32, 4) for _ in range(2)]
    laps: list[list[str]] = [[], []]
    before, mixed = (
        batcher.step(*parts)  # type: ignore[attr-defined]
        for parts in (
            [(0, 0, 8), (1, 0, 3), (2, 0, 2)],
            [(0, 8, 9), (1, 3, 4), (2, 2, 7)],
        )
    )
    page_decodes(decoder)
    logits = []
    for step, cache, heard in zip((mixed, paged(mixed)), caches, laps, strict=True):
        decoder(before, cache)
        logits.append(decoder(step, cache, heard.append))
    assert_close(*logits, atol=1e-5, rtol=1e-5)
    assert laps[0] == laps[1]


def paged(step: StepInput) -> PagedStep:
    """Return the same batch with its decodes in tables."""
    decodes = step.decodes
    return PagedStep(
        token_ids=step.token_ids,
        positions=step.positions,
        slots=step.slots,
        segments=step.chunks,
        pages=pages_of(
            [segment.blocks.tolist() for segment in decodes],
            [segment.cached for segment in decodes],
            4,
            torch.device("cpu"),
        ),
        emit_rows=step.emit_rows,
    )


@pytest.mark.gpu
@needs_cuda
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", [*LENGTHS.values(), list(range(1, 200))])
def test_cuda_kernels(lengths: list[int], shape: str, dtype: torch.dtype) -> None:
    """On the GPU the kernels give what the CPU gives, to the format's precision."""
    here = world(lengths, shape)
    here.queries, here.keys, here.values = (
        part.to(dtype) for part in (here.queries, here.keys, here.values)
    )
    parts = (here.queries, here.keys, here.values, *here.table)
    out = paged_decode(*(part.cuda() for part in parts))
    step = max(torch.finfo(dtype).eps, 1e-5)
    assert_close(out.cpu().float(), here.expected.float(), atol=4 * step, rtol=4 * step)


if __name__ == "__main__":
    print(json.dumps(interpreted_errors()))
