"""The forward pass of a Mixtral-architecture decoder over one mixed batch."""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from engine.model.allocation import allocating
from engine.model.attention import attend_segments
from engine.model.layers import inverse_frequencies, rms_norm, rope_tables, rotate
from engine.model.moe import MoeLayer
from engine.model.step import PagedKvCache, StepInput
from engine.model.stopwatch import Lap, no_lap
from engine.model.weights import empty_weight
from moesim.facts.models import ModelSpec


class DecoderLayer(nn.Module):
    """Attention and experts, each behind a norm and beside a residual.

    `qkv` ((N + 2 G) * D, H) holds the query, key and value projections one below the other.
    """

    def __init__(self, spec: ModelSpec, index: int, device: torch.device) -> None:
        super().__init__()
        heads, kv_heads = spec.num_attention_heads, spec.num_key_value_heads
        hidden, head_dim = spec.hidden_size, spec.head_dim
        self.spec = spec
        self.index = index
        self.input_norm = empty_weight(spec, device, hidden)
        self.qkv = empty_weight(spec, device, (heads + 2 * kv_heads) * head_dim, hidden)
        self.o = empty_weight(spec, device, hidden, heads * head_dim)
        self.post_norm = empty_weight(spec, device, hidden)
        self.moe = MoeLayer(spec, device)

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
        x = x + linear(attended.flatten(1), self.o)
        lap("projections")
        normed = rms_norm(x, self.post_norm, self.spec.rms_norm_eps)
        weights, ids = self.moe.routing(normed)  # [T, k]
        lap("router")
        x = x + self.moe.experts(normed, weights, ids)
        lap("experts")
        return x

    def project(
        self, x: Tensor, rope: tuple[Tensor, Tensor], step: StepInput, cache: PagedKvCache
    ) -> Tensor:
        """Store the new tokens' keys and values; return their queries (T, N, D)."""
        heads, kv_heads = self.spec.num_attention_heads, self.spec.num_key_value_heads
        normed = rms_norm(x, self.input_norm, self.spec.rms_norm_eps)
        qkv = linear(normed, self.qkv).view(-1, heads + 2 * kv_heads, self.spec.head_dim)
        rotated = rotate(qkv[:, : heads + kv_heads], *rope)  # [T, N + G, D]
        cache.write(self.index, step.slots, rotated[:, heads:], qkv[:, heads + kv_heads :])
        return rotated[:, :heads]

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


class Decoder(nn.Module):
    """A decoder of the shape and number format `spec`; its weights are unset until loaded."""

    def __init__(self, spec: ModelSpec, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.spec = spec
        what = f"weights: {spec.parameters} parameters in {spec.dtype}"
        remedy = "use a smaller model, another dtype or a larger device"
        with allocating(what, spec.weight_bytes, torch.device(device), remedy):
            self._allocate(spec, torch.device(device))

    def _allocate(self, spec: ModelSpec, device: torch.device) -> None:
        self.embed = empty_weight(spec, device, spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(spec, index, device) for index in range(spec.num_hidden_layers)
        )
        self.norm = empty_weight(spec, device, spec.hidden_size)
        self.lm_head = (
            self.embed
            if spec.tie_word_embeddings
            else empty_weight(spec, device, spec.vocab_size, spec.hidden_size)
        )
        self.frequencies = inverse_frequencies(spec.head_dim, spec.rope_theta, device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of weights and activations."""
        return self.embed.dtype

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers, in order."""
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    @torch.inference_mode()
    def forward(self, step: StepInput, cache: PagedKvCache, lap: Lap = no_lap) -> Tensor:
        """Run one iteration; return the logits (S, V) of the emitting rows.

        The new tokens' keys and values are in `cache` afterwards. `lap` is told the name of each
        operation as it ends.
        """
        x = embedding(step.token_ids, self.embed)  # [T, H]
        rope = rope_tables(step.positions, self.frequencies, self.dtype)
        lap("embedding")
        for layer in self.decoder_layers:
            x = layer(x, rope, step, cache, lap)
        normed = rms_norm(x[step.emit_rows], self.norm, self.spec.rms_norm_eps)  # [S, H]
        logits = linear(normed, self.lm_head)
        lap("head")
        return logits
