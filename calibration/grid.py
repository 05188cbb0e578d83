"""Which iterations to measure: a grid of batches that covers what a replica can meet.

A decode batch of B sequences and a prefill chunk of n tokens give all operations at once. Context
and distinct experts act on different operations, so one sweep moves both. Decodes that the engine
replays as a graph are measured whole besides, as it serves them: at every captured size, at the
shortest and the longest context, so that attention is told from the rest.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from moesim.facts.models import ModelSpec
from moesim.serving.scheduling import Limits

POINT_KEY = r"^\d+@\d+(,\d+@\d+)*/(\d+|None|replayed)$"
"""The form of a point's name."""

REPLAYED = "replayed"


SHORTEST = 16
"""Context of the shortest decodes [tokens]."""


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence of a measured batch: `new_tokens` after `context` cached ones."""

    new_tokens: int
    context: int


@dataclass(frozen=True, slots=True)
class Point:
    """One batch to measure; `distinct` experts hit in every layer, None for natural routing.

    One that is `replayed` runs whole as the engine serves it, in place of operation by operation.
    """

    parts: tuple[Part, ...]
    distinct: int | None = None
    replayed: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of the batch."""
        return sum(part.new_tokens for part in self.parts)

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache once the batch has run."""
        return sum(part.new_tokens + part.context for part in self.parts)

    @property
    def chunked(self) -> bool:
        """Whether it is a prompt's chunk, rather than decodes."""
        return self.parts[0].new_tokens > 1

    @property
    def key(self) -> str:
        """A name for the point in a partial file."""
        parts = ",".join(f"{part.new_tokens}@{part.context}" for part in self.parts)
        return f"{parts}/{REPLAYED if self.replayed else self.distinct}"

    @classmethod
    def of(cls, key: str) -> Self:
        """Return the point of a name.

        >>> Point.of("1@5,1@5/2").key
        '1@5,1@5/2'
        """
        parts, _, distinct = key.partition("/")
        pairs = [part.split("@") for part in parts.split(",")]
        return cls(
            tuple(Part(int(new), int(context)) for new, context in pairs),
            int(distinct) if distinct.isdecimal() else None,
            distinct == REPLAYED,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Which batches a model under a replica's limits can meet, in rows: sizes of one kind."""

    spec: ModelSpec
    limits: Limits
    kv_tokens: int
    block_size: int
    graphs: tuple[int, ...] = ()
    """The sizes at which the engine replays decodes."""

    def decodes(self, sequences: int) -> list[Point]:
        """Return a row of so many decodes at several contexts; empty if the cache has no room."""
        longest = self._longest(sequences)
        if longest < 1:
            return []
        sweep = _sweep(self.spec, sequences, longest, lowest=1)
        return [Point((Part(1, context),) * sequences, distinct) for context, distinct in sweep]

    def replays(self, sequences: int) -> list[Point]:
        """Return so many decodes to replay, at the shortest and the longest context."""
        longest = self._longest(sequences)
        contexts = sorted({min(SHORTEST, longest), longest}) if longest >= 1 else []
        return [Point((Part(1, each),) * sequences, replayed=True) for each in contexts]

    def _longest(self, sequences: int) -> int:
        """Return the longest context of so many decodes; below 1 if the cache has no room."""
        room = self.kv_tokens // sequences - self.block_size
        return min(self.limits.max_model_len - 1, room)

    def chunk(self, new_tokens: int) -> list[Point]:
        """Return a row of one prompt's chunk after several contexts; empty without room."""
        longest = min(self.limits.max_model_len, self.kv_tokens - self.block_size) - new_tokens
        if longest < 0:
            return []
        sweep = _sweep(self.spec, new_tokens, longest, lowest=0)
        return [Point((Part(new_tokens, context),), distinct) for context, distinct in sweep]

    def points(self) -> list[Point]:
        """Return the grid to begin with: sizes that double, up to the limits."""
        found = []
        for sequences in _doubling(1, _most_decodes(self.limits)):
            found += self.decodes(sequences)
        for new_tokens in _doubling(4, self.limits.max_batched_tokens):
            found += self.chunk(new_tokens)
        for sequences in self.graphs:
            found += self.replays(sequences)
        return found


def held_out(
    limits: Limits, kv_tokens: int, count: int = 8, graphs: tuple[int, ...] = ()
) -> list[Point]:
    """Return mixed batches, naturally routed, that no table has seen.

    Up to a third of the sequences decode at random contexts, beside up to two fresh prompts of
    random length: what an iteration looks like under load. Decodes alone are replayed where the
    engine has `graphs` for as many.
    """
    rng = np.random.default_rng(0)
    candidates = []
    for _ in range(8 * count):
        decodes = int(rng.integers(1, max(2, _most_decodes(limits) // 3)))
        context = min(limits.max_model_len // 2, kv_tokens // (2 * decodes))
        prompt = max(3, min(limits.max_batched_tokens // 4, limits.max_model_len // 2))
        parts = [Part(1, int(c)) for c in rng.integers(1, max(2, context), decodes)]
        parts += [Part(int(n), 0) for n in rng.integers(2, prompt, rng.integers(0, 3))]
        alone = len(parts) == decodes <= max(graphs, default=0)
        candidates.append(Point(tuple(parts), replayed=alone))
    fitting = [point for point in candidates if _fits(point, limits, kv_tokens)]
    return fitting[:count]


def _most_decodes(limits: Limits) -> int:
    """Return how many sequences can decode in one iteration, a token each."""
    return min(limits.max_num_seqs, limits.max_batched_tokens)


def _fits(point: Point, limits: Limits, kv_tokens: int) -> bool:
    """Whether a replica could run the point, with 16 tokens to spare for each sequence's block."""
    return (
        point.tokens <= limits.max_batched_tokens
        and len(point.parts) <= limits.max_num_seqs
        and point.cached_tokens + 16 * len(point.parts) <= kv_tokens
        and max(part.context + part.new_tokens for part in point.parts) < limits.max_model_len
    )


def _doubling(first: int, last: int) -> list[int]:
    values = []
    while first < last:
        values.append(first)
        first *= 2
    return [*values, last]


def _sweep(spec: ModelSpec, tokens: int, longest: int, lowest: int) -> list[tuple[int, int]]:
    """Pair three contexts with three numbers of distinct experts."""
    fewest = max(1, spec.num_experts_per_tok)
    most = min(max(1, spec.num_local_experts), tokens * fewest)
    shortest = min(SHORTEST, longest) if lowest else 0
    contexts = (shortest, max(lowest, longest // 3), longest)
    distincts = (fewest, (fewest + most + 1) // 2, most)
    return sorted(set(zip(contexts, distincts, strict=True)))
