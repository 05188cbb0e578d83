"""What came out of one published system."""

from collections.abc import Callable
from dataclasses import dataclass

from moesim.reproduction.annex import Annex
from moesim.reproduction.claims import Claim
from moesim.reproduction.picture import Picture
from moesim.reproduction.publication import Constant, Publication

Told = Callable[[float], None]
"""Told the share of a system that is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A publication, its claims judged, its plots; `fitted` are constants found in this run."""

    publication: Publication
    claims: tuple[Claim, ...]
    pictures: tuple[Picture, ...]
    fitted: tuple[Constant, ...] = ()
    annexes: tuple[Annex, ...] = ()

    @property
    def constants(self) -> tuple[Constant, ...]:
        """All that the scenarios rest on."""
        return (*self.publication.constants, *self.fitted)
