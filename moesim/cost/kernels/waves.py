"""How products go with their tokens between measured sizes: the roofline, as tiles make it.

A product's output is cut into tiles, each computed by one streaming multiprocessor (SM) from start
to end: what is beyond the last full tile, or the last full wave of tiles, costs as much as a whole
one (tile and wave quantization; NVIDIA, Matrix Multiplication Background User's Guide).

| form | arithmetic takes | seen in |
|---|---|---|
| `roofline` | as long as its operations | NVIDIA's kernels for Hopper: tiles of many widths |
| `waves` | whole waves | NVIDIA's library before Hopper, in 16 bits |
| `rows` | all rows of its tiles | weights of 8 and 4 bits, widened for a tile of tokens at a time |

In the latter two, arithmetic hides part of the time to read and write: what both take together is
the root of the sum of their squares. Which form a table follows is found by cross-validation
(`validation.forms_of`). The numbers are those of the hardware and its libraries, none was fitted;
that these tiles and splits do better than more kinds was seen on TensorRT-LLM's table of an A100,
and `waves` then held on vLLM's and SGLang's, and on all three of an L40S (90th percentile of errors
down by three to six tenths).
"""

from functools import partial

import numpy as np

from moesim.cost.expected import PASS_S, Rates
from moesim.cost.kernels.curves import Floats
from moesim.cost.kernels.gemm import Form, gemm_moved_s, gemm_roofline_s
from moesim.errors import ProfileError
from moesim.facts.hardware import Device

TILES = ((256, 128), (128, 128))
"""Tokens and columns of a tile of output: the two largest kinds of NVIDIA's library (ibid.)."""

HELD = 32_768
"""Values of output that an SM holds at once: half of its 65,536 registers of 32 bits (NVIDIA, A100
whitepaper), the other half being for operands. One of the larger tiles, two of the smaller."""

SPLITS = (1, 2, 3, 4)
"""Parts into which a product's sums may be cut, each a tile's work, so that waves are fuller."""

SUM_BYTES = 4
"""Bytes of a part's sum, which is written and read again: 32 bits."""

LOWEST = 16
"""Tokens of the lowest tiles, there being some of 32 and 64 too: few tokens do not take tiles
that are made for many (`cutlass_heuristic.cpp` of TensorRT-LLM)."""

ROWS = 64
"""Tokens for which a tile widens its weights at once, where there are as many (ibid.)."""


def waves_s(
    rates: Rates, number_format: str, n: int, k: int, tokens: Floats, *, sms: int
) -> Floats:
    """Return a product's time where arithmetic comes in waves of tiles.

    The tiles and splits are those that take least, as the library counts: an SM with two tiles
    gives each half of its arithmetic, and beyond the first, waves are of as many tiles as all SMs
    hold. A second one that is nearly empty costs as much as one that is full.

    On 108 SMs, 4096 columns are 96 of the large tiles at 768 tokens, one wave, and 128 at 769, two.
    """
    tile_flop_per_s = rates.arithmetic(number_format, 1.0, 1.0) / sms
    least = np.full(np.shape(tokens), np.inf)
    for high, wide in TILES:
        tiles = np.ceil(tokens / high) * np.ceil(n / wide)
        each_s = 2.0 * np.minimum(high, _height(tokens)) * wide * k / tile_flop_per_s
        for parts in SPLITS:
            turns = _turns(tiles * parts, sms, HELD // (high * wide))
            least = np.minimum(least, turns * each_s / parts + _summing_s(rates, n, tokens, parts))
    return _together(gemm_moved_s(rates, number_format, n, k, tokens), least)


def _height(tokens: Floats) -> Floats:
    """Return the tokens of the lowest tile that takes them all.

    >>> _height(np.array([1.0, 16.0, 17.0, 65.0])).tolist()
    [16.0, 16.0, 32.0, 128.0]
    """
    return np.asarray(2.0 ** np.ceil(np.log2(np.maximum(tokens, LOWEST))))


def _turns(tiles: Floats, sms: int, held: int) -> Floats:
    """Return how many tiles the busiest SM computes, in full waves beyond the first.

    >>> _turns(np.array([108.0, 109.0, 216.0, 217.0]), 108, 2).tolist()
    [1.0, 2.0, 2.0, 4.0]
    """
    return np.where(tiles <= held * sms, np.ceil(tiles / sms), held * np.ceil(tiles / (held * sms)))


def _summing_s(rates: Rates, n: int, tokens: Floats, parts: int) -> Floats:
    """Return the time to write and read the sums of several parts; none of a single one."""
    moved = 0 if parts == 1 else 2 * parts * SUM_BYTES
    return np.asarray(moved * n * tokens / rates.bytes_per_s)


def rows_s(rates: Rates, number_format: str, n: int, k: int, tokens: Floats) -> Floats:
    """Return a product's time where arithmetic is done on all rows of its tiles.

    65 tokens are computed as 128, 17 as 32.
    """
    computed = np.where(tokens <= ROWS, _height(tokens), ROWS * np.ceil(tokens / ROWS))
    flop_per_s = rates.arithmetic(number_format, 1.0, 1.0)
    moved_s = gemm_moved_s(rates, number_format, n, k, tokens)
    return _together(moved_s, 2.0 * n * k * computed / flop_per_s)


def _together(moved_s: Floats, computed_s: Floats) -> Floats:
    return np.asarray(PASS_S + np.hypot(moved_s, computed_s))


def form_named(name: str, device: Device) -> Form:
    """Return the form that a file of kernels names.

    Raises ProfileError where it needs what the device's file does not say.
    """
    if name == "rows":
        return rows_s
    if name == "roofline":
        return gemm_roofline_s
    if device.sms is None:
        raise ProfileError(
            f"hardware.device {device.name}: no sms, which these kernels' products in waves need; "
            "add it to the device's file"
        )
    return partial(waves_s, sms=device.sms)


def forms_for(device: Device) -> dict[str, Form]:
    """Return the forms that products of a device may have, by name, the roofline first."""
    names = ("roofline", "rows") if device.sms is None else ("roofline", "rows", "waves")
    return {name: form_named(name, device) for name in names}
