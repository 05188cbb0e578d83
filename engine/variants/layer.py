"""The experts of one layer as a variant sees them: its copies in the store."""

from collections.abc import Sequence as Row
from functools import cached_property

import torch
from torch import Tensor

from engine.model.moe import MoeLayer
from engine.variants.store import ExpertStore


class LayerExperts:
    """Stands in for a layer's own experts; `copies` (E,) are what the variant uses of the store.

    `following` is the next layer with experts, if what it will need is to be guessed.
    """

    def __init__(self, layer: MoeLayer, store: ExpertStore, copies: Row[int]) -> None:
        self.copies = copies
        self.following: MoeLayer | None = None
        self._layer = layer
        self._store = store

    def __call__(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """Add up the outputs (T, H) of each token's experts: x (T, H), weights and ids (T, k)."""
        store = self._store
        if store.complete:
            style = self._layer.choice(x.shape[0])
            return style.run(x, weights, self._slots[ids], store.gate_up, store.down)
        # Named before the experts are queued, or the host would wait for them to know the names;
        # brought after, as what this layer lacks comes first.
        named = self._named(x)
        out = store.run(self.copies, x, weights, ids)
        store.expect(named)
        return out

    @cached_property
    def _slots(self) -> Tensor:
        """The slot of each expert (E,); of a complete store it is the copy's own number."""
        return torch.tensor(self.copies, device=self._store.gate_up.device)

    def _named(self, x: Tensor) -> list[int]:
        """Return the copies that the next layer's router names for what this layer is given."""
        following = self.following
        if following is None or not isinstance(following.experts, LayerExperts):
            return []
        named = sorted(set(following.route(x)[1].flatten().tolist()))
        return [following.experts.copies[expert] for expert in named]
