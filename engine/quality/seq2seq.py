"""A Switch Transformer's forward pass over whole windows, with gradients: no cache, no pages.

The encoder reads the first half of each window, the decoder continues it, told the true bytes
before each that it is asked for. Weights, norms, routers and experts are the engine's own; only
attention is done for all windows at once.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding, linear, pad, scaled_dot_product_attention

from engine.model.layers import rms_norm
from engine.model.stopwatch import no_lap
from engine.model.switch.decoder import SwitchDecoder, SwitchDecoderLayer
from engine.model.switch.encoder import Encoder
from engine.model.switch.model import Switch
from engine.model.switch.positions import position_bias


def answer_logits(model: Switch, prompts: Tensor, answers: Tensor) -> Tensor:
    """Return what a model expects at each place (B, W, V) of answers (B, W) to prompts (B, P)."""
    encoded = _encoded(model.encoder, embedding(prompts, model.embed))
    read = pad(answers[:, :-1], (1, 0), value=model.config.decoder_start_token)
    decoded = _decoded(model.decoder, embedding(read, model.decoder_embed), encoded)
    if model.spec.tie_word_embeddings:
        decoded = decoded * model.spec.hidden_size**-0.5
    return linear(decoded, model.lm_head)


def answer_nats(model: Switch, windows: Tensor) -> Tensor:
    """Return the mean cross entropy [nats] of each byte in the second halves of windows (B, W)."""
    half = windows.shape[1] // 2
    prompts, answers = windows[:, :half], windows[:, half:]
    expected = answer_logits(model, prompts, answers)
    return cross_entropy(expected.flatten(0, 1), answers.flatten())


def _encoded(encoder: Encoder, x: Tensor) -> Tensor:
    """Take embedded prompts (B, P, H) through the encoder."""
    count, width, _ = x.shape
    bias = _bias(encoder, width, both_ways=True)
    x = x.flatten(0, 1)  # [T, H]
    for layer in encoder.encoder_layers:
        attended = _attended(*layer.attention.project(x), count, bias)
        x = x + linear(attended, layer.attention.o)
        x = layer.feed_forward(x, [width] * count, no_lap)
    return rms_norm(x, encoder.norm, encoder.config.spec.rms_norm_eps).view(count, width, -1)


def _decoded(decoder: SwitchDecoder, x: Tensor, encoded: Tensor) -> Tensor:
    """Take embedded answers (B, W, H) to encoded prompts (B, P, H) through the decoder."""
    count, width, _ = x.shape
    bias = _bias(decoder, width, both_ways=False)
    x = x.flatten(0, 1)  # [T, H]
    for layer in decoder.decoder_layers:
        attended = _attended(*layer.attention.project(x), count, bias)
        x = x + linear(attended, layer.attention.o)
        x = x + _crossed(layer, x, encoded)
        x = layer.feed_forward(x, [width] * count, no_lap)
    return rms_norm(x, decoder.norm, decoder.config.spec.rms_norm_eps).view(count, width, -1)


def _crossed(layer: SwitchDecoderLayer, x: Tensor, encoded: Tensor) -> Tensor:
    """Return what attention across to encoded prompts (B, P, H) adds to tokens (T, H)."""
    cross, spec = layer.cross, layer.cross.spec
    heads = linear(encoded.flatten(0, 1), cross.kv)
    keys, values = heads.view(-1, 2, spec.num_attention_heads, spec.head_dim).unbind(1)
    return linear(_attended(cross.project(x), keys, values, len(encoded), None), cross.o)


def _attended(
    queries: Tensor, keys: Tensor, values: Tensor, count: int, bias: Tensor | None
) -> Tensor:
    """Attend within each of `count` windows, (T, N, D) each, with a bias (N, n, m); (T, N * D)."""
    heads = scaled_dot_product_attention(
        _by_window(queries, count),
        _by_window(keys, count),
        _by_window(values, count),
        attn_mask=bias,
        scale=1.0,
    )  # [B, N, n, D]
    return heads.transpose(1, 2).flatten(2).flatten(0, 1)


def _by_window(heads: Tensor, count: int) -> Tensor:
    """Bring heads (T, N, D) into the shape (B, N, W, D)."""
    return heads.view(count, -1, *heads.shape[1:]).transpose(1, 2)


def _bias(stack: Encoder | SwitchDecoder, width: int, *, both_ways: bool) -> Tensor:
    places = torch.arange(width, device=stack.table.device)
    distance = stack.config.max_distance
    return position_bias(stack.table, places, places, max_distance=distance, both_ways=both_ways)
