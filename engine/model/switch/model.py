"""The forward pass of a Switch Transformer over one mixed batch."""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from engine.model.allocation import allocating
from engine.model.step import PagedKvCache
from engine.model.stopwatch import Lap, no_lap
from engine.model.switch.config import SwitchConfig
from engine.model.switch.decoder import SwitchDecoder
from engine.model.switch.encoder import Encoder
from engine.model.switch.step import SwitchStep
from engine.model.weights import empty_weight
from moesim.facts.models import ModelSpec


class Switch(nn.Module):
    """An encoder-decoder of the shape `config`; its weights are unset until loaded.

    One table embeds the tokens of both halves, and is the head too where embeddings are tied. With
    `own_tables` the decoder has a second one, as transformers 5 has it where they are not tied.
    """

    def __init__(
        self, config: SwitchConfig, device: torch.device | str = "cpu", own_tables: bool = False
    ) -> None:
        super().__init__()
        spec = config.spec
        self.config = config
        self.own_tables = own_tables
        what = f"weights: {spec.parameters} parameters in {spec.dtype}"
        remedy = "use a smaller model, another dtype or a larger device"
        with allocating(what, spec.weight_bytes, torch.device(device), remedy):
            self._allocate(config, torch.device(device))

    def _allocate(self, config: SwitchConfig, device: torch.device) -> None:
        spec = config.spec

        def table() -> nn.Parameter:
            return empty_weight(spec, device, spec.vocab_size, spec.hidden_size)

        self.embed = table()
        self.decoder_embed = table() if self.own_tables else self.embed
        self.encoder = Encoder(config, device)
        self.decoder = SwitchDecoder(config, device)
        self.lm_head = self.embed if spec.tie_word_embeddings else table()

    @property
    def spec(self) -> ModelSpec:
        """The shape of the model."""
        return self.config.spec

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of weights and activations."""
        return self.embed.dtype

    @torch.inference_mode()
    def encode(self, prompt_ids: Tensor, lengths: list[int], lap: Lap = no_lap) -> Tensor:
        """Encode prompts (P,) that follow one another, of `lengths`; return (P, H)."""
        encoded: Tensor = self.encoder(embedding(prompt_ids, self.embed), lengths, lap)
        return encoded

    @torch.inference_mode()
    def forward(self, step: SwitchStep, cache: PagedKvCache, lap: Lap = no_lap) -> Tensor:
        """Run one iteration; return the logits (S, V) of the emitting rows.

        What comes later attends to is in `cache` and the segments' `opening` afterwards. `lap` is
        told the name of each operation as it ends.
        """
        if step.prompt_lengths:
            encoded = self.encode(step.prompt_ids, step.prompt_lengths, lap)
            self.decoder.remember(encoded, step.prompt_slots, cache)
            lap("projections")
        x = embedding(step.token_ids, self.decoder_embed)  # [T, H]
        decoded = self.decoder(x, step, cache, lap)  # [S, H]
        if self.spec.tie_word_embeddings:
            # A table that embeds has values near one, a head's are smaller by this factor.
            decoded = decoded * self.spec.hidden_size**-0.5
        logits = linear(decoded, self.lm_head)
        lap("head")
        return logits
