"""What serving asks of a model, whatever its architecture."""

from typing import Protocol

import torch

from moesim.facts.models import ModelSpec


class Model(Protocol):
    """A loaded model; how it is run forward is for the runner of its kind to know."""

    @property
    def spec(self) -> ModelSpec:
        """The shape of the model."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def dtype(self) -> torch.dtype:
        """Number format of weights and activations."""
