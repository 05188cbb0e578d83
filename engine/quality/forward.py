"""A decoder's forward pass over whole windows, with gradients: no cache, no pages.

The weights are the engine's own, and so are its norms, rotations, projections and experts; only
attention is done for all windows at once. Its logits are those of the paged forward pass.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding, linear, scaled_dot_product_attention

from engine.model.decoder import Decoder
from engine.model.decoder_layer import DecoderLayer
from engine.model.layers import rms_norm, rope_tables, rotate
from engine.model.projection import project
from engine.model.stopwatch import no_lap

Rope = tuple[Tensor, Tensor]


def logits(model: Decoder, windows: Tensor) -> Tensor:
    """Return what a model expects after each token of windows (B, W): (B, W, V)."""
    count, width = windows.shape
    positions = torch.arange(width, device=model.device).repeat(count)  # [T]
    rope = rope_tables(positions, model.frequencies, model.dtype)
    x = embedding(windows.flatten(), model.embed)  # [T, H]
    for layer in model.decoder_layers:
        x = x + _attended(layer, x, rope, count)
        normed = rms_norm(x, layer.post_norm, model.spec.rms_norm_eps)
        x = x + layer.feed_forward(normed, no_lap)
    normed = rms_norm(x, model.norm, model.spec.rms_norm_eps)
    return linear(normed, model.lm_head).view(count, width, -1)


def next_nats(model: Decoder, windows: Tensor) -> Tensor:
    """Return the mean cross entropy [nats] of each byte of windows (B, W) after those before it."""
    expected = logits(model, windows[:, :-1])
    return cross_entropy(expected.flatten(0, 1), windows[:, 1:].flatten())


def _attended(layer: DecoderLayer, x: Tensor, rope: Rope, count: int) -> Tensor:
    """Return what attention within each of `count` windows adds to tokens (T, H)."""
    spec = layer.spec
    queries, keys = spec.num_attention_heads, spec.num_key_value_heads
    normed = rms_norm(x, layer.input_norm, spec.rms_norm_eps)
    heads = project(normed, layer.qkv, layer.qkv_bias)
    heads = heads.view(-1, queries + 2 * keys, spec.head_dim)  # [T, N + 2 G, D]
    rotated = rotate(layer.normalised(heads[:, : queries + keys]), *rope)
    attended = scaled_dot_product_attention(
        _by_window(rotated[:, :queries], count),
        _by_window(rotated[:, queries:], count),
        _by_window(heads[:, queries + keys :], count),
        is_causal=True,
        enable_gqa=True,
    )
    return project(attended.transpose(1, 2).flatten(0, 1).flatten(1), layer.o, layer.o_bias)


def _by_window(heads: Tensor, count: int) -> Tensor:
    """Bring heads (T, N, D) into the shape (B, N, W, D)."""
    return heads.view(count, -1, *heads.shape[1:]).transpose(1, 2)
