"""Multiplying with a weight, whatever it is held in.

A plain weight is torch's matter. fp8 on sm90 and later multiplies fp8 by fp8: activations are
narrowed too, with a scale a token. Everything else is dequantised and multiplied a tile of rows at
a time, which runs wherever torch does and needs no more memory than a tile.

    CPU, sm80    fp8, int8, int4    tiles
    sm90         int8, int4         tiles
                 fp8                fp8 by fp8, for bfloat16 and sizes of multiples of 16
"""

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, linear, scaled_mm

from engine.model.quantised import FP8, FP8_LARGEST, SMALLEST_SCALE, Quantised, Weight

TILE = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Weights of a tile: 4 MiB in float32, about a core's cache; 64 MiB in bfloat16, enough that a
GPU's launches do not count."""
TILE_BYTES = 8
"""Bytes that a weight of a tile takes on its way, at most: in int4 two halves (1), the two side by
side, filled up and less their zeros (3), and the number in float32 (4)."""


def project(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Multiply rows x (T, in) with a weight (out, in), and add the bias (out,): (T, out)."""
    if isinstance(weight, Tensor):
        return linear(x, weight, bias)
    product = fp8_product(x, weight) if multiplies_fp8(x, weight) else tiled_product(x, weight)
    return product if bias is None else product + bias


def multiplies_fp8(x: Tensor, weight: Quantised) -> bool:
    """Whether the device of x multiplies fp8 numbers of this shape with a scale a row."""
    return (
        weight.format == "fp8"
        and x.dtype == torch.bfloat16
        and x.is_cuda
        and torch.cuda.get_device_capability(x.device) >= (9, 0)
        and all(size % 16 == 0 for size in weight.shape)
    )


def fp8_product(x: Tensor, weight: Quantised) -> Tensor:
    """Narrow each row of x (T, in) to fp8 by its largest value, and multiply."""
    largest = x.abs().amax(-1, keepdim=True).float()
    scales = (largest / FP8_LARGEST).clamp_(min=SMALLEST_SCALE)  # [T, 1]
    codes = (x / scales).to(FP8)
    try:
        return scaled_mm(
            codes,
            weight.codes.t(),
            scales,
            ScalingType.RowWise,
            weight.scales.t(),  # [1, out]
            ScalingType.RowWise,
            output_dtype=x.dtype,
        )
    except RuntimeError:  # cuBLASLt has no such product of few long rows (pytorch/ao#4582)
        return _scaled_after(codes, scales, weight).to(x.dtype)


def _scaled_after(codes: Tensor, scales: Tensor, weight: Quantised) -> Tensor:
    """Multiply codes (T, in) without their scales (T, 1), and scale the float32 product."""
    one = scales.new_ones(1)
    product = scaled_mm(
        codes,
        weight.codes.t(),
        one,
        ScalingType.TensorWise,
        one,
        ScalingType.TensorWise,
        output_dtype=torch.float32,
    )
    return product * scales * weight.scales.t()


def tiled_product(x: Tensor, weight: Quantised) -> Tensor:
    """Multiply x (T, in) with some rows of the weight at a time, dequantised in the format of x."""
    height = max(1, TILE[x.device.type] // weight.width)
    if height >= weight.shape[0]:
        return linear(x, weight.dequantised(x.dtype))
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    for top in range(0, weight.shape[0], height):
        rows = slice(top, top + height)
        out[..., rows] = linear(x, weight[rows].dequantised(x.dtype))
    return out
