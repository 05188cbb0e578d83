"""Rivals: what neighbours on one device take from each other on the way to host memory.

There is one link, for absent experts and for what a change of model copies, and one CPU, for the
experts that are computed there. Each is divided equally among those who are on it
(`moesim.cost.link`); who copies for a change of model is on the link all the time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from moesim.cost.iteration import Cost
from moesim.cost.link import stretch
from moesim.simulation.crowd import Busy, Crowd
from moesim.simulation.draft import Draft


@dataclass(frozen=True, slots=True, kw_only=True)
class Rivals:
    """What part of its time each member's iterations need the link and the CPU for, at most."""

    link_shares: tuple[float, ...]
    cpu_shares: tuple[float, ...]
    overlapped: bool = False
    """Whether copies go on while a member computes."""

    def link_stretch(self, member: int, busy: Busy) -> float:
        """Return by how much the copies of a member are stretched."""
        demands = {place: self.link_shares[place] for place in busy.running}
        demands |= dict.fromkeys(busy.copying, 1.0)
        return _stretched(member, demands, overlapped=self.overlapped)

    def cpu_stretch(self, member: int, busy: Busy) -> float:
        """Return by how much what the CPU computes for a member is stretched."""
        return _stretched(member, {place: self.cpu_shares[place] for place in busy.running})


def rivals_of(drafts: Sequence[Draft]) -> Rivals:
    """Return what drafts on one device need of the way to host memory."""
    return Rivals(
        link_shares=tuple(draft.link_share for draft in drafts),
        cpu_shares=tuple(draft.cpu_share for draft in drafts),
        overlapped=any(draft.overlaps for draft in drafts),
    )


def beside(drafts: Sequence[Draft]) -> Crowd | None:
    """Return the crowd of drafts that have nothing in common but the way to host memory.

    None where they never meet there.
    """
    rivals = rivals_of(drafts)
    on_link = [
        share > 0 or draft.copies for share, draft in zip(rivals.link_shares, drafts, strict=True)
    ]
    on_cpu = [share > 0 for share in rivals.cpu_shares]
    if sum(on_link) < 2 and sum(on_cpu) < 2:
        return None

    @cache
    def costs(member: int, link: float, cpu: float) -> Sequence[Cost]:
        return drafts[member].costs(link, cpu)

    def pricing(member: int, busy: Busy) -> Sequence[Cost]:
        return costs(member, rivals.link_stretch(member, busy), rivals.cpu_stretch(member, busy))

    return Crowd(pricing=pricing, stretching=rivals.link_stretch)


def _stretched(member: int, demands: Mapping[int, float], *, overlapped: bool = False) -> float:
    """Return the factor of one of those who demand a part of something; 1 if it demands none."""
    if not demands[member]:
        return 1.0
    members = sorted(demands)
    found = stretch([demands[place] for place in members], overlapped=overlapped)
    return found[members.index(member)]
