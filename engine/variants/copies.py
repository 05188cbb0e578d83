"""The expert copies of variants of one model: how many there are, and who uses which.

At a shared position (layer, expert) one variant's copy serves all; elsewhere each variant has its
own. Copies are numbered by how much they should stay on the device: shared ones first, then private
ones, dealt to the variants in turn; of either kind the most popular first. `moesim.simulation`
takes the same ones to be resident.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Row
from dataclasses import dataclass

from engine.variants.positions import Position

Popularity = Mapping[Position, float]
"""Share of the tokens of its layer that visit an expert."""

GOLDEN = 0.6180339887498949
"""Stride that visits the layers evenly (the golden ratio's), where copies are equally popular."""

DIGITS = 12
"""Decimals of a popularity beyond which two are taken to be equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """The weights of one expert: those of a variant, for it alone or for all."""

    source: int
    position: Position
    shared: bool


class Copies:
    """The copies of `variants` models with experts at the same positions.

    `sources` names the variant whose copy serves all, for each shared position. `popularity` is a
    variant's each, where it is known.

    >>> one, other = Position(0, 0), Position(0, 1)
    >>> copies = Copies([one, other], variants=2, sources={other: 1})
    >>> [(copy.source, copy.position.expert) for copy in copies.all]
    [(1, 1), (0, 0), (1, 0)]
    >>> copies.number(0, other), copies.number(0, one), copies.number(1, one)
    (0, 1, 2)
    """

    def __init__(
        self,
        positions: Row[Position],
        variants: int,
        sources: Mapping[Position, int],
        popularity: Row[Popularity] | None = None,
    ) -> None:
        self.variants = variants
        known = popularity or [{}] * variants
        together = {at: sum(each.get(at, 0.0) for each in known) for at in positions}
        shared = [at for at in positions if at in sources]
        private = [at for at in positions if at not in sources]
        self.all = [
            Copy(source=sources[at], position=at, shared=True)
            for at in by_popularity(shared, together)
        ]
        own = [by_popularity(private, each) for each in known]
        self.all += [
            Copy(source=variant, position=at, shared=False)
            for turn in zip(*own, strict=True)
            for variant, at in enumerate(turn)
        ]
        self._numbers = {
            (variant, copy.position): number
            for number, copy in enumerate(self.all)
            for variant in (range(variants) if copy.shared else (copy.source,))
        }

    def __len__(self) -> int:
        return len(self.all)

    def number(self, variant: int, position: Position) -> int:
        """Return which copy a variant uses at a position."""
        return self._numbers[variant, position]

    def of(self, variant: int) -> dict[int, Position]:
        """Return the copies that are a variant's own weights, by number."""
        return {
            number: copy.position for number, copy in enumerate(self.all) if copy.source == variant
        }


def by_popularity(positions: Row[Position], popularity: Popularity) -> list[Position]:
    """Return positions, the most popular first; of equal ones, spread over the layers."""
    spread = {at: place * GOLDEN % 1.0 for place, at in enumerate(positions)}
    return sorted(positions, key=lambda at: (-round(popularity.get(at, 0.0), DIGITS), spread[at]))
