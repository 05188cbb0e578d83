"""The log of a replica's iterations, from which gaps between tokens and time series are exact.

A row is a run of iterations of one batch. Its iterations last `first_s`, `first_s + growth_s`,
`first_s + 2 growth_s` and so on, since decode attention is linear in the context; a run of one
iteration is what an engine or a stepping simulator logs.

A gap between two tokens of a request (its ITL) is an iteration's duration where the request also
got a token at the end of the iteration before. `sequences` counts those. A request that was passed
over or preempted in between has one longer gap: a row of `late`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

COUNTS = frozenset({"iterations", "sequences", "tokens", "context"})
"""The columns of `Iterations` that are whole numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """Gaps longer than an iteration: a request's token at `since_s` and its next at `until_s`."""

    request_id: Integers
    since_s: Floats
    until_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Iterations:
    """Runs of iterations of one replica in order of time, one array a column, (R,) each.

    `start_s` is when a run's first iteration begins; `iterations` how many there are; `sequences`
    how many get a token in each that follows their last one at once; `tokens` how many enter the
    model in each; `context` how many were in the KV cache before the first.
    """

    start_s: Floats
    first_s: Floats
    growth_s: Floats
    iterations: Integers
    sequences: Integers
    tokens: Integers
    context: Integers
    late: Late

    def __len__(self) -> int:
        return len(self.start_s)

    @property
    def duration_s(self) -> Floats:
        """Duration of each run, (R,)."""
        steps = self.iterations
        return np.asarray(steps * (self.first_s + self.growth_s * (steps - 1) / 2))

    @property
    def late_ended(self) -> Integers:
        """How many late gaps end with each run, (R,)."""
        run = np.searchsorted(self.start_s, self.late.until_s, side="left") - 1
        return np.bincount(run, minlength=len(self)).astype(np.int64)

    @property
    def gaps(self) -> int:
        """Gaps between tokens, regular and late."""
        return int(self.iterations @ self.sequences) + len(self.late.request_id)


def iterations_of(
    rows: Sequence[tuple[float, ...]], late: list[tuple[int, float, float]]
) -> Iterations:
    """Build the log from rows in the order of its columns, and the rows of `Late`."""
    return iterations_from(np.array(rows, dtype=float).reshape(-1, 7).T, late)


def iterations_from(columns: Floats, late: list[tuple[int, float, float]]) -> Iterations:
    """Build the log from an array (7, R) of its columns, and the rows of `Late`."""
    names = [field.name for field in fields(Iterations) if field.name != "late"]
    gaps = np.array(late, dtype=float).reshape(-1, 3)
    return Iterations(
        **{
            name: column.astype(np.int64) if name in COUNTS else column
            for name, column in zip(names, columns, strict=True)
        },
        late=Late(request_id=gaps[:, 0].astype(np.int64), since_s=gaps[:, 1], until_s=gaps[:, 2]),
    )
