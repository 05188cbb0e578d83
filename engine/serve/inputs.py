"""From the chunks of an iteration to what the model takes in.

The host lays the batch out flat in lists first; from these come either fresh tensors or the rows of
a CUDA graph's own.
"""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Row
from dataclasses import dataclass, field

import torch

from engine.model.paged_decode import PagedStep, pages_of
from engine.model.step import Segment
from moesim.serving.sequences import Chunk, Sequence


@dataclass(slots=True)
class Flat:
    """A batch in lists: tokens one after the other, those of decodes first.

    `decodes` are the blocks of each sequence with one new token, `lengths` its tokens up to that;
    `chunks` are the starts, lengths, contexts and blocks of the others. `emit_rows` are the rows
    whose logits are wanted, in the order of the batch.
    """

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    decodes: list[Row[int]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    chunks: list[tuple[int, int, int, Row[int]]] = field(default_factory=list)
    emit_rows: list[int] = field(default_factory=list)

    def step(self, block_size: int, device: torch.device) -> PagedStep:
        """Return the batch in tensors."""
        return PagedStep(
            token_ids=torch.tensor(self.token_ids, device=device),
            positions=torch.tensor(self.positions, device=device),
            slots=torch.tensor(self.slots, device=device),
            segments=[
                Segment(
                    start=start,
                    length=length,
                    context=context,
                    blocks=torch.tensor(blocks, device=device),
                )
                for start, length, context, blocks in self.chunks
            ],
            pages=pages_of(self.decodes, self.lengths, block_size, device),
            emit_rows=torch.tensor(self.emit_rows, dtype=torch.long, device=device),
        )


def flat(
    chunks: Iterable[Chunk],
    tokens: Mapping[int, Row[int]],
    blocks_of: Callable[[Sequence], Row[int]],
    block_size: int,
) -> Flat:
    """Lay a batch out flat; `tokens` are those of each request, `blocks_of` where it lies."""
    batch, last_row = Flat(), dict[int, int]()
    chunks = list(chunks)
    for chunk in sorted(chunks, key=lambda chunk: chunk.new_tokens > 1):
        key, end = chunk.sequence.request_id, chunk.context + chunk.new_tokens
        blocks = blocks_of(chunk.sequence)
        if chunk.new_tokens == 1:
            batch.decodes.append(blocks)
            batch.lengths.append(end)
        else:
            start = len(batch.token_ids)
            batch.chunks.append((start, chunk.new_tokens, chunk.context, blocks))
        span = range(chunk.context, end)
        batch.token_ids.extend(tokens[key][chunk.context : end])
        batch.positions.extend(span)
        batch.slots.extend(blocks[p // block_size] * block_size + p % block_size for p in span)
        last_row[key] = len(batch.token_ids) - 1
    batch.emit_rows = [last_row[chunk.sequence.request_id] for chunk in chunks if chunk.emits]
    return batch
