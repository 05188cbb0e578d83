"""CUDA graphs of the decode step: its hundreds of launches as one.

A graph is captured for a few batch sizes; a batch of decodes is padded to the next of these and
laid into the graph's own tensors. The filling are copies of the first decode, so that they ask for
no expert that the batch does not ask for anyway, and write what the first decode writes:

    size 4, two decodes      token ids  5  9  5  5
                             positions  6  3  6  6
                             slots     30  7 30 30
                             lengths    7  4  7  7

Without a GPU the same padded step runs launch by launch. Shapes: n rows, P columns of the table.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.model.capture import capturing
from engine.model.decoder import Decoder
from engine.model.paged_decode import PagedStep, Pages, table
from engine.model.step import PagedKvCache
from engine.serve.inputs import Flat

LARGEST = 256
"""Decodes beyond which the launches of a step take less time than its arithmetic anyway."""


def graph_sizes(most: int) -> tuple[int, ...]:
    """Return the batch sizes to capture for up to `most` decodes, at most a third of it filling.

    >>> graph_sizes(20)
    (1, 2, 3, 4, 6, 8, 12, 16, 20)
    """
    most = min(most, LARGEST)
    powers = [1 << power for power in range(most.bit_length())]
    steps = {size for power in powers for size in (power, power * 3 // 2)}
    return tuple(sorted({size for size in steps if size < most} | {most}))


class Padded:
    """The tensors of padded decode steps, of up to `most` rows and `columns` blocks a sequence."""

    def __init__(self, most: int, columns: int, device: torch.device | str) -> None:
        self.numbers = torch.zeros(4, most, dtype=torch.long, device=device)
        self.blocks = torch.zeros(most, columns, dtype=torch.int32, device=device)
        self._every = torch.arange(most, device=device)

    def fill(self, batch: Flat, size: int) -> None:
        """Lay a batch of decodes into the first `size` rows."""
        filling = size - len(batch.decodes)
        rows = (batch.token_ids, batch.positions, batch.slots, batch.lengths)
        numbers = torch.tensor([row + row[:1] * filling for row in rows])
        blocks = torch.from_numpy(table([*batch.decodes, *batch.decodes[:1] * filling]))
        self.numbers[:, :size].copy_(numbers)
        self.blocks[:size, : blocks.shape[1]].copy_(blocks)

    def step(self, size: int) -> PagedStep:
        """Return the first `size` rows as a step; all emit."""
        token_ids, positions, slots, lengths = self.numbers[:, :size]
        rows = slice(0, size)
        return PagedStep(
            token_ids=token_ids,
            positions=positions,
            slots=slots,
            segments=[],
            pages=(Pages(rows=rows, blocks=self.blocks[rows], lengths=lengths),),
            emit_rows=self._every[rows],
        )


@dataclass(frozen=True, slots=True)
class Graph:
    """One captured size: `launch` runs it, after which `logits` (n, V) are the step's."""

    launch: Callable[[], None]
    logits: Tensor


class DecodeGraphs:
    """The captured decode steps of one decoder over one cache.

    `sizes` are the batch sizes that they were captured for. Captured before anything is served:
    the first runs write to the cache's first slot.
    """

    def __init__(
        self, decoder: Decoder, cache: PagedKvCache, sizes: Iterable[int], columns: int
    ) -> None:
        self.sizes = tuple(sorted(sizes))
        self._decoder, self._cache = decoder, cache
        self._padded = Padded(self.sizes[-1], columns, decoder.device)
        self._padded.numbers[3] = 1  # attention over nothing would not be a number
        self._pool: Any = None
        self._graphs: dict[int, Graph] = {}
        if decoder.device.type == "cuda":
            # The largest first: the others then find room in the memory that it took.
            self._graphs = {size: self._captured(size) for size in reversed(self.sizes)}

    def holds(self, batch: Flat) -> bool:
        """Whether a batch can be run here: decodes only, not too many, routed by the router.

        Not so where experts run batches of its size in a style that no graph can hold.
        """
        count = len(batch.decodes)
        return (
            not batch.chunks
            and count <= self.sizes[-1]
            and all(
                moe.routing == moe.route and moe.choice(count).capturable
                for moe in self._decoder.moe_layers
            )
        )

    def run(self, batch: Flat) -> Tensor:
        """Run one iteration of decodes; return the logits (S, V) of the emitting rows.

        They are overwritten by the next iteration.
        """
        size = next(size for size in self.sizes if size >= len(batch.decodes))
        self._padded.fill(batch, size)
        logits = self._launched(size)
        if batch.emit_rows == list(range(len(batch.decodes))):
            return logits[: len(batch.decodes)]
        return logits[torch.tensor(batch.emit_rows, dtype=torch.long, device=logits.device)]

    def _launched(self, size: int) -> Tensor:
        graph = self._graphs.get(size)
        if graph is None:
            return self._decoder.forward(self._padded.step(size), self._cache)
        graph.launch()
        return graph.logits

    def _captured(self, size: int) -> Graph:
        """Capture the step of one size, after a run that compiles and tunes its kernels."""
        step = self._padded.step(size)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._decoder(step, self._cache)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with capturing(graph, self._pool):
            logits = self._decoder(step, self._cache)
        self._pool = self._pool or graph.pool()
        return Graph(graph.replay, logits)
