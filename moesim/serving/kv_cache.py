"""KV-cache accounting by block: how many blocks a sequence needs, and how many are left.

Only counts live here. The engine keeps the identity of each block beside them, the simulator does
not need it. `PrefixCache` keeps the blocks of prompts by their content, for prompts that begin
alike.
"""

from collections.abc import Sequence as Row
from dataclasses import dataclass, field

from moesim.errors import EngineError


@dataclass(slots=True)
class KvCache:
    """A pool of `num_blocks` blocks of `block_size` tokens each.

    >>> cache = KvCache(num_blocks=4, block_size=16)
    >>> cache.blocks_for(17)
    2
    >>> cache.resize(0, 2), cache.free_blocks
    (True, 2)
    >>> cache.resize(2, 5), cache.free_blocks
    (False, 2)
    """

    num_blocks: int
    block_size: int
    free_blocks: int = field(init=False)

    def __post_init__(self) -> None:
        if self.num_blocks <= 0 or self.block_size <= 0:
            raise EngineError(
                f"KV cache of {self.num_blocks} blocks of {self.block_size} tokens: "
                "both must be above zero; lower the weights' share of memory"
            )
        self.free_blocks = self.num_blocks

    def blocks_for(self, tokens: int) -> int:
        """Return the number of blocks that hold `tokens` tokens of one sequence."""
        return -(-tokens // self.block_size)

    def resize(self, held: int, wanted: int) -> bool:
        """Grow or shrink a sequence from `held` to `wanted` blocks; False if too few are free."""
        if wanted - held > self.free_blocks:
            return False
        self.free_blocks -= wanted - held
        return True

    def match(self, prefix: Row[int]) -> int:
        """Return how many leading blocks of a prompt are there already."""
        return 0

    def unused(self, prefix: Row[int]) -> int:
        """Return how many of these kept blocks nobody uses, so that they count as free."""
        return 0

    @property
    def shared_in_use(self) -> int:
        """Blocks that sequences share by name, each counted once."""
        return 0

    def hold(self, prefix: Row[int], wanted: int) -> bool:
        """Share the blocks of `prefix` and take the rest of `wanted`; False if too few are free."""
        return self.resize(0, wanted)

    def commit(self, prefix: Row[int], shared: int) -> int:
        """Offer the computed blocks of a prompt to others; return how many are now shared."""
        return 0

    def take_evicted(self) -> list[int]:
        """Return the names whose blocks were reused since this was last asked."""
        return []

    def release(self, prefix: Row[int], held: int) -> None:
        """Give back `held` blocks, of which those of `prefix` are shared."""
        self.free_blocks += held


@dataclass(slots=True)
class PrefixCache(KvCache):
    """A pool that keeps the full blocks of prompts after use, until it needs their room.

    As in vLLM's automatic prefix caching: a block goes by a name for its content and all before
    it; blocks that nobody uses count as free and are reused from the least recently used, a
    prompt's last block first. Unlike there, only prompts are kept, not answers; blocks without a
    name are reused before named ones; and when two prompts of the same content were computed side
    by side, one copy is dropped.

    >>> cache = PrefixCache(num_blocks=4, block_size=16)
    >>> cache.hold((), 3), cache.commit((7, 8), 0)
    (True, 2)
    >>> cache.release((7, 8), 3)
    >>> cache.free_blocks, cache.match((7, 8, 9))
    (4, 2)
    """

    evicted: list[int] = field(default_factory=list)
    """Names whose blocks were reused, until somebody takes them."""
    _users: dict[int, int] = field(default_factory=dict)
    _unused: dict[int, None] = field(default_factory=dict)

    def match(self, prefix: Row[int]) -> int:
        """Return how many leading blocks of a prompt are kept."""
        for count, name in enumerate(prefix):
            if name not in self._users:
                return count
        return len(prefix)

    def unused(self, prefix: Row[int]) -> int:
        """Return how many of these kept blocks nobody uses."""
        return sum(name in self._unused for name in prefix)

    @property
    def shared_in_use(self) -> int:
        """Blocks that sequences share by name, each counted once."""
        return len(self._users) - len(self._unused)

    def hold(self, prefix: Row[int], wanted: int) -> bool:
        """Share the kept blocks of `prefix` and take the rest of `wanted` as new ones."""
        revived = self.unused(prefix)
        if wanted - len(prefix) + revived > self.free_blocks:
            return False
        for name in prefix:
            self._users[name] += 1
            self._unused.pop(name, None)
        self.free_blocks -= revived
        return self.resize(len(prefix), wanted)

    def resize(self, held: int, wanted: int) -> bool:
        """Grow or shrink a sequence, reusing kept blocks when there are no others."""
        if wanted - held > self.free_blocks:
            return False
        self.free_blocks -= wanted - held
        while len(self._unused) > self.free_blocks:
            name = next(iter(self._unused))
            del self._unused[name], self._users[name]
            self.evicted.append(name)
        return True

    def commit(self, prefix: Row[int], shared: int) -> int:
        """Name the computed blocks of a prompt that are not shared yet."""
        for name in prefix[shared:]:
            if name not in self._users:
                self._users[name] = 1
                continue
            self._users[name] += 1
            if name in self._unused:
                del self._unused[name]  # taken from the free in place of the copy given back
            else:
                self.free_blocks += 1
        return max(shared, len(prefix))

    def take_evicted(self) -> list[int]:
        """Return the names whose blocks were reused since this was last asked."""
        taken, self.evicted = self.evicted, []
        return taken

    def release(self, prefix: Row[int], held: int) -> None:
        """Give back `held` blocks; the shared ones among them stay until their room is needed."""
        self.free_blocks += held - len(prefix)
        for name in reversed(prefix):
            self._users[name] -= 1
            if not self._users[name]:
                self._unused[name] = None
                self.free_blocks += 1
