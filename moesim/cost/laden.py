"""A cost with something on top: what iterations wait for besides the model's own operations."""

import numpy as np
from numpy.typing import NDArray

from moesim.cost.iteration import Cost

GIVEN = "scaled"
"""The basis of what is calculated from bandwidths that the scenario or a datasheet gives."""


class LadenCost(Cost):
    """Another cost, each iteration longer by what its number of tokens says.

    `extra_s` is that for 0, 1, ... tokens, (T + 1,) [s]; `name` is what it is called in the basis.
    `copies` are the expert copies that iterations of so many tokens wait for, if any; `basis` is
    what the extra rests on.
    """

    def __init__(
        self,
        own: Cost,
        extra_s: NDArray[np.float64],
        *,
        name: str,
        copies: NDArray[np.float64] | None = None,
        basis: str = GIVEN,
    ) -> None:
        tables = own.tables
        tokens = np.array(tables.tokens) + extra_s[: len(tables.tokens)]
        decoding = [
            (flat + more, slope)
            for (flat, slope), more in zip(tables.decoding, extra_s.tolist(), strict=False)
        ]
        super().__init__(tables._replace(tokens=tokens.tolist(), decoding=decoding))
        self.asked = own.asked
        self.copies = copies
        self._own, self._name, self._basis = own, name, basis

    def prefill_attention_s(self, new_tokens: int, cached: int) -> float:
        """Return the attention of one chunk over all layers [s]."""
        return self._own.prefill_attention_s(new_tokens, cached)

    def basis(self) -> dict[str, str]:
        """Say what each operation's answers rest on, and what those of the extra do."""
        return self._own.basis() | {self._name: self._basis}
