"""What is compared: ways to serve several variants from less, by how much and by how many share.

Every variant is asked for its own domain's held-out text. Rows are single measurements.

    alone          each variant served alone
    base           the base, which no domain was fine-tuned into
    layout         consolidation, most similar positions first
    random         the same in a random order
    mean experts   shared positions have the mean of the variants' experts
    average        one model for all: the mean of all weights
    task arithmetic, ties    one model for all, its scale chosen on validation text
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, Self

from engine.model.loading import load_model
from engine.quality.bits import bits_per_byte
from engine.quality.family import Family
from engine.quality.made import (
    consolidated,
    layout_of,
    merged,
    moved,
    shuffled,
    with_mean_experts,
)
from engine.variants.distances import Tell
from engine.variants.layout import Layout
from engine.variants.merging import State, average, task_arithmetic, ties
from engine.variants.positions import Model

RATIOS = tuple(eighth / 8 for eighth in range(9))
CONTROL_RATIOS = (0.25, 0.5, 0.75, 1.0)
"""Where the controls are measured beside the layout."""
NUMBER_RATIOS = (0.5, 1.0)
"""At which the number of variants is varied."""
ARITHMETIC_SCALES = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
TIES_SCALES = (0.1, 0.2, 0.4, 0.6, 1.0, 1.4, 1.8)
"""Scales that are tried on validation text; the papers find theirs within."""

Merge = Callable[[State, Sequence[State]], State]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How a variant answers when served in some way beside some others, in bits a byte."""

    seed: int
    method: str
    names: tuple[str, ...]
    variant: str
    bits: float
    ratio: float | None = None
    scale: float | None = None

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Return a row that was written as JSON, which has no tuples."""
        return cls(**{**row, "names": tuple(row["names"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Asks the models of a family, trained with `seed`, for held-out text in windows."""

    family: Family
    window: int
    seed: int

    def row(
        self,
        method: str,
        names: Sequence[str],
        variant: str,
        model: Model,
        *,
        ratio: float | None = None,
        scale: float | None = None,
    ) -> Row:
        """Ask a model for the test text of a variant."""
        bits = bits_per_byte(model, self.family.domain(variant).test, self.window)
        return Row(
            seed=self.seed, method=method, names=tuple(names), variant=variant, bits=bits,
            ratio=ratio, scale=scale,
        )  # fmt: skip

    def validation(self, model: Model, names: Sequence[str]) -> float:
        """Return the bits a byte of several variants' validation texts, on average."""
        texts = [self.family.domain(name).validation for name in names]
        return sum(bits_per_byte(model, text, self.window) for text in texts) / len(texts)


def by_ratio(measure: Measure, tell: Tell) -> list[Row]:
    """Compare ways to share at several ratios, between all variants of a family."""
    names = tuple(measure.family.folders)
    layout = layout_of(measure.family, names)
    control = shuffled(layout, measure.seed)
    parts = (
        _unshared(measure, names),
        _consolidated(measure, "layout", layout, RATIOS),
        _consolidated(measure, "random", control, CONTROL_RATIOS),
        _mean_experts(measure, layout, CONTROL_RATIOS),
        _merges(measure, names),
    )
    rows: list[Row] = []
    for done, part in enumerate(parts):
        tell(done / len(parts), "measuring")
        rows += part
    return rows


def by_number(measure: Measure, tell: Tell) -> list[Row]:
    """Compare ways to share everything, between every two, three and more variants of a family.

    Over all choices of n variants each is there equally often, so that n alone makes a difference.
    """
    everybody = tuple(measure.family.folders)
    rows = [*_unshared(measure, everybody)]
    groups = [
        group for count in range(2, len(everybody) + 1) for group in combinations(everybody, count)
    ]
    for done, names in enumerate(groups):
        tell(done / len(groups), f"measuring {len(names)} together")
        layout = layout_of(measure.family, names)
        rows += _consolidated(measure, "layout", layout, NUMBER_RATIOS)
        rows += _mean_experts(measure, layout, NUMBER_RATIOS)
        rows += _merges(measure, names)
    return rows


def _unshared(measure: Measure, names: Sequence[str]) -> Iterator[Row]:
    base = load_model(measure.family.base)
    for name in names:
        own = load_model(measure.family.folders[name])
        yield measure.row("alone", (name,), name, own)
        yield measure.row("base", names, name, base)


def _consolidated(
    measure: Measure, method: str, layout: Layout, ratios: Sequence[float]
) -> Iterator[Row]:
    for ratio in ratios:
        for name in layout.names:
            model = consolidated(measure.family, layout.with_ratio(ratio), name)
            yield measure.row(method, layout.names, name, model, ratio=ratio)


def _mean_experts(measure: Measure, layout: Layout, ratios: Sequence[float]) -> Iterator[Row]:
    for ratio in ratios:
        for name in layout.names:
            model = with_mean_experts(measure.family, layout.with_ratio(ratio), name)
            yield measure.row("mean experts", layout.names, name, model, ratio=ratio)


def _merges(measure: Measure, names: Sequence[str]) -> Iterator[Row]:
    """Measure the models that serve all variants alike."""
    mean = merged(measure.family, names, lambda _, states: average(states))
    for name in names:
        yield measure.row("average", names, name, mean)
    yield from _scaled(measure, "task arithmetic", names, task_arithmetic, ARITHMETIC_SCALES)
    yield from _scaled(measure, "ties", names, ties, TIES_SCALES)


def _scaled(
    measure: Measure,
    method: str,
    names: Sequence[str],
    merge: Callable[..., State],
    scales: Sequence[float],
) -> Iterator[Row]:
    """Measure a merging method at the scale that validation text, not test text, finds best."""
    # Both methods add a difference to the base, the scale times.
    whole = merged(measure.family, names, partial(merge, scale=1.0))
    models = {scale: moved(measure.family, whole, scale) for scale in scales}
    bits = {scale: measure.validation(model, names) for scale, model in models.items()}
    best = min(scales, key=bits.__getitem__)
    for name in names:
        yield measure.row(method, names, name, models[best], scale=best)
