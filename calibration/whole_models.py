"""Whole models in turns on one device: what a change of model replaces is all of its weights.

The engine's variants share a device by swapping what is not expert. Time sharing, with which that
is compared, is the same machinery with everything in the arena, and no store.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from engine.variants.family import Family, Sharing, load_family


def whole_models(folders: Mapping[str, Path], device: torch.device) -> Family:
    """Read checkpoints of one shape, of which one at a time is on the device."""
    return load_family(folders, Sharing(whole_models=True), device)
