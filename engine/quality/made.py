"""Models made of several variants of a family: by a layout, by averages of experts, by merging."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random

import torch
from torch import Tensor

from engine.model.decoder import Decoder
from engine.model.layout import places as decoder_places
from engine.model.loading import load_model
from engine.model.switch.layout import places as switch_places
from engine.quality.family import Family
from engine.variants.assemble import assemble
from engine.variants.command import consolidate
from engine.variants.layout import Layout
from engine.variants.merging import State
from engine.variants.positions import Model, expert_places


def silent(_: float, __: str) -> None:
    """Tell nobody how far something is."""


def layout_of(family: Family, names: Sequence[str]) -> Layout:
    """Lay out the consolidation of some variants, of which everything is shared."""
    return consolidate({name: family.folders[name] for name in names}, 1.0, silent)


def shuffled(layout: Layout, seed: int) -> Layout:
    """Return the same positions in a random order, the sources taking turns in it: the control."""
    order = list(layout.ranking)
    Random(seed).shuffle(order)  # noqa: S311  # a control, no secret
    names = layout.names
    turns = [replace(one, source=names[turn % len(names)]) for turn, one in enumerate(order)]
    return replace(layout, ranking=tuple(turns))


def consolidated(family: Family, layout: Layout, variant: str) -> Model:
    """Make a variant by a layout."""
    return assemble(layout, {name: family.folders[name] for name in layout.names}, variant)


def with_mean_experts(family: Family, layout: Layout, variant: str) -> Model:
    """Make a variant whose experts at a layout's shared positions are the means of all variants'.

    What is not an expert is the variant's own, as in a consolidation.
    """
    models = {name: load_model(family.folders[name]) for name in layout.names}
    found = {name: expert_places(model) for name, model in models.items()}
    for position in layout.shared:
        copies = zip(*(one[position] for one in found.values()), strict=True)
        means = [torch.stack(matrices).mean(0) for matrices in copies]
        for place, mean in zip(found[variant][position], means, strict=True):
            place.copy_(mean)
    return models[variant]


def merged(
    family: Family, names: Sequence[str], merge: Callable[[State, Sequence[State]], State]
) -> Model:
    """Merge variants into one model; `merge` is told the base's weights and theirs."""
    model = load_model(family.base)
    places = state(model)
    base = {name: weight.clone() for name, weight in places.items()}
    states = [state(load_model(family.folders[name])) for name in names]
    for name, weight in merge(base, states).items():
        places[name].copy_(weight)
    return model


def moved(family: Family, goal: Model, share: float) -> Model:
    """Return the base, moved to a model by a share of the way, or beyond it."""
    model = load_model(family.base)
    goals = state(goal)
    for name, weight in state(model).items():
        weight.lerp_(goals[name], share)
    return model


def state(model: Model) -> Mapping[str, Tensor]:
    """Return a model's weights by the names that they are stored by."""
    if isinstance(model, Decoder):
        return decoder_places(model, fused=False)
    return switch_places(model)
