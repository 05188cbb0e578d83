"""The forward pass of a decoder over one mixed batch."""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from engine.model.allocation import allocating
from engine.model.decoder_layer import DecoderLayer
from engine.model.layers import inverse_frequencies, rms_norm, rope_tables
from engine.model.moe import MoeLayer
from engine.model.step import PagedKvCache, StepInput
from engine.model.stopwatch import Lap, no_lap
from engine.model.weights import empty_weight
from moesim.errors import EngineError
from moesim.facts.configs import DECODERS
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision


class Decoder(nn.Module):
    """A decoder of the shape and number format `spec`; its weights are unset until loaded.

    `precision` says what each part is held in, once something narrowed it.

    Raises EngineError for a shape of another architecture, or one that does not fit on `device`.
    """

    def __init__(self, spec: ModelSpec, device: torch.device | str = "cpu") -> None:
        super().__init__()
        if spec.model_type not in DECODERS:
            raise EngineError(
                f"model_type: {spec.model_type!r} is not one of the decoders "
                f"{', '.join(DECODERS)}; give a model of one of these"
            )
        self.spec = spec
        self.precision = Precision.of_dtype(spec.dtype)
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
        self.frequencies = inverse_frequencies(
            spec.head_dim, spec.rope_theta, spec.rope_scaling, device
        )

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

    @property
    def moe_layers(self) -> list[MoeLayer]:
        """The experts of the layers that have some, in order."""
        return [layer.ffn for layer in self.decoder_layers if isinstance(layer.ffn, MoeLayer)]

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
