"""What a device is: memory, links and the datasheet figures a planner compares with."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

PCIE_BYTES_PER_S = {3: 15.754e9, 4: 31.508e9, 5: 63.015e9}
"""What 16 lanes carry each way by generation: 8, 16 and 32 GT/s a lane, 128 of 130 bits data
(PCI Express Base Specification) [B/s]."""


SLOWEST, FASTEST = 1.0, 1e21
"""Between which every rate of a device is, in bytes or FLOP a second: a slip of the pen is found,
and what is computed from it stays a number."""


def no_fp8(device: str) -> str:
    """Say that a device does not compute with weights in fp8."""
    return (
        f"hardware.device {device}: no fp8_flop_per_s, which weights in fp8 need; "
        "take precision bf16, int8 or int4, or a device with fp8"
    )


class Facts(BaseModel):
    """What device files are made of: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Line(Facts):
    """A duration that grows with a message: `latency_s + bytes / bytes_per_s`."""

    latency_s: float = Field(ge=1e-12, le=3600)
    """What the shortest message takes [s]."""
    bytes_per_s: float = Field(ge=SLOWEST, le=FASTEST)
    """Bytes of the message over the time that they add [B/s]."""

    def seconds(self, message_bytes: float) -> float:
        """Return how long a message takes [s]."""
        return self.latency_s + message_bytes / self.bytes_per_s


class AllReduce(Facts):
    """What adding up a vector over all ranks of a group takes: the lesser of two lines."""

    short: Line
    """One exchange between all, as short messages are reduced."""
    long: Line
    """Two exchanges, or NCCL, as long messages are reduced."""
    typical_error: float = Field(ge=0, le=100)
    """Median relative deviation of the lines from the measurements behind them."""

    def seconds(self, message_bytes: float) -> float:
        """Return how long a message takes [s]."""
        return min(self.short.seconds(message_bytes), self.long.seconds(message_bytes))


class Device(Facts):
    """A device that replicas run on, as written in `data/hardware/*.yaml`."""

    name: str
    """The device's name, as scenarios refer to it."""
    kind: str = Field(pattern="^(cuda|cpu)$")
    """`cuda` or `cpu`."""
    reported_as: tuple[str, ...] = ()
    """What the driver calls it; profiles of anything else are refused. Any of its kind if empty."""
    memory_bytes: int = Field(gt=0, le=10**18)
    """Memory for weights and KV cache [B]."""
    memory_bandwidth_bytes_per_s: float | None = Field(default=None, ge=SLOWEST, le=FASTEST)
    """Datasheet memory bandwidth [B/s]."""
    bf16_flop_per_s: float | None = Field(default=None, ge=SLOWEST, le=FASTEST)
    """Datasheet dense bf16 rate [FLOP/s]."""
    fp8_flop_per_s: float | None = Field(default=None, ge=SLOWEST, le=FASTEST)
    """Datasheet dense fp8 rate; none where the device has no fp8 [FLOP/s]."""
    sms: int | None = Field(default=None, gt=0, le=10**6)
    """Streaming multiprocessors; of a CPU its cores."""
    sm_bytes_per_s: float | None = Field(default=None, ge=SLOWEST, le=FASTEST)
    """What one of these alone reads at most, where that was measured [B/s]."""
    mig: Literal["a100-40gb", "a100-80gb", "h100-80gb", "h200-141gb"] | None = None
    """The MIG geometry by which the device can be divided."""
    pcie_generation: Literal[3, 4, 5] | None = None
    """PCI Express generation of its 16 lanes to the host."""
    pcie_pinned_bytes_per_s: float | None = Field(default=None, ge=SLOWEST, le=FASTEST)
    """What large copies from pinned host memory typically reach; a profile measures it [B/s]."""
    nvlink_bytes_per_s: float | None = Field(default=None, ge=SLOWEST, le=FASTEST)
    """Datasheet NVLink bandwidth of the device, both directions added up [B/s]."""
    nvlink_devices: int = Field(default=8, ge=2, le=8)
    """How many NVLink joins: 8 on a baseboard of SXM modules, 2 or 4 under a bridge."""
    all_reduce: dict[int, AllReduce] = {}
    """Measured all-reduces by number of GPUs, over whatever joins them."""
    source: str
    """Where the figures come from."""

    @property
    def pcie_bytes_per_s(self) -> float | None:
        """The line rate of the link to the host, each way [B/s]."""
        return PCIE_BYTES_PER_S[self.pcie_generation] if self.pcie_generation else None

    @property
    def largest_group(self) -> int:
        """Devices of which it is known how fast they add up: measured, or joined by NVLink."""
        joined = self.nvlink_devices if self.nvlink_bytes_per_s else 1
        return max(joined, *self.all_reduce, 1)
