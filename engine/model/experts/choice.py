"""Which style runs how many tokens."""

from bisect import bisect_left
from dataclasses import dataclass

from engine.model.experts.styles import STYLES, Style


@dataclass(frozen=True, slots=True)
class Choice:
    """`styles[i]` runs up to `bounds[i]` tokens; the last runs any number beyond.

    >>> choice = Choice((STYLES["triton"], STYLES["grouped"]), bounds=(64,))
    >>> [choice(tokens).name for tokens in (1, 64, 65)]
    ['triton', 'triton', 'grouped']
    """

    styles: tuple[Style, ...]
    bounds: tuple[int, ...] = ()

    def __call__(self, tokens: int) -> Style:
        """Return the style for a batch of so many tokens."""
        return self.styles[bisect_left(self.bounds, tokens)]

    def __str__(self) -> str:
        if not self.bounds:
            return self.styles[0].name
        parts = [f"{s.name} to {b} tokens" for s, b in zip(self.styles, self.bounds, strict=False)]
        return ", ".join([*parts, f"{self.styles[-1].name} beyond"])


REFERENCE = Choice((STYLES["loop"],))
"""The readable loop for every batch."""
