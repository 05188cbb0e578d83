"""The runner: turns a scheduled batch into tensors, runs the decoder, samples the next tokens.

The scheduler counts KV blocks; the runner knows which they are. Shapes: T tokens of the batch,
S sequences that emit, V vocabulary.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Row

import torch

from engine.model.decoder import Decoder
from engine.model.step import PagedKvCache, Segment, StepInput
from engine.model.stopwatch import Lap, no_lap
from engine.serve.sampling import Sampler, Sampling
from moesim.serving.sequences import Batch, Chunk, Sequence


class Runner:
    """A decoder with its paged cache, the tokens of each sequence and the blocks they lie in."""

    def __init__(
        self, decoder: Decoder, *, num_blocks: int, block_size: int, sampling: Sampling
    ) -> None:
        self.decoder = decoder
        self.cache = PagedKvCache(
            decoder.spec,
            num_blocks=num_blocks,
            block_size=block_size,
            device=decoder.device,
            dtype=decoder.dtype,
        )
        self._block_size = block_size
        self._sampler = Sampler(sampling, decoder.device)
        self._free = list(range(num_blocks - 1, -1, -1))
        self._blocks: dict[int, list[int]] = {}
        self.tokens: dict[int, list[int]] = {}

    @property
    def free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free)

    def add(self, request_id: int, prompt: Row[int]) -> None:
        """Take in the tokens of a prompt."""
        self.tokens[request_id] = list(prompt)
        self._blocks[request_id] = []

    def remove(self, sequence: Sequence) -> list[int]:
        """Forget a sequence, free its blocks, and return its tokens."""
        self._free_blocks_of(sequence.request_id)
        del self._blocks[sequence.request_id]
        return self.tokens.pop(sequence.request_id)

    @torch.inference_mode()
    def run(self, batch: Batch, lap: Lap = no_lap) -> None:
        """Run one iteration; each emitting sequence gets its next token."""
        for sequence in batch.preempted:
            self._free_blocks_of(sequence.request_id)
        emitting = [chunk for chunk in batch.chunks if chunk.emits]
        step = self._step_input(batch.chunks)
        lap("host")
        logits = self.decoder(step, self.cache, lap)  # [S, V]
        if emitting:
            chosen = self._sampler(logits).tolist()
            lap("sampling")
            for chunk, token in zip(emitting, chosen, strict=True):
                self.tokens[chunk.sequence.request_id].append(token)

    def _step_input(self, chunks: Iterable[Chunk]) -> StepInput:
        """Lay a batch out flat, decodes first."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        segments: list[Segment] = []
        emit_rows: dict[int, int] = {}
        chunks = list(chunks)
        for chunk in sorted(chunks, key=lambda chunk: chunk.new_tokens > 1):
            key, size = chunk.sequence.request_id, self._block_size
            end = chunk.context + chunk.new_tokens
            blocks = self._grown(chunk.sequence)
            segments.append(
                Segment(
                    start=len(token_ids),
                    length=chunk.new_tokens,
                    context=chunk.context,
                    blocks=torch.tensor(blocks, device=self.decoder.device),
                )
            )
            span = range(chunk.context, end)
            token_ids.extend(self.tokens[key][chunk.context : end])
            positions.extend(span)
            slots.extend(blocks[p // size] * size + p % size for p in span)
            emit_rows[key] = len(token_ids) - 1
        rows = [emit_rows[chunk.sequence.request_id] for chunk in chunks if chunk.emits]
        device = self.decoder.device
        return StepInput(
            token_ids=torch.tensor(token_ids, device=device),
            positions=torch.tensor(positions, device=device),
            slots=torch.tensor(slots, device=device),
            segments=segments,
            emit_rows=torch.tensor(rows, dtype=torch.long, device=device),
        )

    def _grown(self, sequence: Sequence) -> list[int]:
        blocks = self._blocks[sequence.request_id]
        while len(blocks) < sequence.blocks:
            blocks.append(self._free.pop())
        return blocks

    def _free_blocks_of(self, request_id: int) -> None:
        blocks = self._blocks[request_id]
        self._free.extend(reversed(blocks))
        blocks.clear()
