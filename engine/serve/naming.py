"""Names for the content of a prompt's blocks, by which prompts that begin alike share them."""

from array import array
from collections.abc import Sequence as Row
from hashlib import blake2b


def block_names(prompt: Row[int], block_size: int) -> tuple[int, ...]:
    """Return a name for each full block of a prompt, a hash of its tokens and all before them.

    >>> first, second = block_names([5, 9, 2, 7, 1], block_size=2)
    >>> block_names([5, 9, 2, 8], 2)[0] == first, block_names([5, 8, 2, 7], 2)[1] == second
    (True, False)
    """
    names, digest = [], b""
    for start in range(0, len(prompt) - block_size + 1, block_size):
        tokens = array("q", prompt[start : start + block_size]).tobytes()
        digest = blake2b(digest + tokens, digest_size=16).digest()
        names.append(int.from_bytes(digest))
    return tuple(names)
