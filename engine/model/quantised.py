"""Weights in fewer bits: codes, and the scales that turn them back into numbers.

    fp8     e4m3 numbers, the largest of a row 448       w = scale * code
    int8    whole numbers from -127 to 127               w = scale * code
    int4    whole numbers from 0 to 15, two a byte       w = scale * (code - zero)

A row is one output channel. fp8 and int8 have a scale (float32) a row; int4 has a scale (float16)
and a zero (4 bits, two a byte) a group of 128 neighbours in a row. These are the bytes that
`moesim.facts.precision` reckons with, but for the scales of 8 bits, 4 B a row, and for what rows
of int4 begin and do not fill: a group, and half a byte of codes and of zeros.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from moesim.errors import EngineError
from moesim.facts.precision import INT4_GROUP

FP8 = torch.float8_e4m3fn
FP8_LARGEST = 448.0
"""Largest number of e4m3 without infinities (Micikevicius et al. 2022, arXiv 2209.05433)."""
INT8_LARGEST = 127
INT4_LARGEST = 15
SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""In place of 0, for rows of zeros."""
HALF_STEP, HALF_SMALLEST = 2.0**-11, 2.0**-24
"""Of float16: largest relative error of rounding a normal number, and the smallest number."""

ENCODED_AT_ONCE = 1 << 22
"""Weights that are turned into codes together: 16 MiB in float32, a few times over on the way."""

Parts = tuple[Tensor, ...]
"""Codes, scales and, in int4, zeros; all have rows in the dimension before their last but one."""


class Quantised(nn.Module):
    """A weight (out, in), or a stack of them (E, out, in), held as codes of the number `format`.

    `dtype` is what it was made from and is multiplied in. The parts of rows of `width` weights are
    codes (..., out, bytes), scales (..., out, 1 or groups) and, in int4, zeros (..., out, bytes).

    >>> weight = Quantised.of(torch.tensor([[0.5, -1.27]]), "int8")
    >>> weight.codes.tolist(), weight.dequantised().tolist()
    ([[50, -127]], [[0.5, -1.2699999809265137]])
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, number: str, width: int, dtype: torch.dtype, parts: Parts) -> None:
        super().__init__()
        self.format, self.width, self.dtype = number, width, dtype
        codes, scales, *zeros = parts
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros[0] if zeros else None)

    @classmethod
    def of(cls, weight: Tensor, number: str) -> "Quantised":
        """Turn a weight into codes, some rows at a time; EngineError where one is not finite."""
        *stack, width = weight.shape
        rows, height = weight.flatten(0, -2), max(1, ENCODED_AT_ONCE // width)
        encode = CODINGS[number].encode
        parts = [part.new_empty(len(rows), part.shape[-1]) for part in encode(rows[:1].float())]
        for top in range(0, len(rows), height):
            encoded = _checked(encode(rows[top : top + height].float()), number)
            for part, some in zip(parts, encoded, strict=True):
                part[top : top + height].copy_(some)
        return cls(number, width, weight.dtype, tuple(part.view(*stack, -1) for part in parts))

    @property
    def parts(self) -> Parts:
        """What is held: codes, scales and, in int4, zeros."""
        held = (self.codes, self.scales)
        return held if self.zeros is None else (*held, self.zeros)

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight that the codes stand for."""
        return torch.Size((*self.codes.shape[:-1], self.width))

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of all parts [B]."""
        return sum(part.nbytes for part in self.parts)

    @property
    def data(self) -> Tensor:
        """Refuse what plain weights give: the memory that their values lie in."""
        raise EngineError(
            f"weights: they are quantised to {self.format}; read or write checkpoints before that"
        )

    def __getitem__(self, index: int | slice) -> "Quantised":
        """Return one expert's weight, or some rows of a weight, without copying."""
        parts = tuple(part[index] for part in self.parts)
        return Quantised(self.format, self.width, self.dtype, parts)

    def dequantised(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the numbers that the codes stand for, rounded once to `dtype`."""
        return CODINGS[self.format].decode(self.parts, self.width, dtype or self.dtype)

    def extra_repr(self) -> str:
        """Say what is held, where torch prints a model."""
        return f"{self.format}, shape={tuple(self.shape)}"


Weight = Tensor | Quantised
"""A weight that is multiplied with, plain or in fewer bits."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How rows (n, in) in float32 become parts, and parts of any stack become numbers again."""

    encode: Callable[[Tensor], Parts]
    decode: Callable[[Parts, int, torch.dtype], Tensor]


def _encode_fp8(rows: Tensor) -> Parts:
    scales = _scales_of(rows, FP8_LARGEST)
    return (rows / scales).to(FP8), scales


def _encode_int8(rows: Tensor) -> Parts:
    scales = _scales_of(rows, INT8_LARGEST)
    return (rows / scales).round_().to(torch.int8), scales


def _scales_of(rows: Tensor, largest: float) -> Tensor:
    """Return the scales (n, 1) that take each row's largest weight to the largest code."""
    return (rows.abs().amax(-1, keepdim=True) / largest).clamp_(min=SMALLEST_SCALE)


def _encode_int4(rows: Tensor) -> Parts:
    """Spread 16 codes from each group's least to its largest weight, zero always among them."""
    groups = -(-rows.shape[-1] // INT4_GROUP)
    filled = pad(rows, (0, groups * INT4_GROUP - rows.shape[-1]))
    grouped = filled.view(-1, groups, INT4_GROUP)  # [n, groups, 128]
    least = grouped.amin(-1).clamp_(max=0.0)
    scales = _half_above((grouped.amax(-1).clamp_(min=0.0) - least) / INT4_LARGEST)
    steps = scales.float()
    zeros = (-least / steps).round_()  # [n, groups]
    codes = (grouped / steps.unsqueeze(-1)).round_() + zeros.unsqueeze(-1)
    codes = codes.clamp_(0, INT4_LARGEST).flatten(-2)[..., : rows.shape[-1]]
    return _packed(codes), scales, _packed(zeros)


def _half_above(numbers: Tensor) -> Tensor:
    """Round non-negative numbers to float16 and never below themselves, nor to zero.

    What is added outweighs the rounding: relative in normal numbers, 2^-25 in subnormal ones.
    """
    raised = numbers * (1 + HALF_STEP) + HALF_SMALLEST / 2
    return raised.half().clamp_(min=HALF_SMALLEST)


def _packed(numbers: Tensor) -> Tensor:
    """Put neighbours (..., n) into the low and high halves of (n + 1) // 2 bytes."""
    even = pad(numbers.to(torch.uint8), (0, numbers.shape[-1] % 2))
    return even[..., ::2] | (even[..., 1::2] << 4)


def _unpacked(codes: Tensor) -> Tensor:
    """Return the halves of each byte side by side."""
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)


def _decode_fp8(parts: Parts, width: int, dtype: torch.dtype) -> Tensor:
    codes, scales = parts
    numbers = codes.to(dtype)  # exact in all formats of weights
    return torch.mul(numbers, scales, out=numbers)  # in float32, rounded once


def _decode_int8(parts: Parts, width: int, dtype: torch.dtype) -> Tensor:
    codes, scales = parts
    return torch.mul(codes, scales, out=torch.empty_like(codes, dtype=dtype))


def _decode_int4(parts: Parts, width: int, dtype: torch.dtype) -> Tensor:
    codes, scales, zeros = parts
    groups = scales.shape[-1]
    above = _unpacked(codes).view(torch.int8)
    filled = pad(above, (0, groups * INT4_GROUP - above.shape[-1]))
    grouped = filled.view(*scales.shape, INT4_GROUP)
    grouped = grouped - _unpacked(zeros).view(torch.int8)[..., :groups, None]
    numbers = torch.empty_like(grouped, dtype=dtype)
    torch.mul(grouped, scales.float().unsqueeze(-1), out=numbers)
    return numbers.flatten(-2)[..., :width]


CODINGS = {
    "fp8": Coding(_encode_fp8, _decode_fp8),
    "int8": Coding(_encode_int8, _decode_int8),
    "int4": Coding(_encode_int4, _decode_int4),
}
"""The formats that weights can be narrowed to."""


def _checked(parts: Parts, number: str) -> Parts:
    """Refuse scales that are not numbers: a weight was not, or lies beyond the format of scales."""
    if not parts[1].isfinite().all():
        raise EngineError(
            f"weights: some are infinite, not a number or too large for {number}; "
            "give another checkpoint or leave the weights as they are"
        )
    return parts
