"""Merging, against numbers worked out by hand and a step-by-step reference."""

import pytest
import torch
from torch import Tensor

from engine.variants.merging import average, task_arithmetic, ties


def weights(*values: float) -> dict[str, Tensor]:
    """Return a model of two tensors: all values but the last, and the last."""
    return {"a": torch.tensor(values[:-1]), "b": torch.tensor(values[-1:])}


def values(model: dict[str, Tensor]) -> list[float]:
    return [*model["a"].tolist(), *model["b"].tolist()]


BASE = weights(1.0, 1.0, 1.0, 1.0, 1.0)
ONE = weights(5.0, 1.5, 0.0, 1.25, 1.0)
"""Differs from the base by 4, 0.5, -1, 0.25, 0."""
OTHER = weights(3.0, -1.0, 2.0, 1.0, 1.125)
"""Differs by 2, -2, 1, 0, 0.125."""


def test_the_average() -> None:
    assert values(average([ONE, OTHER])) == [4.0, 0.25, 1.0, 1.125, 1.0625]


def test_task_arithmetic_adds_all_differences() -> None:
    """Half of 6, -1.5, 0, 0.25, 0.125."""
    merged = task_arithmetic(BASE, [ONE, OTHER], 0.5)
    assert values(merged) == [4.0, 0.25, 1.0, 1.125, 1.0625]
    assert values(task_arithmetic(BASE, [ONE], 1.0)) == values(ONE)
    assert values(task_arithmetic(BASE, [ONE, OTHER], 0.0)) == values(BASE)


def test_ties_by_hand() -> None:
    """Trim to 3 of 5: 4, 0.5, -1, 0, 0 and 2, -2, 1, 0, 0. Elect +, -, none, none, none.

    Merge: the mean of 4 and 2 is 3; of the second weight -2 alone; where signs cancel nothing.
    """
    merged = ties(BASE, [ONE, OTHER], scale=1.0, kept=0.6)
    assert values(merged) == [4.0, -1.0, 1.0, 1.0, 1.0]
    doubled = ties(BASE, [ONE, OTHER], scale=2.0, kept=0.6)
    assert values(doubled) == [7.0, -3.0, 1.0, 1.0, 1.0]


def test_ties_trims_over_all_tensors_together() -> None:
    """The largest 20 % of ten weights are both in the first tensor; the second keeps none."""
    base = {"x": torch.zeros(5), "y": torch.zeros(5)}
    task = {"x": torch.tensor([9.0, 8.0, 1.0, 1.0, 1.0]), "y": torch.full((5,), 7.0)}
    merged = ties(base, [task])
    assert merged["x"].tolist() == [9.0, 8.0, 0.0, 0.0, 0.0]
    assert merged["y"].tolist() == [0.0] * 5


@pytest.mark.parametrize("seed", range(5))
def test_ties_weight_by_weight(seed: int) -> None:
    """As the paper's three steps have it, in plain Python, for three variants."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(40, generator=generator)
    states = [base + torch.randn(40, generator=generator) for _ in range(3)]
    tasks = [(state - base).tolist() for state in states]
    for task in tasks:
        bar = sorted(map(abs, task))[-8]
        task[:] = [value if abs(value) >= bar else 0.0 for value in task]
    expected = []
    for weight, changes in zip(base.tolist(), zip(*tasks, strict=True), strict=True):
        agreeing = [change for change in changes if change * sum(changes) > 0]
        expected.append(weight + 1.5 * (sum(agreeing) / len(agreeing) if agreeing else 0.0))
    merged = ties({"w": base}, [{"w": state} for state in states], scale=1.5, kept=0.2)
    assert merged["w"].tolist() == pytest.approx(expected, abs=1e-5)


def test_variants_that_did_not_change_are_the_base() -> None:
    assert values(ties(BASE, [BASE, BASE], kept=0.4)) == values(BASE)
    assert values(ties(BASE, [ONE, OTHER], kept=0.0)) == values(BASE)
