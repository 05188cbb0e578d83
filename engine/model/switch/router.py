"""Which expert a token visits, and which tokens find their expert full (arXiv:2101.03961, 2.2).

In a sequence, each expert takes the first tokens that chose it, up to its capacity; the others
pass it by on the residual. Sequences do not take each other's places, and padding there is none.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear, one_hot


def most_probable(x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability (T, 1) and the id (T, 1) of each token's most probable expert.

    The product with `gate` (E, H) and the softmax are in float32, the paper's "selective
    precision"; experts are compared in the model's format, as transformers does.
    """
    probabilities = linear(x.float(), gate.float()).softmax(dim=-1).to(x.dtype)  # [T, E]
    best = probabilities.max(dim=-1, keepdim=True)
    return best.values, best.indices


def within_capacity(ids: Tensor, lengths: list[int], capacity: int, experts: int) -> Tensor:
    """Say of each token (T,) whether its expert `ids` (T,) has a place for it.

    `lengths` are those of the sequences that follow one another in the T tokens; a `capacity` of 0
    has no limit.

    >>> within_capacity(torch.tensor([0, 0, 1, 0, 0]), [4, 1], capacity=2, experts=2)
    tensor([ True,  True,  True, False,  True])
    """
    if not capacity or max(lengths, default=0) <= capacity:
        return torch.ones_like(ids, dtype=torch.bool)
    places = [_places(part, experts) for part in torch.split(ids, lengths)]
    return torch.cat(places) <= capacity


def _places(ids: Tensor, experts: int) -> Tensor:
    """Return each token's place, from 1 on, among those of a sequence that share its expert."""
    counts = one_hot(ids, experts).cumsum(dim=0)  # [n, E]
    return counts.gather(1, ids[:, None])[:, 0]
