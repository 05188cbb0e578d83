"""Slices: what a replica runs on, a whole GPU, a MIG instance or a group of GPUs.

A MIG instance is given as shares of the whole: compute goes with the SMs, bandwidth and memory with
the memory slices. Launches and the host do not shrink, and the link to the host is shared by all.

A group serves one model together, cut as TensorRT-LLM cuts it (`moe_tp x moe_ep` ranks): attention,
plain FFNs, embedding and head over all its devices, each expert over `tensor_parallel` of them, and
the experts of a layer are dealt in order to `expert_parallel` such teams.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.errors import ScenarioError
from moesim.facts.hardware import Device
from moesim.facts.mig import check_layout, geometry_of
from moesim.facts.models import ModelSpec

MIG = " MIG "
"""What stands between GPU and profile in the name that CUDA gives an instance."""

NODE = 8
"""GPUs that NVLink joins in a node of A100, H100 or H200 (NVIDIA DGX and HGX)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A part of a device, all of it, or several; shares and memory are those of each device."""

    name: str
    compute_share: float
    bandwidth_share: float
    memory_bytes: int
    tensor_parallel: int = 1
    """Devices over which each expert is split."""
    expert_parallel: int = 1
    """Parts into which a layer's experts are dealt."""

    @property
    def devices(self) -> int:
        """Devices, or ranks, of the group; 1 where there is none."""
        return self.tensor_parallel * self.expert_parallel

    @property
    def whole(self) -> bool:
        """Whether it is one device that is not divided."""
        return self.compute_share == self.bandwidth_share == 1.0 and self.devices == 1


def whole(device: Device) -> Slice:
    """Return a device that is not divided."""
    return Slice(
        name=device.name, compute_share=1.0, bandwidth_share=1.0, memory_bytes=device.memory_bytes
    )


def group(device: Device, *, tensor_parallel: int = 1, expert_parallel: int = 1) -> Slice:
    """Return a group of whole devices; of one, the device itself.

    Raises ScenarioError where the group is larger than a node, or nothing is known of how fast so
    many devices tell each other their results.
    """
    for field, parts in (
        ("tensor_parallel", tensor_parallel),
        ("expert_parallel", expert_parallel),
    ):
        if parts < 1:
            raise ScenarioError(f"{field}: {parts} must be above zero")
    devices = tensor_parallel * expert_parallel
    if devices == 1:
        return whole(device)
    if devices > NODE:
        raise ScenarioError(
            f"tensor_parallel x expert_parallel: {tensor_parallel} x {expert_parallel} = {devices} "
            f"devices are more than the {NODE} of a node; take fewer, and more replicas"
        )
    if devices > device.largest_group:
        raise ScenarioError(_unjoined(device, devices))
    return Slice(
        name=f"{devices}x {device.name}",
        compute_share=1.0,
        bandwidth_share=1.0,
        memory_bytes=device.memory_bytes,
        tensor_parallel=tensor_parallel,
        expert_parallel=expert_parallel,
    )


def _unjoined(device: Device, devices: int) -> str:
    """Say why a group is too large for what the device's file tells of links."""
    most = device.largest_group
    if most == 1:
        return (
            f"hardware.device {device.name}: neither nvlink_bytes_per_s nor all_reduce, one of "
            f"which a group of {devices} needs; add the figure to the device's file, or take "
            "groups of one"
        )
    return (
        f"hardware.device {device.name}: NVLink joins {most}, and no all_reduce of {devices} was "
        f"measured; take groups of at most {most}, or add all_reduce to the device's file"
    )


def check_divides(spec: ModelSpec, part: Slice) -> None:
    """Raise ScenarioError where a model cannot be cut evenly over a group.

    Keys and values may have fewer heads than there are devices: each is then kept by several, as
    vLLM does.
    """
    devices, heads = part.devices, spec.num_key_value_heads
    if devices % heads:
        _divides("num_key_value_heads", heads, devices, "devices")
    _divides("num_attention_heads", spec.num_attention_heads, devices, "devices")
    _divides("intermediate_size", spec.dense_intermediate_size, devices, "devices")
    if spec.num_local_experts:
        _divides("intermediate_size", spec.intermediate_size, part.tensor_parallel, "ranks")
        _divides("num_local_experts", spec.num_local_experts, part.expert_parallel, "parts")
    elif part.expert_parallel > 1:
        raise ScenarioError(
            f"expert_parallel: {part.expert_parallel} parts of a model without experts; "
            f"take tensor_parallel: {devices}"
        )


def _divides(field: str, size: int, parts: int, word: str) -> None:
    if size % parts:
        fitting = [n for n in range(1, NODE + 1) if size % n == 0]
        raise ScenarioError(
            f"{field}: {size} does not divide over {parts} {word}; take one of "
            f"{', '.join(map(str, fitting))}"
        )


def mig_slices(device: Device, layout: Sequence[str]) -> list[Slice]:
    """Return the instances of a MIG layout, in the order given.

    Raises ScenarioError or CapacityError, naming layouts that exist, where this one does not.
    """
    check_layout(device, layout)
    geometry = geometry_of(device)
    profiles = [geometry.by_name[name] for name in layout]
    return [
        Slice(
            name=f"{device.name}/{profile.name}",
            compute_share=geometry.compute_share(profile),
            bandwidth_share=profile.bandwidth_share,
            memory_bytes=profile.memory_bytes,
        )
        for profile in profiles
    ]
