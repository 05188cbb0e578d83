"""How long one iteration takes where nobody profiled the server: a few numbers, each with a cause.

    fixed_s
    + mixed_s, where prompt tokens are in the batch
    + token_s x tokens
    + context_s x context summed over decodes
    + pair_s x sum over prompt chunks of new (cached + new / 2)

It is the roofline of a dense decoder (Williams et al., CACM 52(4), 2009) read cautiously: reading
the weights (in `fixed_s`) and computing on them (`token_s`) are added, where a perfect overlap
would cost only the longer of the two. Attention reads each cached token once in a decode
(`context_s`), and computes on each pair of a new token and one that it attends to in a prompt chunk
(`pair_s`); a chunk of n new tokens after c cached ones has n (c + n / 2) pairs. Servers run decodes
alone from captured graphs with kernels of their own, and any other batch without (`mixed_s`).

Sampling and the head have no parameter of their own: they grow with the sequences as decode's
tokens and context do, and a server's log cannot tell the three apart.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite

import numpy as np

from moesim.cost.iteration import Cost, Tables
from moesim.errors import ProfileError

FITTED = "fitted"
"""The basis of every answer: neither measured nor between measurements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineParameters:
    """The numbers of `AffineCost`, all in seconds.

    `fixed_s`: an iteration, whatever is in it: launching it, and reading all weights once.
    `mixed_s`: an iteration that prompt tokens are in: the general kernels, no captured graph.
    `token_s`: a token's arithmetic in all linear layers, prompt or generated; its sampling too.
    `context_s`: reading one cached token's keys and values in decode attention.
    `pair_s`: prefill attention of one new token to one token.
    """

    fixed_s: float
    mixed_s: float
    token_s: float
    context_s: float
    pair_s: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (isfinite(value) and value >= 0):
                raise ProfileError(f"{name}: {value!r} must be a number of seconds, 0 or more")
        if self.fixed_s == 0:
            raise ProfileError("fixed_s: 0 would let an iteration take no time; give it a duration")


PARAMETERS = tuple(field.name for field in fields(AffineParameters))

BOUNDS: Mapping[str, tuple[float, float]] = {
    "fixed_s": (1e-5, 1.0),
    "mixed_s": (0.0, 1.0),
    "token_s": (0.0, 1e-2),
    "context_s": (0.0, 1e-4),
    "pair_s": (0.0, 1e-6),
}
"""Least and most of each parameter [s]; wide: from one small accelerator to a CPU."""


class AffineCost(Cost):
    """The duration of any batch from `AffineParameters` [s]."""

    def __init__(
        self, parameters: AffineParameters, *, max_batched_tokens: int, max_num_seqs: int
    ) -> None:
        self.parameters = parameters
        super().__init__(self._laid_out(max_batched_tokens, max_num_seqs))

    def _laid_out(self, max_batched_tokens: int, max_num_seqs: int) -> Tables:
        p = self.parameters
        tokens = p.token_s * np.arange(max_batched_tokens + 1, dtype=np.float64)
        alone = min(max_num_seqs, max_batched_tokens) + 1
        each = np.ones(max_num_seqs + 1)
        return Tables.of(
            sequences=(p.fixed_s + p.mixed_s) * each,
            tokens=tokens,
            emitting=0.0 * each,
            alone=p.fixed_s + tokens[:alone],
            intercepts=0.0 * each,
            slopes=p.context_s * each,
        )

    def prefill_attention_s(self, new_tokens: int, cached: int) -> float:
        """Return the attention of one chunk over all layers [s]."""
        self.asked.new_tokens = max(self.asked.new_tokens, new_tokens)
        self.asked.cached = max(self.asked.cached, cached)
        return self.parameters.pair_s * pairs(new_tokens, cached)

    def basis(self) -> dict[str, str]:
        """Say that every answer rests on fitted numbers."""
        return {"iteration": FITTED}


def pairs(new_tokens: int, cached: int) -> float:
    """Return how many pairs of a new token and one it attends to a chunk has, diagonal halved.

    >>> pairs(4, 6)
    32.0
    """
    return new_tokens * (cached + new_tokens / 2)
