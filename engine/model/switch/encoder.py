"""The encoder: every token of a prompt attends to all of them."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from engine.model.layers import rms_norm
from engine.model.stopwatch import Lap
from engine.model.switch.attention import SelfAttention
from engine.model.switch.config import SwitchConfig
from engine.model.switch.feed_forward import feed_forward
from engine.model.switch.positions import position_bias
from engine.model.weights import empty_weight


class EncoderLayer(nn.Module):
    """Attention and a feed-forward network, each behind a norm and beside a residual."""

    def __init__(self, config: SwitchConfig, index: int, device: torch.device) -> None:
        super().__init__()
        dense = index in config.spec.dense_encoder_layers
        self.attention = SelfAttention(config.spec, device)
        self.feed_forward = feed_forward(config.spec, dense, device)

    def forward(self, x: Tensor, biases: list[Tensor], lap: Lap) -> Tensor:
        """Take the residual stream `x` (P, H) through the layer."""
        heads = self.attention.project(x)
        lap("projections")
        attended = self.attention.encode(*heads, biases)  # [P, N, D]
        lap("attention_prefill")
        x = x + linear(attended.flatten(1), self.attention.o)
        lap("projections")
        out: Tensor = self.feed_forward(x, [bias.shape[-1] for bias in biases], lap)
        return out


class Encoder(nn.Module):
    """All layers; the bias of relative positions, `table` (B, N), is the same in each."""

    def __init__(self, config: SwitchConfig, device: torch.device) -> None:
        super().__init__()
        spec = config.spec
        buckets = spec.relative_attention_num_buckets
        self.config = config
        self.table = empty_weight(spec, device, buckets, spec.num_attention_heads)
        self.layers = nn.ModuleList(
            EncoderLayer(config, index, device) for index in range(spec.num_encoder_layers)
        )
        self.norm = empty_weight(spec, device, spec.hidden_size)

    @property
    def encoder_layers(self) -> list[EncoderLayer]:
        """The layers, in order."""
        return [layer for layer in self.layers if isinstance(layer, EncoderLayer)]

    def forward(self, x: Tensor, lengths: list[int], lap: Lap) -> Tensor:
        """Encode the embedded tokens `x` (P, H) of prompts of `lengths`, into (P, H)."""
        by_length = {length: self._bias(length) for length in set(lengths)}
        biases = [by_length[length] for length in lengths]
        lap("embedding")
        for layer in self.encoder_layers:
            x = layer(x, biases, lap)
        return rms_norm(x, self.norm, self.config.spec.rms_norm_eps)

    def _bias(self, length: int) -> Tensor:
        places = torch.arange(length, device=self.table.device)
        distance = self.config.max_distance
        return position_bias(self.table, places, places, max_distance=distance, both_ways=True)
