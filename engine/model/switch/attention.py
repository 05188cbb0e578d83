"""Attention as T5 has it: scores are not scaled by the head size, positions are a bias on them."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from engine.model.layers import rms_norm
from engine.model.step import PagedKvCache
from engine.model.switch.step import SwitchStep, own_pages, prompt_pages
from engine.model.weights import empty_weight
from moesim.facts.models import ModelSpec


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attend with queries (n, N, D) to keys and values (m, N, D), with a bias (N, n, m) or none."""
    heads = scaled_dot_product_attention(
        queries.transpose(0, 1).unsqueeze(0),  # [1, N, n, D]
        keys.transpose(0, 1).unsqueeze(0),  # [1, N, m, D]
        values.transpose(0, 1).unsqueeze(0),  # [1, N, m, D]
        attn_mask=None if bias is None else bias.unsqueeze(0),
        scale=1.0,
    )
    return heads.squeeze(0).transpose(0, 1)  # [n, N, D]


class SelfAttention(nn.Module):
    """Attention of tokens to their own sequence, behind a norm and beside a residual.

    `qkv` (3 * N * D, H) holds the query, key and value projections one below the other.
    """

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        super().__init__()
        width = spec.num_attention_heads * spec.head_dim
        self.spec = spec
        self.norm = empty_weight(spec, device, spec.hidden_size)
        self.qkv = empty_weight(spec, device, 3 * width, spec.hidden_size)
        self.o = empty_weight(spec, device, spec.hidden_size, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of `x` (T, H), each (T, N, D)."""
        spec = self.spec
        normed = rms_norm(x, self.norm, spec.rms_norm_eps)
        heads = linear(normed, self.qkv).view(-1, 3, spec.num_attention_heads, spec.head_dim)
        queries, keys, values = heads.unbind(1)
        return queries, keys, values

    def encode(self, queries: Tensor, keys: Tensor, values: Tensor, biases: list[Tensor]) -> Tensor:
        """Attend within each prompt of the encoder; (P, N, D) each, a bias (N, n, n) a prompt."""
        out, end = torch.empty_like(queries), 0
        for bias in biases:
            start, end = end, end + bias.shape[-1]
            rows = slice(start, end)
            out[rows] = attend(queries[rows], keys[rows], values[rows], bias)
        return out

    def decode(
        self, layer: int, queries: Tensor, step: SwitchStep, biases: list[Tensor],
        cache: PagedKvCache,
    ) -> Tensor:  # fmt: skip
        """Attend with each segment to its decoder tokens; (T, N, D), a bias a segment."""
        out = torch.empty_like(queries)
        for segment, bias in zip(step.segments, biases, strict=True):
            keys, values = own_pages(cache, layer, segment)
            out[segment.rows] = attend(queries[segment.rows], keys, values, bias)
        return out

    def store(
        self, layer: int, keys: Tensor, values: Tensor, step: SwitchStep, cache: PagedKvCache
    ) -> None:
        """Keep the keys and values (T, N, D) of new decoder tokens."""
        rows = step.stored_rows
        cache.write(layer, step.slots, keys[rows], values[rows])
        for segment in step.segments:
            if not segment.context:
                segment.opening[0, layer] = keys[segment.start]
                segment.opening[1, layer] = values[segment.start]


class CrossAttention(nn.Module):
    """Attention of decoder tokens to the encoded prompt, behind a norm and beside a residual.

    `kv` (2 * N * D, H) holds the key and value projections of what is attended to.
    """

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        super().__init__()
        width = spec.num_attention_heads * spec.head_dim
        self.spec = spec
        self.norm = empty_weight(spec, device, spec.hidden_size)
        self.q = empty_weight(spec, device, width, spec.hidden_size)
        self.kv = empty_weight(spec, device, 2 * width, spec.hidden_size)
        self.o = empty_weight(spec, device, spec.hidden_size, width)

    def project(self, x: Tensor) -> Tensor:
        """Return the queries (T, N, D) of `x` (T, H)."""
        spec = self.spec
        normed = rms_norm(x, self.norm, spec.rms_norm_eps)
        return linear(normed, self.q).view(-1, spec.num_attention_heads, spec.head_dim)

    def remember(self, layer: int, encoded: Tensor, slots: Tensor, cache: PagedKvCache) -> None:
        """Store keys and values of encoded prompts (P, H) at `slots` (P,)."""
        spec = self.spec
        heads = linear(encoded, self.kv).view(-1, 2, spec.num_attention_heads, spec.head_dim)
        cache.write(layer, slots, heads[:, 0], heads[:, 1])

    def decode(self, layer: int, queries: Tensor, step: SwitchStep, cache: PagedKvCache) -> Tensor:
        """Attend with each segment to its prompt, from (T, N, D) to (T, N, D)."""
        out = torch.empty_like(queries)
        for segment in step.segments:
            keys, values = prompt_pages(cache, layer, segment)
            out[segment.rows] = attend(queries[segment.rows], keys, values, None)
        return out
