"""The decoder against transformers: whatever way the tokens come, the logits are the same."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from engine.model.attention import attend
from engine.model.checkpoint import load_decoder, random_decoder
from engine.model.decoder import Decoder
from engine.model.routing import forced_routing, observed_routing
from engine.model.step import PagedKvCache
from engine.serve.runner import Runner
from engine.serve.sampling import Sampling
from moesim.errors import EngineError

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
BLOCK_SIZE = 4
NUM_BLOCKS = 32

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def decoder(checkpoint: Path) -> Decoder:
    return load_decoder(checkpoint)


@pytest.fixture
def cache(decoder: Decoder) -> PagedKvCache:
    # What is not written must never be read: it would turn every logit into a nan.
    cache = PagedKvCache(decoder.spec, NUM_BLOCKS, BLOCK_SIZE)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    return cache


def test_whole_prompt(decoder: Decoder, cache: PagedKvCache, batcher: Any, expected: Any) -> None:
    """A prompt in one step has transformers' logits at every position."""
    assert_close(decoder(batcher.step((0, 0, 9)), cache), expected[0], **TOLERANCE)


def test_token_by_token(decoder: Decoder, cache: PagedKvCache, batcher: Any, expected: Any) -> None:
    """One token a step, through a cache of scattered blocks."""
    rows = [decoder(batcher.step((1, i, i + 1)), cache) for i in range(13)]
    assert_close(torch.cat(rows), expected[1], **TOLERANCE)


@pytest.mark.parametrize("cuts", [(0, 4, 8, 13), (0, 5, 6, 13), (0, 11, 13), (0, 1, 3, 13)])
def test_chunked_prefill(
    decoder: Decoder, cache: PagedKvCache, batcher: Any, expected: Any, cuts: tuple[int, ...]
) -> None:
    """A prompt in chunks, on block boundaries and off them."""
    rows = [decoder(batcher.step((1, first, end)), cache) for first, end in pairwise(cuts)]
    assert_close(torch.cat(rows), expected[1], **TOLERANCE)


def test_mixed_batch(decoder: Decoder, cache: PagedKvCache, batcher: Any, expected: Any) -> None:
    """Two decodes, a chunk with context and a fresh prompt share one step."""
    decoder(batcher.step((0, 0, 8), (1, 0, 5)), cache)
    mixed = batcher.step((0, 8, 9), (3, 0, 1), (1, 5, 11), (2, 0, 7))
    wanted = torch.cat((expected[0][8:9], expected[3], expected[1][5:11], expected[2]))
    assert_close(decoder(mixed, cache), wanted, **TOLERANCE)


def test_emit_rows(decoder: Decoder, cache: PagedKvCache, batcher: Any, expected: Any) -> None:
    """Logits come for the rows asked for, in the order asked."""
    step = batcher.step((0, 0, 9))
    some = type(step)(
        token_ids=step.token_ids,
        positions=step.positions,
        slots=step.slots,
        segments=step.segments,
        emit_rows=torch.tensor([8, 2]),
    )
    assert_close(decoder(some, cache), expected[0][[8, 2]], **TOLERANCE)


@pytest.mark.parametrize(
    "shape",
    [
        {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16},
        {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8},
        # Mixtral-8x22B, its width, heads and FFN (6144, 48 over 8, 16384) divided by 128 and 8.
        {
            "hidden_size": 48,
            "num_attention_heads": 6,
            "num_key_value_heads": 1,
            "intermediate_size": 128,
            "num_local_experts": 8,
            "num_hidden_layers": 4,
        },
        {"sliding_window": 128},
        {"tie_word_embeddings": True},
        {"num_local_experts": 5, "num_experts_per_tok": 3, "rope_theta": 5e5},
    ],
    ids=["head_dim", "no_grouping", "8x22b", "wide_window", "tied", "top_3"],
)
def test_other_shapes(
    mixtral: Callable[..., Any], batcher: Any, tmp_path: Path, shape: dict[str, Any]
) -> None:
    """Head size apart from hidden size, no grouping, tied embeddings, other routers."""
    model = mixtral(**shape)
    model.save_pretrained(tmp_path / "model")
    ours = load_decoder(tmp_path / "model")
    cache = PagedKvCache(ours.spec, NUM_BLOCKS, BLOCK_SIZE)
    with torch.inference_mode():
        wanted = model(torch.tensor([batcher.prompts[0]])).logits[0]
    assert_close(ours(batcher.step((0, 0, 9)), cache), wanted, **TOLERANCE)


def test_bfloat16(
    checkpoint: Path, mixtral: Callable[..., Any], batcher: Any, expected: Any
) -> None:
    """In bfloat16 we are no further from the float32 logits than transformers is, twice over."""
    ours = load_decoder(checkpoint, dtype=torch.bfloat16)
    logits = ours(batcher.step((0, 0, 9)), PagedKvCache(ours.spec, NUM_BLOCKS, BLOCK_SIZE))
    with torch.inference_mode():
        theirs = mixtral().to(torch.bfloat16)(torch.tensor([batcher.prompts[0]])).logits[0]
    error = (logits.float() - expected[0]).abs().mean()
    assert error < 2 * (theirs.float() - expected[0]).abs().mean()


def test_laps(decoder: Decoder, cache: PagedKvCache, batcher: Any) -> None:
    """Laps name every operation in order; attention only for the kinds of segment present."""
    decoder(batcher.step((0, 0, 8)), cache)
    laps: list[str] = []
    decoder(batcher.step((0, 8, 9), (2, 0, 7)), cache, laps.append)
    attention = ["attention_decode", "attention_prefill"]
    layer = ["projections", *attention, "projections", "router", "experts"]
    assert laps == ["embedding", *layer, *layer, "head"]
    laps.clear()
    decoder(batcher.step((2, 0, 7)), cache, laps.append)
    assert "attention_decode" not in laps


def test_observed_routing(decoder: Decoder, cache: PagedKvCache, batcher: Any) -> None:
    """Every token is counted at k experts of every layer, over all passes."""
    with observed_routing(decoder) as counts:
        decoder(batcher.step((0, 0, 9)), cache)
        decoder(batcher.step((1, 0, 13)), cache)
    decoder(batcher.step((2, 0, 7)), cache)
    assert counts.sum(dim=1).tolist() == [2 * 22, 2 * 22]


@pytest.mark.parametrize("distinct", [2, 3, 4])
def test_forced_routing(decoder: Decoder, cache: PagedKvCache, batcher: Any, distinct: int) -> None:
    """Forced routing hits as many experts as asked, evenly, in every layer."""
    with forced_routing(decoder, distinct), observed_routing(decoder) as counts:
        decoder(batcher.step((0, 0, 9)), cache)
    assert (counts > 0).sum(dim=1).tolist() == [distinct, distinct]
    loads = counts[counts > 0]
    assert loads.max() - loads.min() <= 1


def test_routing_is_put_back(
    decoder: Decoder, cache: PagedKvCache, batcher: Any, expected: Any
) -> None:
    """After the block, even one left by an error, the model routes as before."""
    with pytest.raises(KeyError), forced_routing(decoder, 2):
        raise KeyError
    assert_close(decoder(batcher.step((0, 0, 9)), cache), expected[0], **TOLERANCE)


@pytest.mark.parametrize("distinct", [1, 5])
def test_forced_routing_refuses(decoder: Decoder, distinct: int) -> None:
    """Fewer experts than a token needs, or more than there are, cannot be forced."""
    with (
        pytest.raises(EngineError, match=f"distinct: {distinct} must"),
        forced_routing(decoder, distinct),
    ):
        pass


def test_forced_routing_needs_tokens(decoder: Decoder, cache: PagedKvCache, batcher: Any) -> None:
    """One token of two experts cannot hit three."""
    step = batcher.step((3, 0, 1))
    with forced_routing(decoder, 3), pytest.raises(EngineError, match="1 tokens of 2 experts"):
        decoder(step, cache)


def test_random_decoder(decoder: Decoder, cache: PagedKvCache, batcher: Any) -> None:
    """Random weights repeat with their seed, and give logits of order one."""
    first, again, other = (random_decoder(decoder.spec, seed) for seed in (3, 3, 4))
    assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.embed, other.embed)
    logits = first(batcher.step((0, 0, 9)), cache)
    assert 0.5 < logits.std() < 2


@pytest.mark.parametrize(("blocks", "size"), [(0, 4), (4, -1)])
def test_cache_needs_blocks(decoder: Decoder, blocks: int, size: int) -> None:
    """A cache without blocks, or of empty blocks, is refused."""
    with pytest.raises(EngineError, match="must be at least 1"):
        PagedKvCache(decoder.spec, blocks, size)


def test_an_engine_keeps_off_cudnn(decoder: Decoder) -> None:
    """Which would compile a plan for every length of a prompt."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    Runner(decoder, num_blocks=4, block_size=4, sampling=Sampling())
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_cache_that_does_not_fit(decoder: Decoder) -> None:
    """A cache beyond any memory is refused with its size and with what there is."""
    sizes = r"GiB do not fit on cpu \([\d.]+ GiB free of [\d.]+ GiB\); lower"
    with pytest.raises(EngineError, match=f"10{{13}} blocks of 16 .* {sizes}"):
        PagedKvCache(decoder.spec, 10**13, 16)


@pytest.mark.gpu
@needs_cuda
def test_cuda_agrees(checkpoint: Path, cuda_batcher: Any, expected: Any) -> None:
    """The same code on the GPU has the same logits, decodes and chunks with context included."""
    ours = load_decoder(checkpoint, "cuda")
    cache = PagedKvCache(ours.spec, NUM_BLOCKS, BLOCK_SIZE, "cuda")
    ours(cuda_batcher.step((0, 0, 8), (1, 0, 5)), cache)
    logits = ours(cuda_batcher.step((0, 8, 9), (1, 5, 13)), cache).cpu()
    assert_close(logits, torch.cat((expected[0][8:], expected[1][5:])), atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("new", [1, 5, 40])
def test_cuda_half_precision_attention(new: int) -> None:
    """Flash attention of a chunk with context masks as the reference does."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(new, 8, 64, generator=generator)
    keys, values = torch.randn(2, 40, 2, 64, generator=generator)
    ours = attend(*(part.to("cuda", torch.bfloat16) for part in (queries, keys, values)))
    assert_close(ours.float().cpu(), attend(queries, keys, values), atol=3e-2, rtol=3e-2)
