"""One layer of a decoder: attention, and experts or a plain network in their place."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.model.attention import attend_segments
from engine.model.dense import DenseFfn
from engine.model.layers import rms_norm, rotate
from engine.model.moe import MoeLayer
from engine.model.projection import project
from engine.model.quantised import Weight
from engine.model.step import PagedKvCache, StepInput
from engine.model.stopwatch import Lap
from engine.model.weights import empty_weight
from moesim.facts.models import ModelSpec

Reduce = Callable[[Tensor], Tensor]
"""From what this layer makes of tokens (T, H) to the sum over all ranks that share the layer."""


def alone(x: Tensor) -> Tensor:
    """Return what a layer makes of tokens as it is, where no other rank has a part of it."""
    return x


class DecoderLayer(nn.Module):
    """Attention and a feed-forward part, each behind a norm and beside a residual.

    `qkv` ((N + 2 G) * D, H) holds the query, key and value projections one below the other. Biases
    and the norms of queries and keys (D,) are None in models without. `reduce` adds up what ranks
    that share the layer make of the same tokens.
    """

    def __init__(self, spec: ModelSpec, index: int, device: torch.device) -> None:
        super().__init__()
        heads, kv_heads = spec.num_attention_heads, spec.num_key_value_heads
        hidden, head_dim = spec.hidden_size, spec.head_dim
        rows, biased = (heads + 2 * kv_heads) * head_dim, spec.attention_bias
        self.spec = spec
        self.index = index
        self.input_norm = empty_weight(spec, device, hidden)
        self.qkv: Weight = empty_weight(spec, device, rows, hidden)
        self.qkv_bias = empty_weight(spec, device, rows) if biased else None
        self.q_norm = empty_weight(spec, device, head_dim) if spec.qk_norm else None
        self.k_norm = empty_weight(spec, device, head_dim) if spec.qk_norm else None
        self.o: Weight = empty_weight(spec, device, hidden, heads * head_dim)
        self.o_bias = empty_weight(spec, device, hidden) if biased else None
        self.post_norm = empty_weight(spec, device, hidden)
        dense = index in spec.dense_layers
        self.ffn: DenseFfn | MoeLayer = (DenseFfn if dense else MoeLayer)(spec, device)
        self.reduce: Reduce = alone

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        step: StepInput,
        cache: PagedKvCache,
        lap: Lap,
    ) -> Tensor:
        """Take the residual stream `x` (T, H) through the layer."""
        queries = self.project(x, rope, step, cache)  # [T, N, D]
        lap("projections")
        attended = self.attend(queries, step, cache, lap)  # [T, N, D]
        x = x + self.reduce(project(attended.flatten(1), self.o, self.o_bias))
        lap("projections")
        normed = rms_norm(x, self.post_norm, self.spec.rms_norm_eps)
        x = x + self.reduce(self.feed_forward(normed, lap))
        lap("experts")
        return x

    def project(
        self, x: Tensor, rope: tuple[Tensor, Tensor], step: StepInput, cache: PagedKvCache
    ) -> Tensor:
        """Store the new tokens' keys and values; return their queries (T, N, D)."""
        heads, kv_heads = self.spec.num_attention_heads, self.spec.num_key_value_heads
        normed = rms_norm(x, self.input_norm, self.spec.rms_norm_eps)
        qkv = project(normed, self.qkv, self.qkv_bias)  # [T, (N + 2 G) * D]
        qkv = qkv.view(-1, heads + 2 * kv_heads, self.spec.head_dim)
        rotated = rotate(self.normalised(qkv[:, : heads + kv_heads]), *rope)  # [T, N + G, D]
        cache.write(self.index, step.slots, rotated[:, heads:], qkv[:, heads + kv_heads :])
        return rotated[:, :heads]

    def normalised(self, heads: Tensor) -> Tensor:
        """Pass queries and keys (T, N + G, D) through their norms, where the model has some."""
        if self.q_norm is None or self.k_norm is None:
            return heads
        queries, keys = self.spec.num_attention_heads, self.spec.num_key_value_heads
        scales = (self.q_norm.expand(queries, -1), self.k_norm.expand(keys, -1))
        return rms_norm(heads, torch.cat(scales), self.spec.rms_norm_eps)

    def attend(self, queries: Tensor, step: StepInput, cache: PagedKvCache, lap: Lap) -> Tensor:
        """Attend with every segment: (T, N, D) to (T, N, D)."""
        out = torch.empty_like(queries)
        decodes, chunks = step.decodes, step.chunks
        if decodes:
            attend_segments(self.index, queries, cache, decodes, out)
            lap("attention_decode")
        if chunks:
            attend_segments(self.index, queries, cache, chunks, out)
            lap("attention_prefill")
        return out

    def feed_forward(self, normed: Tensor, lap: Lap) -> Tensor:
        """Return what experts, or the plain network, make of normed tokens (T, H).

        In a dense layer the router's lap covers the norm alone.
        """
        if isinstance(self.ffn, DenseFfn):
            lap("router")
            return self.ffn.forward(normed)
        weights, ids = self.ffn.routing(normed)  # [T, k]
        lap("router")
        return self.ffn.experts(normed, weights, ids)
