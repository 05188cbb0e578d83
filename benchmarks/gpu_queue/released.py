"""Memory between two measurements: nothing of the last may be left on the device."""

import gc

import torch


def release() -> None:
    """Free what nobody uses any more.

    Models' parts hold each other, so that their weights stay until Python looks for such circles;
    and what torch keeps for later use counts as taken when room for a KV cache is reckoned.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
