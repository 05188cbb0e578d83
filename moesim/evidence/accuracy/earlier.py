"""Kernels as engines had them before those in the tables: profiles with what these lacked.

| engine | what it had | what a profile then has |
|---|---|---|
| TensorRT-LLM 0.9 | experts by Ampere's instructions on Hopper | at most `flop_per_s` |
| vLLM before 0.4 | experts in tiles that nobody had tuned | at least what a `Tile` reads |
| the same, on A100 | experts by an early Triton | at most `TRITON_2024` |
| the same | NCCL's all-reduces, none of its own | at least `NCCL_S` |

A tile of m rows and n columns is a block of threads that reads, of each matrix of an expert, its n
columns for its own m rows, and its m rows for its own n columns. So all weights of an expert are
read once for each m visits, and each visit once for every n columns; most of that from the cache on
the chip, at `CACHE_BYTES_PER_S`. Of the last tile of an expert half is empty in the mean.

Sources: cpp/tensorrt_llm/kernels/cutlass_kernels/moe_gemm/moe_gemm_kernels_template.h of 0.9
(Apache-2.0), which has tiles for Ampere and no newer architecture; fused_moe.py of vLLM's pull
request 2542 (January 2024, Apache-2.0), with tiles of 64 x 64 wherever there are more visits than
experts; tiles were tuned by pull requests 2979 and 3389 (February and March 2024). vLLM's own
all-reduce (2192) was switched off again in February 2024 (2808) and on in March (2760).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from moesim.cost.collectives import PER_LAYER
from moesim.cost.parallel import Shard
from moesim.cost.profile import Cell, Profile
from moesim.facts.precision import FORMATS

CACHE_BYTES_PER_S = 4.3e12
"""How fast blocks of threads read again what the cache on the chip holds: the rate with which the
attention of TensorRT-LLM 0.9 is right (`served.XQA_0_9` says where it was found) [B/s]."""

NCCL_S: Mapping[tuple[str, int], float] = MappingProxyType(
    {
        ("a100-sxm-80gb", 2): 13.0e-6,
        ("a100-sxm-80gb", 4): 17.8e-6,
        ("a100-sxm-80gb", 8): 27.4e-6,
        ("h100-sxm-80gb", 2): 7.3e-6,
        ("h100-sxm-80gb", 4): 11.4e-6,
        ("h100-sxm-80gb", 8): 18.7e-6,
        ("h200-sxm-141gb", 2): 7.3e-6,
        ("h200-sxm-141gb", 4): 11.3e-6,
        ("h200-sxm-141gb", 8): 19.3e-6,
    }
)
"""What NCCL's all-reduces of 32 to 256 KB take, by device and ranks; of few bytes hardly less, and
long ones are NCCL's in all tables: medians of AIConfigurator's tables of NCCL 2.27 (H200: 2.26),
NVIDIA, Apache-2.0 [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """The part of a product's result that a block of threads computes."""

    rows: int
    """Visits of one expert."""
    columns: int
    """Columns of its weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What an engine's kernels were, where not as in the tables."""

    flop_per_s: tuple[tuple[str, float], ...] = ()
    """By device, the most that 16-bit experts reached on each [FLOP/s]."""
    tile: Tile | None = None
    """The tiles of its experts, where nobody had tuned them."""
    nccl: bool = False
    """Whether its all-reduces are NCCL's."""


TRITON_2024 = (("a100-sxm-80gb", 1.5e14),)
"""What vLLM's experts reach on A100 with tuned tiles, compiled by the Triton of early 2024: the
rate with which its batch of 32 prompts of 1,000 tokens on two A100 is right, four fifths of what
the tables' kernels reach [FLOP/s]. On H100 what tiles read takes longer."""

UNTUNED = Tile(rows=64, columns=64)
"""vLLM's tiles before they were tuned, where visits are more than experts; those for fewer visits
read nothing twice either."""


def as_earlier(profile: Profile, earlier: Earlier, shard: Shard, device: str, fmt: str) -> Profile:
    """Return the profile of a rank with earlier kernels, its experts' weights in a format."""
    most = dict(earlier.flop_per_s).get(device)
    if shard.spec.num_local_experts and most is not None:
        profile = _at_least(profile, "experts", lambda at: arithmetic_s(shard, at[0], most))
    if shard.spec.num_local_experts and earlier.tile is not None:
        tile = earlier.tile
        profile = _at_least(profile, "experts", lambda at: tiles_s(shard, tile, at[0], at[1], fmt))
    least_s = NCCL_S.get((device, shard.ranks))
    if earlier.nccl and least_s is not None:
        profile = _at_least(profile, "collectives", lambda _: PER_LAYER * least_s)
    return profile


def arithmetic_s(shard: Shard, tokens: float, flop_per_s: float) -> float:
    """Return what a rank's visits to the experts of a layer take at a rate [s]."""
    return 2.0 * shard.expert_parameters * _visits(shard, tokens) / flop_per_s


def tiles_s(shard: Shard, tile: Tile, tokens: float, distinct: float, fmt: str) -> float:
    """Return what reading tiles from the cache takes, `distinct` experts of a layer visited [s].

    Two tokens of Mixtral visit at most four experts: weights are read once for each of these, and
    the rows of four visits for every 64 columns.
    """
    visits, hit = _visits(shard, tokens), distinct / shard.expert_parallel
    blocks = max(hit, visits / tile.rows + hit / 2)
    values = shard.expert_parameters * (blocks + visits / tile.columns)
    return FORMATS[fmt].bytes_of(round(values)) / CACHE_BYTES_PER_S


def _visits(shard: Shard, tokens: float) -> float:
    """Return the visits of a rank, dealt experts visited alike."""
    return tokens * shard.spec.num_experts_per_tok / shard.expert_parallel


def _at_least(
    profile: Profile, name: str, least_s: Callable[[tuple[float, ...]], float]
) -> Profile:
    """Return a profile whose operation takes at least so long at each of its cells."""
    cells = [
        Cell.model_construct(
            at=cell.at, median_s=max(cell.median_s, least_s(cell.at)), spread=0.0, repeats=1
        )
        for cell in profile.operations[name]
    ]
    return profile.model_copy(
        update={
            "operations": {**profile.operations, name: cells},
            "bases": {**profile.bases, name: "extrapolated"},
        }
    )
