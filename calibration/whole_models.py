"""Whole models in turns on one device: what a change of model replaces is all of its weights.

The engine's variants share a device by swapping what is not expert. Time sharing, with which that
is compared, is the same machinery with everything in the arena, and no store.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from engine.model.checkpoint import load_decoder
from engine.model.decoder import Decoder
from engine.variants.copies import Copies
from engine.variants.family import Family
from engine.variants.positions import positions_of
from engine.variants.reconfigure import PackedSets
from engine.variants.skeleton import skeleton
from engine.variants.store import ExpertStore, Residency


def whole_models(folders: Mapping[str, Path], device: torch.device) -> Family:
    """Read checkpoints of one shape, of which one at a time is on the device."""
    models = {name: load_decoder(folder, torch.device("cpu")) for name, folder in folders.items()}
    spec = next(iter(models.values())).spec
    weights = {name: torch.empty_like(w) for name, w in Decoder(spec, "meta").named_parameters()}
    sets = PackedSets(weights, len(models), device)
    decoders = {}
    for variant, (name, model) in enumerate(models.items()):
        room = sets.room(variant)
        for key, weight in model.named_parameters():
            room[key].copy_(weight.data)
        decoders[name] = skeleton(model.spec, sets.weights(variant))
    # The store of a device without memory: complete, empty, and asked by nobody.
    copies = Copies(positions_of(spec), 1, {})
    store = ExpertStore(spec, copies, Residency(), torch.device("meta"))
    return Family(decoders=decoders, sets=sets, store=store)
