"""What a device is: memory and the datasheet figures a planner compares with."""

from pydantic import BaseModel, ConfigDict, Field


class Device(BaseModel):
    """A device that replicas run on, as written in `data/hardware/*.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str
    """The device's name, as scenarios refer to it."""
    kind: str = Field(pattern="^(cuda|cpu)$")
    """`cuda` or `cpu`."""
    memory_bytes: int = Field(gt=0)
    """Memory for weights and KV cache [B]."""
    memory_bandwidth_bytes_per_s: float | None = Field(default=None, gt=0)
    """Datasheet memory bandwidth [B/s]."""
    bf16_flop_per_s: float | None = Field(default=None, gt=0)
    """Datasheet dense bf16 rate [FLOP/s]."""
    sms: int | None = Field(default=None, gt=0)
    """Streaming multiprocessors."""
    source: str
    """Where the figures come from."""
