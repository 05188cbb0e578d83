"""A shelf: the cache of last used experts of the models on a slice, as their iterations fill it.

What an iteration misses depends on those before it, so its price does. The price of a model is
looked at again whenever another kind of iteration has run, and after 1, 2, 3, 4, 6, 8, 12, ...
equal ones: by then those looked back on are older by a half at most. Which iterations those are
depends on nothing but the course itself, so that every way to take it finds the same prices.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from moesim.cost.iteration import Cost
from moesim.cost.offload import Misses
from moesim.cost.recency import Past, Recency, Run
from moesim.serving.iterations import Floats
from moesim.simulation.course import Course

LOOKS = tuple(sorted(part << power for part in (2, 3) for power in range(40)))
"""Numbers of equal iterations after the first at which prices are looked at again."""

REMEMBERED = 4096
"""Runs of equal iterations that are remembered; far more than a cache reaches back."""

KEPT = 512
"""Prices that are kept, in case the same iterations went before again."""


class RecentCost(Cost):
    """A cost that depends on what a cache holds; by itself, with nothing there.

    `given` returns what iterations cost if they miss so much.
    """

    def __init__(self, empty: Cost, given: Callable[[Misses], Cost]) -> None:
        super().__init__(empty.tables)
        self.asked = empty.asked
        self._empty, self._given = empty, given
        self._known: dict[int, tuple[Misses, Cost]] = {}

    def after(self, misses: Misses) -> Cost:
        """Return the cost of iterations that miss so much."""
        if id(misses) not in self._known:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[id(misses)] = misses, self._given(misses)
        return self._known[id(misses)][1]

    def prefill_attention_s(self, new_tokens: int, cached: int) -> float:
        """Return the attention of one chunk over all layers [s]."""
        return self._empty.prefill_attention_s(new_tokens, cached)

    def basis(self) -> dict[str, str]:
        """Say what each operation's answers rest on."""
        return self._empty.basis()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shelf:
    """A cache, and the models that have it by their place on the slice.

    When the models ran, `noted` are by place the beginning of iterations [s] and what they copied.
    """

    recency: Recency
    places: tuple[int, ...]
    noted: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    _known: dict[tuple[int, tuple[Past, ...]], Misses] = field(default_factory=dict)

    def misses(self, variant: int, history: Sequence[Run]) -> Misses:
        """Return what a variant's next iteration misses."""
        past = self.recency.past(variant, history)
        key = variant, past
        if key not in self._known:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[key] = self.recency.misses(variant, past)
        return self._known[key]


@dataclass(slots=True)
class _Filled:
    """A shelf while iterations go on."""

    shelf: Shelf
    history: list[Run] = field(default_factory=list)
    current: dict[int, Misses] = field(default_factory=dict)

    def ran(self, variant: int, start_s: float, tokens: int, iterations: int) -> None:
        """Note equal iterations that ended."""
        copies = float(self.misses(variant).copied[:, tokens].sum()) * iterations
        self.shelf.noted[self.shelf.places[variant]].append((start_s, copies))
        history, tokens = self.history, self.shelf.recency.about(tokens)
        done = 0
        if history and history[-1][:2] == (variant, tokens):
            done = history.pop().iterations
        history.append(Run(variant, tokens, done + iterations))
        if len(history) > 2 * REMEMBERED:
            del history[:-REMEMBERED]
        still = done and looked_at(done) == looked_at(done + iterations)
        self.current = {variant: self.current[variant]} if still else {}

    def misses(self, variant: int) -> Misses:
        """Return what a variant's next iteration misses, as it was last looked at."""
        if variant not in self.current:
            history = self.history
            if history and history[-1].place == variant:
                looked = looked_at(history[-1].iterations)
                history = [*history[-REMEMBERED:-1], history[-1]._replace(iterations=looked)]
            self.current[variant] = self.shelf.misses(variant, history)
        return self.current[variant]

    def most(self, variant: int, tokens: int) -> int:
        """Return how many equal iterations may pass before prices are looked at again."""
        if not self.history or self.history[-1][:2] != (variant, self.shelf.recency.about(tokens)):
            return 1
        done = self.history[-1].iterations
        return LOOKS[bisect_right(LOOKS, done)] - done


def looked_at(iterations: int) -> int:
    """Return after how many of some equal iterations prices were looked at last.

    >>> [looked_at(count) for count in (1, 2, 5, 11, 12)]
    [1, 2, 4, 8, 12]
    """
    return LOOKS[bisect_right(LOOKS, iterations) - 1] if iterations > 1 else iterations


class Shelves:
    """The shelves of a slice while its models run."""

    def __init__(self, shelves: Sequence[Shelf]) -> None:
        self._at: dict[int, tuple[_Filled, int]] = {}
        for shelf in shelves:
            filled = _Filled(shelf)
            shelf.noted.update({place: [] for place in shelf.places})
            for variant, place in enumerate(shelf.places):
                self._at[place] = filled, variant

    def course(self, place: int) -> Course:
        """Return a course of a model whose iterations are noted."""
        return Course(ran=partial(self.ran, place), most=partial(self.most, place))

    def cost(self, place: int, usual: Cost) -> Cost:
        """Return what a model's next iteration costs."""
        if place not in self._at or not isinstance(usual, RecentCost):
            return usual
        filled, variant = self._at[place]
        return usual.after(filled.misses(variant))

    def ran(self, place: int, start_s: float, tokens: int, iterations: int) -> None:
        """Note equal iterations of a model that ended."""
        if place in self._at:
            filled, variant = self._at[place]
            filled.ran(variant, start_s, tokens, iterations)

    def most(self, place: int, tokens: int) -> int:
        """Return how many equal iterations of a model may pass before its price changes."""
        if place not in self._at:
            return LOOKS[-1]
        filled, variant = self._at[place]
        return filled.most(variant, tokens)


def copied_from(shelves: Sequence[Shelf]) -> dict[int, tuple[Floats, Floats]]:
    """Return by place when iterations began, (R,) [s], and what they copied, (R,)."""
    found = {}
    for shelf in shelves:
        for place, rows in shelf.noted.items():
            start_s, copies = np.array(rows).reshape(-1, 2).T
            found[place] = start_s, copies
    return found
