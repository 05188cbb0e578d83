"""Shares as people write them, and the whole units, cores or groups of SMs, that they come to."""

from collections.abc import Sequence
from fractions import Fraction

from moesim.errors import EngineError


def read_share(text: str, field: str = "--share") -> Fraction:
    """Return a share of a device, above 0 and at most 1.

    >>> read_share("1/2"), read_share("40 %")
    (Fraction(1, 2), Fraction(2, 5))
    """
    number, percent, rest = text.strip().partition("%")
    try:
        share = Fraction(number.strip()) / (100 if percent else 1)
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if rest.strip() or not 0 < share <= 1:
        raise EngineError(f"{field}: {text!r} is no share of a device; write it as 1/2 or 40%")
    return share


def portions(units: int, shares: Sequence[Fraction], what: str) -> list[int]:
    """Return how many of a device's `units` each share comes to, rounded down.

    Raises EngineError where one comes to none, or all are more than the device.

    >>> portions(15, [Fraction(1, 2), Fraction(2, 5)], "groups of 8 SMs")
    [7, 6]
    """
    if sum(shares) > 1:
        raise EngineError(
            f"shares: {_listed(shares)} are more than one device; give shares that add up to 100 %"
        )
    found = [int(units * share) for share in shares]
    for share, count in zip(shares, found, strict=True):
        if not count:
            raise EngineError(
                f"shares: {_listed([share])} of {units} {what} is less than one; "
                f"give {_listed([Fraction(1, units)], up=True)} or more"
            )
    return found


def _listed(shares: Sequence[Fraction], *, up: bool = False) -> str:
    """Return shares in percent, to one decimal, rounded up where they are bounds."""
    tenths = [-(-share * 1000 // 1) if up else round(share * 1000) for share in shares]
    return ", ".join(f"{float(tenth) / 10:g} %" for tenth in tenths)
