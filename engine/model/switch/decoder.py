"""The decoder: tokens attend to those before them, and across to the encoded prompt."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from engine.model.layers import rms_norm
from engine.model.step import PagedKvCache
from engine.model.stopwatch import Lap
from engine.model.switch.attention import CrossAttention, SelfAttention
from engine.model.switch.config import SwitchConfig
from engine.model.switch.feed_forward import feed_forward
from engine.model.switch.positions import position_bias
from engine.model.switch.step import SwitchSegment, SwitchStep
from engine.model.weights import empty_weight


class SwitchDecoderLayer(nn.Module):
    """Two attentions and a feed-forward network, each behind a norm and beside a residual."""

    def __init__(self, config: SwitchConfig, index: int, device: torch.device) -> None:
        super().__init__()
        dense = index in config.spec.dense_layers
        self.index = index
        self.attention = SelfAttention(config.spec, device)
        self.cross = CrossAttention(config.spec, device)
        self.feed_forward = feed_forward(config.spec, dense, device)

    def forward(
        self, x: Tensor, step: SwitchStep, biases: list[Tensor], cache: PagedKvCache, lap: Lap
    ) -> Tensor:
        """Take the residual stream `x` (T, H) through the layer."""
        queries, keys, values = self.attention.project(x)  # [T, N, D]
        self.attention.store(self.index, keys, values, step, cache)
        lap("projections")
        attended = self.attention.decode(self.index, queries, step, biases, cache)
        lap("attention_decode")
        x = x + linear(attended.flatten(1), self.attention.o)
        queries = self.cross.project(x)  # [T, N, D]
        lap("projections")
        attended = self.cross.decode(self.index, queries, step, cache)
        lap("attention_cross")
        x = x + linear(attended.flatten(1), self.cross.o)
        lap("projections")
        out: Tensor = self.feed_forward(x, step.decoder_lengths, lap)
        return out


class SwitchDecoder(nn.Module):
    """All layers; the bias of relative positions, `table` (B, N), is the same in each."""

    def __init__(self, config: SwitchConfig, device: torch.device) -> None:
        super().__init__()
        spec = config.spec
        buckets = spec.relative_attention_num_buckets
        self.config = config
        self.table = empty_weight(spec, device, buckets, spec.num_attention_heads)
        self.layers = nn.ModuleList(
            SwitchDecoderLayer(config, index, device) for index in range(spec.num_hidden_layers)
        )
        self.norm = empty_weight(spec, device, spec.hidden_size)

    @property
    def decoder_layers(self) -> list[SwitchDecoderLayer]:
        """The layers, in order."""
        return [layer for layer in self.layers if isinstance(layer, SwitchDecoderLayer)]

    def remember(self, encoded: Tensor, slots: Tensor, cache: PagedKvCache) -> None:
        """Store what every layer attends to in encoded prompts (P, H), at `slots` (P,)."""
        for layer in self.decoder_layers:
            layer.cross.remember(layer.index, encoded, slots, cache)

    def forward(self, x: Tensor, step: SwitchStep, cache: PagedKvCache, lap: Lap) -> Tensor:
        """Take the embedded tokens `x` (T, H) through all layers; return the emitting rows."""
        biases = [self._bias(segment) for segment in step.segments]
        lap("embedding")
        for layer in self.decoder_layers:
            x = layer(x, step, biases, cache, lap)
        return rms_norm(x[step.emit_rows], self.norm, self.config.spec.rms_norm_eps)  # [S, H]

    def _bias(self, segment: SwitchSegment) -> Tensor:
        places = torch.arange(segment.decoded, device=self.table.device)
        new, distance = places[segment.context :], self.config.max_distance
        return position_bias(self.table, new, places, max_distance=distance, both_ways=False)
