"""One link to the host, several replicas: how much longer copies take when all are busy.

MIG instances and MPS shares of a GPU divide everything but its link, so their copies share its
bandwidth equally while they overlap (processor sharing). Each replica goes round: Z seconds without
the link, then D seconds of link time at full bandwidth. That is a closed network of one processor-
sharing station and a delay, with one customer for each replica, whose averages are exact (Reiser
and Lavenberg, JACM 27(2), 1980) and depend on Z and D by their means alone (Baskett, Chandy, Muntz
and Palacios, JACM 22(2), 1975): R_i is D_i times 1 plus the mean number of others that i finds on
the link, which is what they have there in a network without i:

    R_i(S) = D_i (1 + sum over j of Q_j(S - i)),  Q_i(S) = R_i(S) / (Z_i + R_i(S)).

Only replicas whose times never vary and are multiples of each other escape this: they lock into
step, to collide always or never, and over all phases their copies take up to 11 % longer.

The host's CPU, where absent experts are computed, is such a station too. Link and CPU are reckoned
apart: for each the other is part of Z. The factors are then never too low for what any iteration
asks, though none may ask for the most of both.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import isfinite, prod

from moesim.errors import ScenarioError

MOST_SUBSETS = 2**16
"""Groups of unlike replicas that the recursion goes through in a second or so."""


def stretch(shares: Sequence[float], *, overlapped: bool = False) -> tuple[float, ...]:
    """Return by what factor the link time of each busy replica is stretched by the others.

    `shares` is, for each, the largest share D / (Z + D) of its time that it needs the link for when
    alone. Iterations that need it less are then taken for slower than they are, never for faster:
    together they use no more than the whole link, whatever they ask.

    With `overlapped` copies a replica computes while it copies, so Z + f D overstates how long it
    takes. Its factor is then no less than what leaves each its fair part of the link.

    >>> [round(factor, 3) for factor in stretch([0.5, 0.5])]
    [1.5, 1.5]
    >>> stretch([1.0, 1.0, 1.0])
    (3.0, 3.0, 3.0)
    """
    _check(shares)

    @cache
    def crowd(members: tuple[float, ...]) -> float:
        """Return how many of the members are on the link on average."""
        counts = Counter(members)
        return sum(n * _presence(s, 1 + crowd(_without(members, s))) for s, n in counts.items())

    members = tuple(sorted(shares))
    factors = [1 + crowd(_without(members, share)) for share in shares]
    if overlapped:
        level = fair_level(shares)
        factors = [
            max(factor, 1 / level) if share > level else factor
            for factor, share in zip(factors, shares, strict=True)
        ]
    return tuple(factors)


def fair_level(shares: Sequence[float]) -> float:
    """Return what of the link each gets at most, where none gets more than it asks for.

    Max-min fairness (Bertsekas and Gallager, Data Networks, 1992, section 6.5.2): whoever asks for
    less than the level is served in full, and the level is what the others divide.

    >>> fair_level([0.2, 0.9, 0.9])
    0.4
    """
    left, waiting = 1.0, sorted(shares)
    while waiting and waiting[0] * len(waiting) <= left:
        left -= waiting.pop(0)
    return left / len(waiting) if waiting else 1.0


def _presence(share: float, factor: float) -> float:
    """Return what of its time a replica is on the link, if stretched by a factor; Z + D is 1."""
    return share * factor / (1 - share + share * factor)


def _without(members: tuple[float, ...], share: float) -> tuple[float, ...]:
    place = members.index(share)
    return members[:place] + members[place + 1 :]


def _check(shares: Sequence[float]) -> None:
    for share in shares:
        if not (isfinite(share) and 0 <= share <= 1):
            raise ScenarioError(f"link share: {share!r} must be between 0 and 1")
    if prod(count + 1 for count in Counter(shares).values()) > MOST_SUBSETS:
        raise ScenarioError(
            f"link or CPU: {len(shares)} unlike replicas share one; place fewer of them on a GPU, "
            "or like ones"
        )
