"""Shares of a GPU's SMs (CUDA MPS), and what bandwidth so few SMs can draw at most.

Memory has no walls under MPS, but bytes come to an SM through its part of the L2 cache's read
bandwidth. That is several times the memory's, so that only small shares are held back by it.
"""

from moesim.facts.hardware import Device
from moesim.facts.slices import Slice

SM_BYTES_PER_S = 5120 / 108 * 1.41e9
"""What an SM can read at most [B/s]: an A100's L2 cache reads 5,120 bytes a clock for 108 SMs at
1,410 MHz (NVIDIA A100 Tensor Core GPU Architecture, 2020). Taken for every CUDA device of which
nothing else is known; what a kernel on few SMs really draws is less."""

ASSUMED = (
    f"an SM draws {SM_BYTES_PER_S / 1e9:.0f} GB/s at most, by the A100's datasheet for L2 reads; "
    "small shares of the SMs were not measured"
)
"""What a result says where a share is held back by that."""


def sm_share(device: Device, percent: float) -> Slice:
    """Return a share of a device's SMs with all the bandwidth that these can draw."""
    return Slice(
        name=f"{device.name}/{percent:g} % of the SMs",
        compute_share=percent / 100,
        bandwidth_share=drawn(device, percent / 100),
        memory_bytes=device.memory_bytes,
    )


def drawn(device: Device, compute_share: float) -> float:
    """Return what share of a device's bandwidth a share of its SMs, or cores, can draw at most.

    All of it where not enough is known of the device.
    """
    whole, each = device.memory_bandwidth_bytes_per_s, device.sm_bytes_per_s
    if each is None and device.kind == "cuda":
        each = SM_BYTES_PER_S
    if each is None or device.sms is None or whole is None:
        return 1.0
    return min(1.0, compute_share * device.sms * each / whole)
