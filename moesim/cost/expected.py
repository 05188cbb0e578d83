"""What operations take at best: rooflines of one rank of a model on a part of a device.

Each operation takes the longer of its arithmetic and its memory traffic (Williams, Waterman and
Patterson 2009), at the share of the datasheet's rates that kernels of its kind reach. The shares
are medians over the kernel tables of AIConfigurator (NVIDIA, Apache-2.0) for A100, H100 and H200
(SXM), Mixtral's shapes:

| kernels | share of arithmetic, from 4096 tokens on | of bandwidth, few tokens |
|---|---|---|
| projections, plain FFNs, head | 0.77 (0.66 to 0.83) | 0.65 (0.52 to 0.76) |
| experts | 0.5 (0.21 to 0.82) | 0.86 (0.55 to 0.89) |
| prefill attention | 0.56 (0.45 to 0.65) | - |
| decode attention | - | 0.84 (0.48 to 0.94) |
| projections and FFNs in fp8 | 0.54 (0.43 to 0.64) of the fp8 rate | as above |
| experts in fp8, one rank | 0.63 (0.46 to 0.73) of the fp8 rate | as above |

(bf16 where not said, in brackets the 10th to 90th percentile on any of the three). Weights of 8 or
4 bits that are widened before they are multiplied compute at the 16-bit rate, at 0.82 of it by the
tables' few rows: the share of bf16 is taken. What kernels take at least is not in here, nor the
host, so that small batches are taken for faster than they are, and the more so the fewer bytes a
kernel reads: narrowed weights and many ranks. (`moesim.cost.roofline` adds the passes between.)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from moesim.cost.imbalance import largest_share
from moesim.cost.parallel import Shard
from moesim.errors import ProfileError
from moesim.facts.hardware import Device, no_fp8
from moesim.facts.models import ModelSpec
from moesim.facts.precision import FORMATS, Precision
from moesim.facts.slices import Slice

LINEAR_COMPUTE, LINEAR_BANDWIDTH = 0.77, 0.65
EXPERTS_COMPUTE, EXPERTS_BANDWIDTH = 0.5, 0.86
PREFILL_COMPUTE, DECODE_BANDWIDTH = 0.56, 0.84
FP8_LINEAR_COMPUTE, FP8_EXPERTS_COMPUTE = 0.54, 0.63

PASS_S = 3e-6
"""What a kernel takes at least that only passes over an iteration's tokens (AIConfigurator's system
files, for all three devices) [s]."""

Durations = Mapping[str, Callable[..., float]]
"""By operation: seconds at the coordinates of its cells."""

Popularity = Sequence[Sequence[float]]
"""Share of tokens that each expert of each layer with experts receives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a device, or a part of one, does at best."""

    flop_per_s: float
    """At 16 bits, and for all that is widened to them."""
    bytes_per_s: float
    fp8_flop_per_s: float | None = None
    device: str = ""

    @classmethod
    def of(cls, device: Device) -> "Rates":
        """Take the datasheet's; ProfileError where it is silent."""
        for name in ("bf16_flop_per_s", "memory_bandwidth_bytes_per_s"):
            if getattr(device, name) is None:
                raise ProfileError(
                    f"hardware.device {device.name}: no {name}, which a roofline needs; add it to "
                    "the device's file, or profile on the device"
                )
        return cls(
            flop_per_s=device.bf16_flop_per_s or 0.0,
            bytes_per_s=device.memory_bandwidth_bytes_per_s or 0.0,
            fp8_flop_per_s=device.fp8_flop_per_s,
            device=device.name,
        )

    def on(self, part: Slice) -> "Rates":
        """Return those of a part of the device, or of each device of a group."""
        fp8 = self.fp8_flop_per_s
        return Rates(
            flop_per_s=self.flop_per_s * part.compute_share,
            bytes_per_s=self.bytes_per_s * part.bandwidth_share,
            fp8_flop_per_s=None if fp8 is None else fp8 * part.compute_share,
            device=self.device,
        )

    def arithmetic(self, weights: str, share: float, fp8_share: float) -> float:
        """Return the FLOP/s with weights of a format; ProfileError for fp8 on a device without."""
        if weights != "fp8":
            return self.flop_per_s * share
        if self.fp8_flop_per_s is None:
            raise ProfileError(no_fp8(self.device))
        return self.fp8_flop_per_s * fp8_share


def expected_s(
    spec: ModelSpec,
    rates: Rates,
    *,
    precision: Precision | None = None,
    part: Slice | None = None,
    popularity: Popularity | None = None,
) -> Durations:
    """Return what each operation that computes or reads takes at best; the others cost nothing.

    `rates` are those of each rank of `part`. Weights are in the model's dtype unless `precision`
    says otherwise. Experts dealt to ranks take as long as on the most loaded one, by `popularity`
    (uniform unless given). A model without experts has one in each layer that every token visits;
    in a model with some plain layers, their FFNs are spread over all layers' projections.

    Raises ScenarioError where the model cannot be cut over the part.
    """
    precision = precision or Precision.of_dtype(spec.dtype)
    shard = Shard.of(spec, part)
    rest = rates.arithmetic(precision.rest, LINEAR_COMPUTE, FP8_LINEAR_COMPUTE)
    plain = rates.flop_per_s * LINEAR_COMPUTE
    sparse = rates.arithmetic(precision.experts, EXPERTS_COMPUTE, FP8_EXPERTS_COMPUTE)
    linear_bytes_per_s = rates.bytes_per_s * LINEAR_BANDWIDTH
    expert_bytes = FORMATS[precision.experts].bytes_of(shard.expert_parameters)
    kv_bytes = FORMATS[precision.kv].bytes_of(shard.kv_values_per_token) / spec.num_hidden_layers
    ffn_share = len(spec.dense_layers) / spec.num_hidden_layers if spec.num_local_experts else 0.0
    loads = _loads(spec, shard, popularity)

    def linear(parameters: int, weights: str, flop_per_s: float, count: float) -> float:
        moved = FORMATS[weights].bytes_of(parameters)
        return max(2 * parameters * count / flop_per_s, moved / linear_bytes_per_s)

    def ffn(tokens: float) -> float:
        return linear(shard.ffn_parameters, precision.rest, rest, tokens)

    def projections(tokens: float) -> float:
        attention = linear(shard.attention_parameters, precision.rest, rest, tokens)
        return attention + ffn_share * ffn(tokens)

    def experts(tokens: float, distinct: float) -> float:
        if not spec.num_local_experts:
            return ffn(tokens)
        visits_share, distinct_share = loads(tokens)
        flop = 2 * shard.expert_parameters * spec.num_experts_per_tok * tokens * visits_share
        own = spec.num_local_experts / shard.expert_parallel
        moved = expert_bytes * min(own, distinct * distinct_share)
        longer = max(flop / sparse, moved / (rates.bytes_per_s * EXPERTS_BANDWIDTH))
        return (1 - ffn_share) * longer

    def decode(sequences: float, context: float) -> float:
        return kv_bytes * context / (rates.bytes_per_s * DECODE_BANDWIDTH)

    def prefill(new: float, cached: float) -> float:
        # Scores and values, the masked half left out.
        flop = 4 * shard.query_width * new * (cached + new / 2)
        moved = kv_bytes * (cached + new)
        return max(
            flop / (rates.flop_per_s * PREFILL_COMPUTE),
            moved / (rates.bytes_per_s * DECODE_BANDWIDTH),
        )

    return {
        "projections": projections,
        "experts": experts,
        "attention_decode": decode,
        "attention_prefill": prefill,
        "head": lambda sequences: linear(shard.head_parameters, precision.plain, plain, sequences),
    }


def _loads(
    spec: ModelSpec, shard: Shard, popularity: Popularity | None
) -> Callable[[float], tuple[float, float]]:
    """Return, by tokens, the most loaded rank's share of visits and of distinct experts."""
    parts = shard.expert_parallel
    if parts == 1:
        return lambda tokens: (1.0, 1.0)
    given = popularity or uniform_popularity(spec)[:1]
    return cache(lambda tokens: largest_share(given, tokens, parts))


def uniform_popularity(spec: ModelSpec) -> list[list[float]]:
    """Return the popularity of routers that choose any expert alike.

    A row for each layer with experts; in a model without, for each layer its one expert.
    """
    if not spec.num_local_experts:
        return [[1.0]] * spec.num_hidden_layers
    share = spec.num_experts_per_tok / spec.num_local_experts
    rows = spec.num_hidden_layers - len(spec.dense_layers)
    return [[share] * spec.num_local_experts] * rows
