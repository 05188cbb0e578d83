"""What a share came to: so many of a device's cores or SMs."""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """So many units of a device, in words that a profile keeps: `1/2 cores`, `56/132 SMs`."""

    units: int
    of: int
    what: str

    @property
    def share(self) -> Fraction:
        """The part of the device that it is."""
        return Fraction(self.units, self.of)

    def __str__(self) -> str:
        return f"{self.units}/{self.of} {self.what}"


def read_part(text: str) -> Part:
    """Return a part from its words.

    >>> read_part("56/132 SMs").share
    Fraction(14, 33)
    """
    numbers, _, what = text.partition(" ")
    units, _, of = numbers.partition("/")
    return Part(units=int(units), of=int(of), what=what)
