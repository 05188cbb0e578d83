"""Tensor parallelism: ranks that each hold a part of every layer run one decoder together.

As in Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053): of R ranks each has N / R query heads and
an R-th of the inner width of the plain networks and of every expert. What it makes of the tokens
after attention, and after the feed-forward part, is a summand of the layer's output; the ranks add
theirs up, twice a layer. Key and value heads are divided too, or repeated where there are fewer
than ranks. Whole on every rank are embedding, head, norms and routers, so that all ranks route
alike.

    4 query heads, 2 key heads    on 2 ranks    q0 q1 k0 | q2 q3 k1
                                  on 4 ranks    q0 k0 | q1 k0 | q2 k1 | q3 k1
"""

from collections.abc import Iterator
from collections.abc import Sequence as Row
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed

from engine.model.decoder import Decoder
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec

STACKED = "gate_up_proj"
"""How the tensor ends in whose rows two matrices lie one below the other, each to be divided."""

ADDED_ONCE = "o_proj.bias"
"""How the tensor ends that is added to every rank's summand; rank 0 alone keeps it."""


@dataclass(eq=False)
class Rank:
    """One of `count` processes that share a model."""

    number: int
    count: int

    def reduce(self, x: Tensor) -> Tensor:
        """Add up, in place, what a layer makes of tokens (T, H) on each rank."""
        if self.count > 1:
            try:
                distributed.all_reduce(x)
            except RuntimeError as wrong:
                raise EngineError(
                    f"rank {self.number} lost the others ({_gist(wrong)}); start all again"
                ) from None
        return x

    def part_of(self, spec: ModelSpec) -> ModelSpec:
        """Return the shape of one rank's part; EngineError where it cannot be divided so."""
        wrong = obstacle(spec, self.count)
        if wrong:
            fitting = [str(n) for n in range(1, self.count) if not obstacle(spec, n)]
            raise EngineError(f"tensor_parallel: {wrong}; take {' or '.join(fitting)}")
        return replace(
            spec,
            num_attention_heads=spec.num_attention_heads // self.count,
            num_key_value_heads=max(1, spec.num_key_value_heads // self.count),
            intermediate_size=spec.intermediate_size // self.count,
            dense_intermediate_size=spec.dense_intermediate_size // self.count,
        )

    def fill(self, place: Tensor, name: str, whole: Tensor) -> None:
        """Copy the rank's part of a tensor, called `name` in checkpoints, to its place.

        `whole` may be mapped from a file, of which no more is then read.
        """
        if name.endswith(ADDED_ONCE) and self.number > 0:
            place.zero_()
            return
        axis = _divided_axis(whole.shape, place.shape)
        stacked = 2 if name.endswith(STACKED) else 1
        pairs = zip(place.chunk(stacked, axis), whole.chunk(stacked, axis), strict=True)
        for own, matrix in pairs:
            size = own.shape[axis]
            # Fewer parts than ranks: key heads, which neighbouring ranks repeat.
            number = self.number * (matrix.shape[axis] // size) // self.count
            own.copy_(matrix.narrow(axis, number * size, size))


WHOLE = Rank(0, 1)
"""A process with a model of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where the ranks of one host find each other: a file that does not exist before.

    On `cuda` rank n has GPU n, and sums run over NCCL; on `cpu` over gloo. `patience_s` is how long
    a rank waits for the others in a sum before it gives up [s].
    """

    kind: str
    file: Path
    patience_s: float

    @contextmanager
    def joined(self, rank: Rank) -> Iterator[torch.device]:
        """Meet the others, and part from them in the end; yield the rank's device."""
        device = torch.device(f"cuda:{rank.number}" if self.kind == "cuda" else self.kind)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            distributed.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                init_method=self.file.as_uri(),
                rank=rank.number,
                world_size=rank.count,
                timeout=timedelta(seconds=self.patience_s),
                device_id=device if device.type == "cuda" else None,
            )
        except RuntimeError as wrong:
            raise EngineError(
                f"rank {rank.number} did not find the others ({_gist(wrong)}); start all again"
            ) from None
        try:
            yield device
        finally:
            distributed.destroy_process_group()


def obstacle(spec: ModelSpec, ranks: int) -> str | None:
    """Say why a model cannot be divided among so many ranks, or None if it can."""
    for field in ("num_attention_heads", "intermediate_size", "dense_intermediate_size"):
        if getattr(spec, field) % ranks:
            return f"{ranks} ranks do not divide {field} {getattr(spec, field)}"
    keys = spec.num_key_value_heads
    if keys % ranks and ranks % keys:
        return f"{ranks} ranks neither divide num_key_value_heads {keys} nor are a multiple of it"
    return None


class Shard(Decoder):
    """One rank's part of a decoder of the shape `whole`.

    Its `spec` is the part's: the shape of its layers and of its cache. All ranks take every step
    together, on devices of one kind.
    """

    def __init__(self, whole: ModelSpec, rank: Rank, device: torch.device | str = "cpu") -> None:
        super().__init__(rank.part_of(whole), device)
        self.whole = whole
        self.rank = rank
        for layer in self.decoder_layers:
            layer.reduce = rank.reduce


def decoder_of(spec: ModelSpec, rank: Rank, device: torch.device | str) -> Decoder:
    """Return a rank's decoder, its weights yet unset: a part, or all of it on a rank alone."""
    return Decoder(spec, device) if rank.count == 1 else Shard(spec, rank, device)


def _gist(error: Exception) -> str:
    """Return what an error of gloo or NCCL says, without its place in the source and its advice."""
    line = str(error).partition("\n")[0]
    return (line.partition("] ")[2] or line).partition(". ")[0]


def _divided_axis(whole: Row[int], own: Row[int]) -> int:
    """Return the dimension in which a part is smaller, 0 where it is all there is."""
    sizes = enumerate(zip(whole, own, strict=True))
    return next((axis for axis, (full, part) in sizes if full != part), 0)
