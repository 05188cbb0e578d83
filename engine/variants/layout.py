"""The layout of a consolidation: at which positions one copy serves all variants, and whose.

Positions are ranked, most similar first; each has a source, the variants taking turns. The first
`ratio` of the ranking is shared: there the source's expert serves every variant. At the others each
variant has its own. With variants a and b and a ratio of 0.5:

    position    distance   source
    (1, 0)      0.2        a          shared, a's copy
    (0, 1)      0.3        b          shared, b's copy
    (0, 0)      0.7        a          a has its own and b its own
    (1, 1)      0.9        b          the same

Another ratio is another end of the shared part, and nothing else (Imani et al., ICML 2025,
arXiv:2505.06481).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from engine.variants.positions import Position
from moesim.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One of the checkpoints: what it is called, and the digest it is known by."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A position in the ranking: how far apart its experts are, and whose is the one to share."""

    position: Position
    distance: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """When and with what a layout was made."""

    made: str
    moesim: str
    torch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which positions variants share. Raises EngineError where it contradicts itself."""

    ratio: float
    variants: tuple[Variant, ...]
    ranking: tuple[Ranked, ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        names = self.names
        if not 0 <= self.ratio <= 1:
            raise EngineError(f"ratio: {self.ratio} must be between 0 and 1")
        if len(names) < 2:
            raise EngineError(f"variants: {len(names)} given; consolidation needs two or more")
        for name in names:
            if names.count(name) > 1:
                raise EngineError(f"variants: {name!r} is there twice; name them NAME=FOLDER")
        seen: set[Position] = set()
        for one in self.ranking:
            where = f"positions: layer {one.position.layer} expert {one.position.expert}"
            if one.position in seen:
                raise EngineError(f"{where} is there twice; make the layout again")
            if one.source not in names:
                raise EngineError(f"{where}: source: {one.source!r} is not one of {names}")
            seen.add(one.position)

    @classmethod
    def ranked(
        cls,
        distances: Mapping[Position, float],
        variants: Sequence[Variant],
        ratio: float,
        provenance: Provenance,
    ) -> Self:
        """Rank positions by distance, equals in the positions' order; the variants take turns."""
        nearest = sorted(distances, key=lambda position: (distances[position], position))
        return cls(
            ratio=ratio,
            variants=tuple(variants),
            ranking=tuple(
                Ranked(
                    position=position,
                    distance=distances[position],
                    source=variants[place % len(variants)].name if variants else "",
                )
                for place, position in enumerate(nearest)
            ),
            provenance=provenance,
        )

    @property
    def names(self) -> list[str]:
        """What the variants are called, in order."""
        return [variant.name for variant in self.variants]

    @property
    def shared(self) -> dict[Position, str]:
        """The positions of which one copy serves all, with the name of whose it is."""
        count = round(self.ratio * len(self.ranking))
        return {one.position: one.source for one in self.ranking[:count]}

    @property
    def copies(self) -> int:
        """Experts that all variants together consist of."""
        shared = len(self.shared)
        return shared + len(self.variants) * (len(self.ranking) - shared)

    def sources_of(self, variant: str) -> dict[Position, str]:
        """Return whose expert a variant uses, at every position."""
        self.require(variant)
        shared = self.shared
        return {one.position: shared.get(one.position, variant) for one in self.ranking}

    def with_ratio(self, ratio: float) -> Self:
        """Return the same ranking with another part of it shared."""
        return replace(self, ratio=ratio)

    def require(self, variant: str) -> None:
        """Raise EngineError where no variant is called so."""
        if variant not in self.names:
            raise EngineError(f"variant: {variant!r} is not one of {', '.join(self.names)}")
