"""Number formats of weights and KV cache, and the bytes they take.

Quantised checkpoints keep embeddings, output head, norms and routers in 16 bits; only the matrices
of attention, FFNs and experts are narrowed. Formats of 8 bits carry a scale a matrix or an output
channel (under 0.1 % of the weights, not counted); `int4` carries a scale and a zero point a group.
"""

from dataclasses import dataclass
from typing import Self

from moesim.errors import ScenarioError

INT4_GROUP = 128
"""Weights that share a scale and a zero point (AWQ, arXiv 2306.00978; GPTQ's usual setting too)."""
INT4_GROUP_BITS = 16 + 4
"""A group's scale in fp16 and its zero point in 4 bits, as AWQ and GPTQ checkpoints store them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFormat:
    """How one number is stored, with its part of what a group shares."""

    bits: int
    group: int = 1
    group_bits: int = 0

    @property
    def quantised(self) -> bool:
        """Whether it is narrower than what embeddings, norms and routers are kept in."""
        return self.bits < 16

    def bytes_of(self, count: int) -> int:
        """Return the bytes of `count` numbers, begun groups and bytes counted whole [B].

        >>> FORMATS["bf16"].bytes_of(128), FORMATS["int4"].bytes_of(128)
        (256, 67)
        """
        bits = count * self.bits + -(-count // self.group) * self.group_bits
        return -(-bits // 8)


FORMATS = {
    "fp32": NumberFormat(bits=32),
    "bf16": NumberFormat(bits=16),
    "fp16": NumberFormat(bits=16),
    "fp8": NumberFormat(bits=8),
    "int8": NumberFormat(bits=8),
    "int4": NumberFormat(bits=4, group=INT4_GROUP, group_bits=INT4_GROUP_BITS),
}
"""The formats by name, widest first."""

KV_FORMATS = tuple(name for name in FORMATS if name != "int4")
"""Formats that engines offer for keys and values."""

OF_DTYPE = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""Our names of the dtypes that configurations name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The formats of a model's experts, of the rest of its weights, and of its KV cache.

    >>> Precision(experts="int4").rest
    'bf16'
    """

    experts: str = "bf16"
    rest: str = "bf16"
    kv: str = "bf16"

    def __post_init__(self) -> None:
        for field, known in (("experts", FORMATS), ("rest", FORMATS), ("kv", KV_FORMATS)):
            name = getattr(self, field)
            if name not in known:
                raise ScenarioError(f"precision.{field}: {name!r} is not one of {', '.join(known)}")

    @classmethod
    def uniform(cls, name: str) -> Self:
        """Return all weights in one format; the KV cache is never narrower than 16 bits."""
        kv = "bf16" if name in FORMATS and FORMATS[name].quantised else name
        return cls(experts=name, rest=name, kv=kv)

    @classmethod
    def of_dtype(cls, dtype: str) -> Self:
        """Return what a checkpoint of this dtype is served in, unless told otherwise."""
        return cls.uniform(OF_DTYPE[dtype])

    @property
    def plain(self) -> str:
        """The format of what is never quantised: embeddings, head, norms, routers, activations."""
        return "bf16" if FORMATS[self.rest].quantised else self.rest
