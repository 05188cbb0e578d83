"""How many KV blocks the engine takes: what is left beside weights and activations."""

import os

import torch

from engine.model.decoder import Decoder
from moesim.errors import EngineError
from moesim.serving.scheduling import Limits
from moesim.units import format_bytes

GPU_SHARE = 0.9
"""Share of a GPU's memory that weights, activations and KV cache may fill together."""
CPU_SHARE = 0.05
"""Share of a host's free memory that the KV cache may fill."""


def default_blocks(decoder: Decoder, limits: Limits, block_size: int) -> int:
    """Return the KV blocks for a loaded decoder, never more than all sequences could use."""
    spec = decoder.spec
    block_bytes = block_size * spec.kv_bytes_per_token
    useful = limits.max_num_seqs * -(-limits.max_model_len // block_size)
    blocks = min(useful, int(_free_bytes(decoder, limits) // block_bytes))
    if blocks < 1:
        raise EngineError(
            f"KV cache: no room for one block of {format_bytes(block_bytes)} beside weights of "
            f"{format_bytes(spec.weight_bytes)}; take a smaller model or a larger device"
        )
    return blocks


def _free_bytes(decoder: Decoder, limits: Limits) -> float:
    if decoder.device.type != "cuda":
        return CPU_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    free, total = torch.cuda.mem_get_info(decoder.device)
    return free - (1 - GPU_SHARE) * total - activation_bytes(decoder, limits)


def activation_bytes(decoder: Decoder, limits: Limits) -> int:
    """Bound the activations of one iteration [B]: hidden states, both FFN halves, logits.

    Tensors of T tokens alive at once, counted from the forward pass: 6 of width H for the residual
    stream, norms and outputs, 3 of width I for each of the k visits; logits of every sequence in
    the weights' format and once in fp32.
    """
    spec, tokens = decoder.spec, limits.max_batched_tokens
    hidden = 6 * tokens * spec.hidden_size
    inner = 3 * tokens * spec.num_experts_per_tok * spec.intermediate_size
    logits = limits.max_num_seqs * spec.vocab_size
    return (hidden + inner + logits) * spec.dtype_bytes + 4 * logits
