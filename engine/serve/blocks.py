"""Which blocks of the KV cache each sequence lies in; the scheduler only counts them.

Blocks are free, or a sequence's own, or go by the name of their content. A named block belongs to
no sequence: it stays when its last user leaves, until the scheduler reuses its room.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from moesim.serving.sequences import Sequence


@dataclass(slots=True)
class _Held:
    """The blocks of one sequence in order; the first `shared` go by names."""

    ids: list[int] = field(default_factory=list)
    shared: int = 0


class Blocks:
    """The blocks of one cache, and where each sequence lies in it.

    >>> blocks = Blocks(num_blocks=4, block_size=2)
    >>> blocks.give(Sequence(0, prompt_tokens=5, output_tokens=1, blocks=3))
    [0, 1, 2]
    >>> blocks.take_back(0)
    >>> blocks.free
    [3, 2, 1, 0]
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.free = list(range(num_blocks - 1, -1, -1))
        self.named: dict[int, int] = {}
        self._block_size = block_size
        self._held: dict[int, _Held] = {}

    def of(self, request_id: int) -> list[int]:
        """Return the blocks that a sequence lies in."""
        held = self._held.get(request_id)
        return held.ids if held else []

    def give(self, sequence: Sequence) -> list[int]:
        """Return a sequence's blocks, as many as the scheduler counts by now.

        One that enters begins with the kept blocks that it was let in with.
        """
        held = self._held.get(sequence.request_id) or self._let_in(sequence)
        while len(held.ids) < sequence.blocks:
            held.ids.append(self.free.pop())
        return held.ids

    def borrow(self, request_id: int, count: int) -> list[int]:
        """Return `count` blocks for a sequence that comes back with its content."""
        held = self._held[request_id] = _Held([self.free.pop() for _ in range(count)])
        return held.ids

    def take_back(self, request_id: int) -> None:
        """Free a sequence's own blocks; the shared ones stay."""
        held = self._held.pop(request_id, None)
        if held:
            self.free.extend(reversed(held.ids[held.shared :]))

    def share(self, sequence: Sequence) -> None:
        """Name the prompt's blocks that are computed by now.

        Where another sequence has computed the same content before, its blocks are used from now
        on and these are freed. Sequences must come in the order in which the scheduler accounted
        for them.
        """
        held = self._held[sequence.request_id]
        if held.shared == len(sequence.prefix):
            return
        full = min(len(sequence.prefix), sequence.computed // self._block_size)
        for place in range(held.shared, full):
            own = held.ids[place]
            kept = self.named.setdefault(sequence.prefix[place], own)
            if kept != own:
                held.ids[place] = kept
                self.free.append(own)
        held.shared = full

    def forget(self, names: Iterable[int]) -> None:
        """Free the named blocks whose room is needed; nobody uses them any more."""
        self.free.extend(self.named.pop(name) for name in names)

    def _let_in(self, sequence: Sequence) -> _Held:
        kept = [self.named[name] for name in sequence.prefix[: sequence.shared]]
        held = self._held[sequence.request_id] = _Held(kept, sequence.shared)
        return held
