"""All experts in two grouped matrix products of torch.

On sm90 and sm100 `grouped_mm` is one CUTLASS kernel that reads the groups' ends on the device. On
older GPUs it is a loop that waits for the device, and on the CPU a loop in C++.
"""

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, silu


def grouped(x: Tensor, weights: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Sort the visits by expert, run each group with its expert, put the rows back."""
    experts, order = ids.flatten().sort(stable=True)  # [V]
    every = torch.arange(gate_up.shape[0], device=ids.device)
    ends = torch.searchsorted(experts, every, right=True, out_int32=True)  # [E]
    # Views of weights stored (E, out, in): the kernel is far slower on contiguous (E, in, out).
    gate_and_up = grouped_mm(x[order // ids.shape[1]], gate_up.transpose(-1, -2), offs=ends)
    gate, up = gate_and_up.chunk(2, dim=-1)  # [V, I] each
    y = grouped_mm(silu(gate) * up, down.transpose(-1, -2), offs=ends)  # [V, H]
    visits = torch.empty_like(y).index_copy_(0, order, y).view(*ids.shape, -1)  # [T, k, H]
    return (visits * weights.unsqueeze(-1)).sum(dim=1).to(x.dtype)
