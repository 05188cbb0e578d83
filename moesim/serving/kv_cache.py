"""KV-cache accounting by block: how many blocks a sequence needs, and how many are left.

Only counts live here. The engine keeps the identity of each block beside them, the simulator does
not need it.
"""

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
