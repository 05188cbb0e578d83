"""An iteration's batch as bytes, on its way from rank 0 to the others.

All its rows of whole numbers lie one after the other in int64, behind how many rows there are and
how long each is. First come the six rows that every batch has, then the blocks of each sequence.
"""

from itertools import chain

import numpy as np

from engine.serve.inputs import Flat


def packed(batch: Flat) -> bytes:
    """Return a batch as bytes."""
    rows = [
        batch.token_ids,
        batch.positions,
        batch.slots,
        batch.lengths,
        batch.emit_rows,
        [number for *head, _ in batch.chunks for number in head],
        *batch.decodes,
        *(blocks for *_, blocks in batch.chunks),
    ]
    sizes = [len(rows), *map(len, rows)]
    count = len(sizes) + sum(sizes[1:])
    return np.fromiter(chain(sizes, *rows), dtype=np.int64, count=count).tobytes()


def unpacked(letter: bytes) -> Flat:
    """Return the batch that was packed.

    >>> batch = Flat(token_ids=[7, 8], chunks=[(0, 2, 4, [3, 5])], emit_rows=[1])
    >>> unpacked(packed(batch)) == batch
    True
    """
    numbers = np.frombuffer(letter, dtype=np.int64)
    ends = numbers[1 : 1 + numbers[0]].cumsum()
    rows = [row.tolist() for row in np.split(numbers[1 + numbers[0] :], ends[:-1])]
    token_ids, positions, slots, lengths, emit_rows, heads, *blocks = rows
    starts = zip(heads[::3], heads[1::3], heads[2::3], blocks[len(lengths) :], strict=True)
    return Flat(
        token_ids=token_ids,
        positions=positions,
        slots=slots,
        decodes=blocks[: len(lengths)],
        lengths=lengths,
        chunks=list(starts),
        emit_rows=emit_rows,
    )
