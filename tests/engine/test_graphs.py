"""Padded decode steps: the filling changes nothing; on CUDA the graphs do what the steps do."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import engine.serve.engine as serving
from engine.model.capture import capturing
from engine.model.checkpoint import load_decoder
from engine.model.decoder import Decoder
from engine.model.experts.choice import Choice
from engine.model.experts.choosing import use_experts
from engine.model.experts.styles import STYLES
from engine.model.paged_layers import page_decodes
from engine.model.routing import forced_routing, observed_routing
from engine.model.step import PagedKvCache
from engine.serve.engine import Engine, EngineConfig
from engine.serve.graphs import LARGEST, DecodeGraphs, graph_sizes
from engine.serve.inputs import Flat
from moesim.serving.records import Record
from moesim.serving.scheduling import Limits

BLOCK_SIZE = 4
NUM_BLOCKS = 32

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def decoder(checkpoint: Path) -> Decoder:
    decoder = load_decoder(checkpoint)
    page_decodes(decoder)
    use_experts(decoder)
    return decoder


def cache_of(decoder: Decoder) -> PagedKvCache:
    """Return a cache of random keys and values, the same each time."""
    cache = PagedKvCache(decoder.spec, NUM_BLOCKS, BLOCK_SIZE, decoder.device)
    generator = torch.Generator().manual_seed(4)
    for half in (cache.keys, cache.values):
        half.copy_(torch.randn(half.shape, generator=generator))
    return cache


def decodes(lengths: list[int]) -> Flat:
    """Return a batch of decodes of given lengths, each in blocks of its own."""
    batch, free = Flat(), iter(range(NUM_BLOCKS - 1, -1, -1))
    for row, length in enumerate(lengths):
        blocks = [next(free) for _ in range(-(-length // BLOCK_SIZE))]
        batch.token_ids.append(7 * row + 3)
        batch.positions.append(length - 1)
        batch.slots.append(blocks[-1] * BLOCK_SIZE + (length - 1) % BLOCK_SIZE)
        batch.decodes.append(blocks)
        batch.lengths.append(length)
        batch.emit_rows.append(row)
    return batch


def graphs_of(decoder: Decoder, cache: PagedKvCache) -> DecodeGraphs:
    return DecodeGraphs(decoder, cache, sizes=(8, 2, 4), columns=NUM_BLOCKS)


BATCHES = [[5], [1, 9], [12, 3, 8], [4, 4, 4, 4, 4], [30, 2, 17, 1, 5, 6, 7, 16]]


@pytest.mark.parametrize("lengths", BATCHES, ids=len)
def test_padding_changes_nothing(decoder: Decoder, lengths: list[int]) -> None:
    """Logits, and the whole cache afterwards, are those of the batch as it is."""
    padded, plain = cache_of(decoder), cache_of(decoder)
    batch = decodes(lengths)
    logits = graphs_of(decoder, padded).run(batch)
    wanted = decoder(batch.step(BLOCK_SIZE, decoder.device), plain)
    assert_close(logits, wanted, atol=1e-5, rtol=1e-5)
    assert_close(padded.keys, plain.keys, atol=1e-5, rtol=1e-5)
    assert_close(padded.values, plain.values, atol=1e-5, rtol=1e-5)


def test_batches_leave_nothing_behind(decoder: Decoder) -> None:
    """A small batch after a large one is not touched by what the large one left in the tensors."""
    cache, plain = cache_of(decoder), cache_of(decoder)
    graphs = graphs_of(decoder, cache)
    for lengths in (*BATCHES, *reversed(BATCHES)):
        batch = decodes(lengths)
        wanted = decoder(batch.step(BLOCK_SIZE, decoder.device), plain)
        assert_close(graphs.run(batch), wanted, atol=1e-5, rtol=1e-5)


def test_some_rows_emit(decoder: Decoder) -> None:
    """Rows that sample nothing are left out, in the order asked."""
    batch = decodes([5, 6, 7])
    every = graphs_of(decoder, cache_of(decoder)).run(batch).clone()
    batch.emit_rows = [2, 0]
    some = graphs_of(decoder, cache_of(decoder)).run(batch)
    assert_close(some, every[[2, 0]], rtol=0, atol=0)


def test_the_filling_asks_for_no_expert(decoder: Decoder) -> None:
    """Five decodes in a step of eight visit the experts that five visit."""
    batch = decodes([4, 4, 4, 4, 4])
    hit = []
    for run in (
        lambda: graphs_of(decoder, cache_of(decoder)).run(batch),
        lambda: decoder(batch.step(BLOCK_SIZE, decoder.device), cache_of(decoder)),
    ):
        with observed_routing(decoder) as counts:
            run()
        hit.append((counts > 0).tolist())
    assert hit[0] == hit[1]


@pytest.mark.parametrize(("style", "captured"), [("grouped", (1, 2, 3, 4)), ("loop", ())])
def test_all_sizes_are_captured_or_none(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, style: str, captured: tuple[int, ...]
) -> None:
    """One decode in a style that no graph holds, where larger batches could be held."""
    choice = Choice((STYLES[style], STYLES["dense"]), bounds=(1,))
    monkeypatch.setattr(serving, "use_experts", lambda *_: choice)
    monkeypatch.setattr(serving, "follows_pages", lambda _: True)
    limits = Limits(max_num_seqs=4, max_batched_tokens=8, max_model_len=16)
    config = EngineConfig(limits=limits, num_blocks=16, block_size=4)
    assert serving.Engine(decoder, config).runner.decode_graphs == captured


def test_a_capture_is_on_the_caller_s_stream_without_collections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch's own stream captures nothing and is left to torch; collecting goes on afterwards."""
    seen: list[object] = []

    def spoilt() -> None:
        assert not gc.isenabled()
        raise RuntimeError

    @contextmanager
    def graph(_: object, *, pool: object, stream: object) -> Iterator[None]:
        seen.extend((pool, stream))
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda: "default")
    for current in ("default", "share"):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda name=current: name)
        with pytest.raises(RuntimeError), capturing("graph", "pool"):  # type: ignore[arg-type]
            spoilt()
        assert gc.isenabled()
    assert seen == ["pool", None, "pool", "share"]


def test_what_graphs_do_not_hold(decoder: Decoder) -> None:
    """Prompts, batches beyond the largest size, routers that somebody replaced, and the loop."""
    graphs = graphs_of(decoder, cache_of(decoder))
    batch = decodes([3] * 8)
    assert graphs.holds(batch)
    with forced_routing(decoder, 2):
        assert not graphs.holds(batch)
    assert not graphs.holds(decodes([3] * 9))
    use_experts(decoder, "loop")
    assert not graphs.holds(batch)
    use_experts(decoder, "dense")
    assert graphs.holds(batch)
    batch.chunks.append((8, 2, 0, [0]))
    assert not graphs.holds(batch)


@pytest.mark.parametrize("most", [1, 2, 5, 64, 100, 10_000])
def test_sizes(most: int) -> None:
    """Sizes reach the most decodes there can be, and padding adds at most half of a batch."""
    sizes = graph_sizes(most)
    assert sizes[-1] == min(most, LARGEST)
    for batch in range(1, sizes[-1] + 1):
        size = next(size for size in sizes if size >= batch)
        assert size <= 1.5 * batch


def answers(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    for number, prompt in enumerate(prompts):
        record = Record(request_id=number, prompt_tokens=len(prompt), output_tokens=9)
        engine.submit(record, prompt)
    while engine.step():
        pass
    return [engine.outputs[number] for number in range(len(prompts))]


def engine_of(decoder: Decoder, **changes: object) -> Engine:
    limits = Limits(max_num_seqs=6, max_batched_tokens=8, max_model_len=64)
    config = {"limits": limits, "num_blocks": 12, "block_size": BLOCK_SIZE, **changes}
    return Engine(decoder, EngineConfig(**config))  # type: ignore[arg-type]


def test_the_engine_answers_the_same(decoder: Decoder, prompts: list[list[int]]) -> None:
    """Over chunked prompts, preemptions and batches of every size, greedy answers are the same."""
    plain = engine_of(decoder)
    padded = engine_of(decoder)
    assert plain.runner.decode_graphs == ()
    padded.runner.capture([2, 6])
    assert padded.runner.decode_graphs == (2, 6)
    assert answers(padded, prompts * 2) == answers(plain, prompts * 2)


@pytest.mark.gpu
@needs_cuda
def test_cuda_graphs(checkpoint: Path) -> None:
    """A captured step gives what the CPU gives, for batches of changing size and length."""
    here, there = load_decoder(checkpoint), load_decoder(checkpoint, "cuda")
    for decoder in (here, there):
        page_decodes(decoder)
    engine_of(there)  # sets the style of the experts
    plain, cache = cache_of(here), cache_of(there)
    graphs = graphs_of(there, cache)
    # What capturing wrote to the first slot.
    cache.keys.copy_(plain.keys)
    cache.values.copy_(plain.values)
    for lengths in (*BATCHES, *reversed(BATCHES)):
        batch = decodes(lengths)
        wanted = here(batch.step(BLOCK_SIZE, here.device), plain)
        assert_close(graphs.run(batch).cpu(), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@needs_cuda
def test_the_cuda_engine_uses_graphs(checkpoint: Path, prompts: list[list[int]]) -> None:
    """On a GPU the engine captures its decodes by itself, and answers as without."""
    decoder = load_decoder(checkpoint, "cuda")
    captured, plain = engine_of(decoder), engine_of(decoder, graphs=False)
    assert captured.runner.decode_graphs == graph_sizes(6)
    assert plain.runner.decode_graphs == ()
    assert answers(captured, prompts) == answers(plain, prompts)
