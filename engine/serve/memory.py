"""How many KV blocks the engine takes: what is left beside weights and activations."""

import os

import torch

from engine.model.model import Model
from engine.model.quantise import held_bytes, scratch_bytes
from moesim.errors import EngineError
from moesim.facts.memory import RESERVED_SHARE, activation_bytes
from moesim.serving.scheduling import Limits
from moesim.units import format_bytes

CPU_SHARE = 0.05
"""Share of a host's free memory that the KV cache may fill."""


def default_blocks(model: Model, limits: Limits, block_size: int) -> int:
    """Return the KV blocks for a loaded model, never more than all sequences could use."""
    spec = model.spec
    block_bytes = block_size * spec.kv_bytes_per_token
    useful = limits.max_num_seqs * -(-limits.max_model_len // block_size)
    blocks = min(useful, int(_free_bytes(model, limits) // block_bytes))
    if blocks < 1:
        raise EngineError(
            f"KV cache: no room for one block of {format_bytes(block_bytes)} beside weights of "
            f"{format_bytes(held_bytes(model))}; take a smaller model or a larger device"
        )
    return blocks


def _free_bytes(model: Model, limits: Limits) -> float:
    if model.device.type != "cuda":
        return CPU_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    free, total = torch.cuda.mem_get_info(model.device)
    activations = activation_bytes(
        model.spec,
        max_batched_tokens=limits.max_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
    )
    return free - RESERVED_SHARE * total - activations - scratch_bytes(model)
