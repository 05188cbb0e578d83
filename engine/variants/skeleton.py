"""Skeletons: decoders without weights of their own, over an arena and a store.

The variants of one model have a skeleton each. Those that share an arena read whatever non-expert
set is loaded there; what differs is which expert copies they use. A pointer never changes, so that
captured CUDA graphs stay valid.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from engine.model.decoder import Decoder
from engine.model.layers import inverse_frequencies
from engine.model.moe import MoeLayer
from engine.variants.layer import LayerExperts
from engine.variants.positions import Position
from engine.variants.store import ExpertStore
from moesim.facts.models import ModelSpec

EXPERTS = ("gate_up", "down")
"""The weights of a layer that belong to its experts."""


def non_experts(model: Decoder) -> dict[str, Tensor]:
    """Return the non-expert set of a decoder: all its weights but the experts', by name."""
    return {
        name: weight.data
        for name, weight in model.named_parameters()
        if not _is_experts(model, name)
    }


def skeleton(spec: ModelSpec, weights: Mapping[str, Tensor]) -> Decoder:
    """Return a decoder over a non-expert set, as yet without experts, or over all weights."""
    model = Decoder(spec, "meta")
    for name, weight in weights.items():
        owner, _, own_name = name.rpartition(".")
        parameter = nn.Parameter(weight, requires_grad=False)
        setattr(model.get_submodule(owner), own_name, parameter)
    if spec.tie_word_embeddings:
        model.lm_head = model.embed
    model.frequencies = inverse_frequencies(
        spec.head_dim, spec.rope_theta, spec.rope_scaling, model.device
    )
    return model


def attach(model: Decoder, store: ExpertStore, variant: int) -> None:
    """Let a skeleton run its experts by the store, as one of the variants."""
    followed: LayerExperts | None = None
    for layer in model.decoder_layers:
        if not isinstance(layer.ffn, MoeLayer):
            continue
        moe = layer.ffn
        at = [Position(layer.index, expert) for expert in range(moe.num_experts)]
        experts = LayerExperts(moe, store, [store.copies.number(variant, place) for place in at])
        moe.gate_up = nn.Parameter(store.gate_up, requires_grad=False)
        moe.down = nn.Parameter(store.down, requires_grad=False)
        moe.experts = experts  # type: ignore[method-assign]
        if followed is not None and store.prefetch:
            followed.following = moe
        followed = experts


def _is_experts(model: Decoder, name: str) -> bool:
    owner, _, own_name = name.rpartition(".")
    return own_name in EXPERTS and isinstance(model.get_submodule(owner), MoeLayer)


def meta_weights(spec: ModelSpec, *, experts: bool = False) -> dict[str, Tensor]:
    """Return the non-expert set of a shape, or all its weights, without memory."""
    model = Decoder(spec, "meta")
    if experts:
        return {name: weight.data for name, weight in model.named_parameters()}
    return non_experts(model)
