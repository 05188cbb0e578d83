"""Switch Transformers against transformers: encoder, decoder, router and positions."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersAttention,
    SwitchTransformersTop1Router,
)

from engine.model.step import PagedKvCache
from engine.model.stopwatch import no_lap
from engine.model.switch.checkpoint import load_switch, random_switch
from engine.model.switch.config import SwitchConfig
from engine.model.switch.feed_forward import SparseFeedForward
from engine.model.switch.model import Switch
from engine.model.switch.positions import position_bias
from engine.model.switch.router import within_capacity
from engine.model.switch.step import SwitchSegment, SwitchStep

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
BLOCK_SIZE = 4
NUM_BLOCKS = 64

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Layout:
    """Lays prompts and answers out as steps; each pair owns random, scattered blocks."""

    def __init__(self, model: Switch, prompts: list[list[int]], answers: list[list[int]]) -> None:
        spec, device = model.spec, model.device
        self.model, self.prompts, self.answers = model, prompts, answers
        self.blocks = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(3))
        self.blocks = self.blocks.view(len(prompts), -1).to(device)
        self.cache = PagedKvCache(spec, NUM_BLOCKS, BLOCK_SIZE, device)
        # What is not written must never be read: it would turn every logit into a nan.
        self.cache.keys.fill_(torch.nan)
        self.cache.values.fill_(torch.nan)
        shape = (2, spec.num_hidden_layers, spec.num_attention_heads, spec.head_dim)
        self.openings = [torch.full(shape, torch.nan).to(self.cache.keys) for _ in prompts]

    def run(self, *parts: tuple[int, int, int], one_pass: bool = False) -> torch.Tensor:
        """Return the logits of `(pair, first, end)` decoder tokens; 0 encodes the prompt first."""
        encoded = [pair for pair, first, _ in parts if not first]
        lengths = [len(self.prompts[pair]) for pair in encoded]
        segments, tokens, stored, slots = [], [], [], []
        for pair, first, end in parts:
            prompt = len(self.prompts[pair])
            segments.append(
                SwitchSegment(
                    start=len(tokens),
                    length=end - first,
                    context=first,
                    prompt_tokens=prompt,
                    blocks=self.blocks[pair, : -(-(prompt + end - 1) // BLOCK_SIZE)],
                    opening=self.openings[pair],
                )
            )
            kept = range(max(first, 1), end)
            stored += [len(tokens) + position - first for position in kept]
            slots += [self.slot(pair, prompt + position - 1) for position in kept]
            tokens += self.answers[pair][first:end]
        places = [self.slot(pair, i) for pair in encoded for i in range(len(self.prompts[pair]))]
        step = SwitchStep(
            prompt_ids=self.tensor([token for pair in encoded for token in self.prompts[pair]]),
            prompt_lengths=lengths,
            prompt_slots=self.tensor(places),
            token_ids=self.tensor(tokens),
            stored_rows=self.tensor(stored),
            slots=self.tensor(slots),
            segments=segments,
            emit_rows=self.tensor(list(range(len(tokens)))),
            one_pass=one_pass,
        )
        logits: torch.Tensor = self.model(step, self.cache)
        return logits

    def tensor(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.model.device)

    def slot(self, pair: int, place: int) -> int:
        block = int(self.blocks[pair, place // BLOCK_SIZE])
        return block * BLOCK_SIZE + place % BLOCK_SIZE


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Switch:
    return load_switch(checkpoint)


@pytest.fixture
def layout(model: Switch, prompts: list[list[int]], answers: list[list[int]]) -> Layout:
    return Layout(model, prompts, answers)


def encoded_by(oracle: Any, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Return transformers' encoding of each prompt, from one batch padded on the right."""
    longest = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
    mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in prompts])
    with torch.inference_mode():
        states = oracle.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return [state[: len(prompt)] for state, prompt in zip(states, prompts, strict=True)]


def read_at_once(oracle: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Return transformers' logits (n, V) of a known answer in one pass."""
    with torch.inference_mode():
        ids, inputs = torch.tensor([prompt]), torch.tensor([answer])
        return oracle(input_ids=ids, decoder_input_ids=inputs).logits[0]


def read_step_by_step(oracle: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Return transformers' logits (n, V) of a known answer, token by token through its cache."""
    rows, cache, ids = [], None, torch.tensor([prompt])
    with torch.inference_mode():
        encoded = oracle.encoder(input_ids=ids)
        for token in answer:
            out = oracle(
                encoder_outputs=encoded,
                decoder_input_ids=torch.tensor([[token]]),
                past_key_values=cache,
                use_cache=True,
            )
            rows.append(out.logits[0])
            cache = out.past_key_values
    return torch.cat(rows)


def overflowing(oracle: Any, run: Callable[[], Any]) -> int:
    """Return how many tokens transformers' routers turn away, in all layers, while `run` runs."""
    dropped = []

    def count(_: Any, __: Any, output: Any) -> None:
        dropped.append(int((output[0].sum(dim=-1) == 0).sum()))

    routers = [one for one in oracle.modules() if isinstance(one, SwitchTransformersTop1Router)]
    hooks = [router.register_forward_hook(count) for router in routers]
    run()
    for hook in hooks:
        hook.remove()
    return sum(dropped)


def test_encoder(oracle: Any, model: Switch, prompts: list[list[int]]) -> None:
    """Prompts of unequal length side by side are encoded as in a padded batch; experts overflow."""
    assert overflowing(oracle, lambda: encoded_by(oracle, prompts[1:2])) > 5
    flat = torch.tensor([token for prompt in prompts for token in prompt])
    lengths = [len(prompt) for prompt in prompts]
    assert_close(model.encode(flat, lengths), torch.cat(encoded_by(oracle, prompts)), **TOLERANCE)


def test_decoder_step_by_step(
    oracle: Any, layout: Layout, prompts: list[list[int]], answers: list[list[int]]
) -> None:
    """Token by token through the pages, prompts joining late, the logits are transformers'."""
    ends = {0: (0, 12), 1: (2, 23), 2: (5, 6), 3: (1, 7)}  # joins before step, ends before step
    rows: dict[int, list[torch.Tensor]] = {pair: [] for pair in ends}
    for now in range(23):
        there = [pair for pair, (first, end) in ends.items() if first <= now < end]
        firsts = [now - ends[pair][0] for pair in there]
        parts = [(pair, first, first + 1) for pair, first in zip(there, firsts, strict=True)]
        for pair, row in zip(there, layout.run(*parts), strict=True):
            rows[pair].append(row)
    for pair, found in rows.items():
        expected = read_step_by_step(oracle, prompts[pair], answers[pair])
        assert_close(torch.stack(found), expected, **TOLERANCE)


def test_decoder_again_after_preemption(
    oracle: Any, layout: Layout, prompts: list[list[int]], answers: list[list[int]]
) -> None:
    """Several tokens of an answer at once are what they were one by one: nothing overflows."""
    expected = read_step_by_step(oracle, prompts[1], answers[1])
    assert_close(layout.run((1, 0, 13)), expected[:13], **TOLERANCE)
    assert_close(layout.run((1, 13, 21)), expected[13:], **TOLERANCE)


def test_decoder_in_one_pass(
    oracle: Any, layout: Layout, prompts: list[list[int]], answers: list[list[int]]
) -> None:
    """Known answers read at once overflow experts, each answer for itself, as in transformers."""
    at_once = lambda: read_at_once(oracle, prompts[1], answers[1])  # noqa: E731
    encoder = overflowing(oracle, lambda: encoded_by(oracle, prompts[1:2]))
    assert overflowing(oracle, at_once) > encoder
    logits = layout.run((0, 0, 12), (1, 0, 21), (3, 0, 6), one_pass=True)
    pairs = [(prompts[pair], answers[pair]) for pair in (0, 1, 3)]
    expected = torch.cat([read_at_once(oracle, *pair) for pair in pairs])
    assert_close(logits, expected, **TOLERANCE)


@pytest.mark.parametrize(
    "shape",
    [
        {"num_sparse_encoder_layers": 6, "num_sparse_decoder_layers": 4},
        {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 2},
        {"num_experts": 5, "expert_capacity": 1},
        {"d_kv": 16, "num_heads": 2, "layer_norm_epsilon": 1e-2},
        {"tie_word_embeddings": False},
        {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
        {"decoder_start_token_id": 5},
    ],
    ids=["all_sparse", "few_sparse", "narrow", "wide_heads", "untied", "buckets", "start"],
)
def test_other_shapes(
    switch: Callable[..., Any],
    prompts: list[list[int]],
    answers: list[list[int]],
    tmp_path: Path,
    shape: dict[str, Any],
) -> None:
    """Any shape of the configuration has transformers' logits."""
    oracle = switch(**shape)
    oracle.save_pretrained(tmp_path / "model")
    layout = Layout(load_switch(tmp_path / "model"), prompts, answers)
    expected = read_at_once(oracle, prompts[1], answers[1])
    assert_close(layout.run((1, 0, 21), one_pass=True), expected, **TOLERANCE)


def test_bfloat16(oracle: Any, checkpoint: Path) -> None:
    """In half the bits each part of a layer is transformers', router and norms in float32.

    Whole models are not compared: where two experts are as probable, rounding chooses.
    """
    block = type(oracle).from_pretrained(checkpoint, dtype="bfloat16").encoder.block
    model = load_switch(checkpoint, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    x = torch.randn(30, 32, generator=torch.Generator().manual_seed(6)).bfloat16()
    layers = model.encoder.encoder_layers
    bias = model.encoder._bias(30)
    with torch.inference_mode():
        theirs, found = block[0].layer[0](x[None])[:2]
        networks = [block[index].layer[1](x[None])[0] for index in (0, 1)]
        exact = deepcopy(block[0].layer[0]).float()(x[None].float())[0][0]
    assert torch.equal(bias, found[0])
    for layer, wanted in zip(layers, networks, strict=False):
        assert_close(layer.feed_forward(x, [30], no_lap), wanted)
    # Transformers rounds scores too, so that attention errs more there.
    attention = layers[0].attention
    attended = attention.encode(*attention.project(x), [bias]).flatten(1)
    ours = x + attended @ attention.o.T
    assert (ours - exact).abs().mean() < (theirs[0] - exact).abs().mean() < 0.1


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (6, 9), (64, 1000)])
def test_position_buckets(buckets: int, max_distance: int, both_ways: bool) -> None:
    """Every distance falls into transformers' bucket, and none ahead is seen one way."""
    table = torch.arange(buckets, dtype=torch.float32)[:, None]
    here, there = torch.tensor([600, 700]), torch.arange(1301)
    bias = position_bias(table, here, there, max_distance=max_distance, both_ways=both_ways)
    relative = there[None] - here[:, None]
    expected = SwitchTransformersAttention._relative_position_bucket(
        relative, bidirectional=both_ways, num_buckets=buckets, max_distance=max_distance
    )
    seen = relative < 1 if not both_ways else torch.ones_like(relative, dtype=torch.bool)
    assert torch.equal(bias[0][seen], expected.float()[seen])
    assert (bias[0][~seen] == -torch.inf).all()


def test_capacity_by_hand() -> None:
    """First come, first served, in each sequence anew; 0 is no limit."""
    ids, lengths = torch.tensor([2, 2, 0, 2, 0, 2, 2, 2]), [5, 0, 3]
    placed = [within_capacity(ids, lengths, capacity, 3).tolist() for capacity in (0, 1, 2)]
    assert placed[0] == [True] * 8
    assert placed[1] == [True, False, True, False, False, True, False, False]
    assert placed[2] == [True, True, True, False, True, True, True, False]


def test_tokens_without_a_place_pass_by(model: Switch) -> None:
    """Equal tokens choose one expert; those beyond its capacity leave as they came."""
    layer = model.encoder.encoder_layers[1].feed_forward
    assert isinstance(layer, SparseFeedForward)
    x = torch.linspace(-1, 1, model.spec.hidden_size).expand(7, -1)
    out = layer(x, [5, 2], no_lap)
    changed = (out != x).any(dim=1).tolist()
    assert changed == [True, True, True, False, False, True, True]


def test_router_is_transformers_own(model: Switch, oracle: Any) -> None:
    """The most probable expert, its probability as weight, in bfloat16 too."""
    router = oracle.encoder.block[1].layer[1].mlp.router
    layer = model.encoder.encoder_layers[1].feed_forward
    assert isinstance(layer, SparseFeedForward)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(200, 32, generator=torch.Generator().manual_seed(4)).to(dtype)
        with torch.inference_mode():
            _, expected, logits = router(x[None])
        weights, ids = layer.route(x)
        assert torch.equal(weights, expected[0])
        assert torch.equal(ids[:, 0], logits[0].softmax(-1).to(dtype).argmax(-1))


def test_random_models(model: Switch) -> None:
    """The seed alone decides the weights; encodings and logits stay near one."""
    first, again = (random_switch(model.spec, seed=5) for _ in range(2))
    other = random_switch(model.spec, seed=6)
    assert all(
        torch.equal(*pair) for pair in zip(first.parameters(), again.parameters(), strict=True)
    )
    assert not torch.equal(first.embed, other.embed)
    layout = Layout(first, [list(range(2, 32))] * 2, [[0, *range(40, 60)]] * 2)
    logits = layout.run((0, 0, 21))
    assert 0.3 < logits.std() < 3
    assert len(set(logits.argmax(dim=-1).tolist())) > 5


def test_random_configuration_is_the_usual(model: Switch) -> None:
    """A shape alone is a whole configuration by transformers' defaults."""
    assert random_switch(model.spec, seed=0).config == SwitchConfig(spec=model.spec)


@pytest.mark.gpu
@needs_cuda
def test_cuda(oracle: Any, checkpoint: Path, prompts: list[list[int]], answers: Any) -> None:
    """On the GPU the logits are transformers' too."""
    layout = Layout(load_switch(checkpoint, "cuda"), prompts, answers)
    expected = read_step_by_step(oracle, prompts[1], answers[1])
    logits = torch.cat([layout.run((1, first, first + 1)) for first in range(21)])
    assert_close(logits.cpu(), expected, atol=1e-3, rtol=1e-3)
