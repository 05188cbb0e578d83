"""What the ranks of a group spend on telling each other their results.

Each layer adds up the ranks' partial sums twice, after the output projection of attention and after
the FFN or experts (Shoeybi et al. 2019): all-reduces of T tokens x hidden size. TensorRT-LLM does
the same where experts are dealt to ranks: every rank has all tokens, computes those of its own
experts, and the sums are all-reduced. (Dispatching tokens by all-to-all, as engines with
data-parallel attention do, is not modelled.) Left out are the all-reduce of the embedding and the
gathering of logits, once an iteration each.
"""

from collections.abc import Callable

from moesim.errors import ProfileError
from moesim.facts.hardware import AllReduce, Device, Line
from moesim.facts.models import ModelSpec

PER_LAYER = 2
"""All-reduces of a layer."""

RING_SHARE = 0.68
"""Share of NVLink's line rate that long messages reach: median of the shipped devices' fits."""

LATENCY_S = 4.45e-6
"""What the shortest messages take: median of the shipped devices' fits [s]."""


def collectives_s(
    spec: ModelSpec, device: Device, ranks: int, value_bytes: int
) -> Callable[[float], float]:
    """Return one layer's collectives over the iteration's tokens [s].

    `value_bytes` are those of one activation. Raises ProfileError without figures for the device.
    """
    reduce = all_reduce_of(device, ranks)
    token_bytes = spec.hidden_size * value_bytes
    return lambda tokens: PER_LAYER * reduce.seconds(tokens * token_bytes)


def all_reduce_of(device: Device, ranks: int) -> AllReduce:
    """Return how long a device's all-reduces over so many ranks take.

    Between numbers of ranks on file the next larger one's; without any, a ring at `RING_SHARE` of
    NVLink, in which 2 (n - 1) / n of the message leaves each rank (Patarasuk and Yuan 2009).
    """
    known = [count for count in sorted(device.all_reduce) if count >= ranks]
    if known:
        return device.all_reduce[known[0]]
    if device.nvlink_bytes_per_s is None:
        raise ProfileError(
            f"hardware.device {device.name}: neither all_reduce nor nvlink_bytes_per_s, which a "
            f"group of {ranks} needs; add one to the device's file"
        )
    one_way = device.nvlink_bytes_per_s / 2
    rate = RING_SHARE * one_way * ranks / (2 * (ranks - 1))
    line = Line(latency_s=LATENCY_S, bytes_per_s=rate)
    return AllReduce(short=line, long=line, typical_error=0.0)
