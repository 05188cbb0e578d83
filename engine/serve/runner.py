"""The runner: turns a scheduled batch into tensors, runs the decoder, samples the next tokens.

The scheduler counts KV blocks; the runner knows which they are, and copies those that it swaps.
Shapes: T tokens of the batch, S sequences that emit, V vocabulary.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Row

import torch
from torch import Tensor

from engine.model.decoder import Decoder
from engine.model.step import PagedKvCache, Segment, StepInput
from engine.model.stopwatch import Lap, no_lap
from engine.serve.blocks import Blocks
from engine.serve.sampling import Logprob, Sampler, Sampling, Stream, logprobs_of
from engine.serve.swapping import SwapSpace
from moesim.serving.sequences import Batch, Chunk, Sequence


class Runner:
    """A decoder with its paged cache, the tokens of each sequence and the blocks they lie in."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_blocks: int,
        block_size: int,
        sampling: Sampling,
        swap_blocks: int = 0,
    ) -> None:
        self.decoder = decoder
        self.cache = PagedKvCache(
            decoder.spec,
            num_blocks=num_blocks,
            block_size=block_size,
            device=decoder.device,
            dtype=decoder.dtype,
        )
        self.blocks = Blocks(num_blocks, block_size)
        self.swap = SwapSpace(self.cache, swap_blocks)
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, Logprob] = {}
        self._streams: dict[int, Stream] = {}
        self._block_size = block_size
        self._sampler = Sampler(sampling, decoder.device)

    @property
    def free_blocks(self) -> int:
        """Blocks that hold nothing of use."""
        return len(self.blocks.free)

    def add(self, request_id: int, prompt: Row[int], sampling: Sampling | None = None) -> None:
        """Take in the tokens of a prompt, to be answered by a rule of its own or the engine's."""
        self.tokens[request_id] = list(prompt)
        if sampling is not None:
            self._streams[request_id] = Stream(sampling, self.decoder.device)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that is not to be finished, wherever its blocks are."""
        self.swap.discard(sequence.request_id)
        self._remove(sequence)

    @torch.inference_mode()
    def run(self, batch: Batch, lap: Lap = no_lap) -> None:
        """Run one iteration; each emitting sequence gets its next token.

        `logprobs` are then those of this iteration's tokens, by request.
        """
        self._make_room(batch)
        emitting = [chunk for chunk in batch.chunks if chunk.emits]
        step = self._step_input(batch.chunks)
        lap("host")
        logits = self.decoder(step, self.cache, lap)  # [S, V]
        if emitting:
            chosen = self._sample(logits, emitting)
            lap("sampling")
            for chunk, token in zip(emitting, chosen, strict=True):
                self.tokens[chunk.sequence.request_id].append(token)

    def settle(self, batch: Batch, finished: Iterable[Sequence]) -> dict[int, list[int]]:
        """Follow the scheduler's account of an iteration; return the answers of who finished."""
        for chunk in batch.chunks:
            self.blocks.share(chunk.sequence)
        return {sequence.request_id: self._remove(sequence) for sequence in finished}

    def _sample(self, logits: Tensor, emitting: Row[Chunk]) -> list[int]:
        """Choose a token for each row of logits [S, V], by its request's own rule if it has one."""
        if not self._streams:
            return self._sampler(logits).tolist()
        keys = [chunk.sequence.request_id for chunk in emitting]
        streams = [self._streams.get(key) for key in keys]
        chosen = self._sampler(logits, streams)
        found = logprobs_of(logits, chosen, streams)
        self.logprobs = {keys[row]: logprob for row, logprob in found.items()}
        return chosen.tolist()

    def _make_room(self, batch: Batch) -> None:
        """Free the blocks of the preempted, swapped or not, then bring others' back."""
        for sequence in batch.swapped_out:
            key = sequence.request_id
            self.swap.store(key, self.blocks.of(key))
        for sequence in batch.preempted:
            self.blocks.take_back(sequence.request_id)
        self.blocks.forget(batch.evicted)
        for sequence in batch.swapped_in:
            key = sequence.request_id
            self.swap.restore(key, self.blocks.borrow(key, self.swap.stored(key)))

    def _remove(self, sequence: Sequence) -> list[int]:
        """Forget a sequence, free its blocks, and return its answer."""
        self.blocks.take_back(sequence.request_id)
        self._streams.pop(sequence.request_id, None)
        return self.tokens.pop(sequence.request_id)[sequence.prompt_tokens :]

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
            blocks = self.blocks.give(chunk.sequence)
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
