"""Merging variants into one model, which serves all: what consolidation is compared with.

Everything here takes state dicts, name to tensor, with the same names and shapes, and returns one.

    average           uniform soup, Wortsman et al. 2022, arXiv:2203.05482
    task_arithmetic   Ilharco et al. 2023, arXiv:2212.04089
    ties              Yadav et al. 2023, arXiv:2306.01708
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def average(states: Sequence[State]) -> dict[str, Tensor]:
    """Return the mean of the variants' weights."""
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def task_arithmetic(base: State, states: Sequence[State], scale: float) -> dict[str, Tensor]:
    """Add the variants' differences from their base to it, `scale` times.

    With one n-th as the scale it is the mean of n variants.
    """
    return {
        name: weight + scale * sum(state[name] - weight for state in states)
        for name, weight in base.items()
    }


def ties(
    base: State, states: Sequence[State], scale: float = 1.0, kept: float = 0.2
) -> dict[str, Tensor]:
    """Add what the variants' differences from their base agree on, `scale` times.

    Of each difference only the share `kept` of largest values stays (trim); each weight takes the
    sign of their sum (elect), and the mean of those that have it (merge). 0.2 and 1 are what the
    paper uses where nothing can be tuned.
    """
    tasks = [_trimmed(_flat(state) - _flat(base), kept) for state in states]
    stacked = torch.stack(tasks)  # [n, P]
    sign = stacked.sum(0).sign()  # [P]
    agreeing = (stacked.sign() == sign) & (stacked != 0)
    merged = (stacked * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)
    return _unflattened(_flat(base) + scale * merged, base)


def _trimmed(task: Tensor, kept: float) -> Tensor:
    """Set all but the largest values of a difference (P,) to zero."""
    count = round(kept * task.numel())
    if not count:
        return torch.zeros_like(task)
    smallest = task.abs().kthvalue(task.numel() - count + 1).values
    return task * (task.abs() >= smallest)


def _flat(state: State) -> Tensor:
    """Return all weights in one row (P,), in the order of their names."""
    return torch.cat([state[name].flatten() for name in sorted(state)])


def _unflattened(row: Tensor, like: State) -> dict[str, Tensor]:
    parts = torch.split(row, [like[name].numel() for name in sorted(like)])
    return {name: part.view_as(like[name]) for name, part in zip(sorted(like), parts, strict=True)}
