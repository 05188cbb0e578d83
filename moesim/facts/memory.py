"""What fits: weights and KV blocks against a device's memory, with the arithmetic shown."""

from dataclasses import dataclass

from moesim.errors import CapacityError
from moesim.facts.models import ModelSpec
from moesim.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """What one replica keeps in its device's memory [B]."""

    weight_bytes: int
    kv_bytes: int
    device_bytes: int

    @property
    def free_bytes(self) -> int:
        """What is left for activations and the runtime [B]."""
        return self.device_bytes - self.weight_bytes - self.kv_bytes


def place_replica(
    model: str, spec: ModelSpec, *, kv_blocks: int, block_size: int, device: str, device_bytes: int
) -> Residency:
    """Place a model's weights and KV blocks on a device.

    Raises CapacityError, with needs, has and remedy, when they do not fit.
    """
    residency = Residency(
        weight_bytes=spec.weight_bytes,
        kv_bytes=kv_blocks * block_size * spec.kv_bytes_per_token,
        device_bytes=device_bytes,
    )
    if residency.free_bytes < 0:
        block_bytes = block_size * spec.kv_bytes_per_token
        over = residency.weight_bytes + block_bytes - device_bytes
        remedy = (
            f"weights and a single block are {format_bytes(over)} too many; take a larger device"
            if over > 0
            else f"lower deployment.kv_blocks by {_blocks_over(residency, spec, block_size)} or "
            "take a larger device"
        )
        raise CapacityError(
            f"model {model} does not fit on {device}: weights "
            f"{format_bytes(residency.weight_bytes)} + KV cache {format_bytes(residency.kv_bytes)} "
            f"({kv_blocks} blocks of {block_size} tokens) > {format_bytes(device_bytes)}; {remedy}"
        )
    return residency


def _blocks_over(residency: Residency, spec: ModelSpec, block_size: int) -> int:
    return -(residency.free_bytes // (block_size * spec.kv_bytes_per_token))
