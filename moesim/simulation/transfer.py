"""A copy over a link that others use too: when it ends, as they come and go."""

from dataclasses import dataclass

TICK_S = 2**-20
"""What the end of a copy that was not alone is rounded to: a microsecond, of milliseconds or more.

Copies that share a link magnify what their starts differ by: of two, each second that one starts
later brings the other's end forward by a second. Beside three others, rounding errors grew
threefold a round, and two ways to compute one course parted after a hundred. A tick takes them out
again.
"""


@dataclass(slots=True)
class Transfer:
    """A copy that goes on; at `since_s` it lacked `left_s` seconds of a link of its own.

    Until others come or go it takes `stretch` times as long as that.

    >>> copy = Transfer(since_s=0.0, left_s=4.0)
    >>> copy.restretch(2.0, 2.0)  # half done when another begins
    >>> copy.end_s
    6.0
    """

    since_s: float
    left_s: float
    stretch: float = 1.0
    shared: bool = False

    @property
    def end_s(self) -> float:
        """When it ends if nobody comes or goes."""
        end_s = self.since_s + self.left_s * self.stretch
        return max(self.since_s, round(end_s / TICK_S) * TICK_S) if self.shared else end_s

    def restretch(self, now_s: float, stretch: float) -> None:
        """Go on with another part of the link."""
        if stretch == self.stretch:
            return
        done_s = (now_s - self.since_s) / self.stretch
        self.left_s = max(0.0, self.left_s - done_s)
        self.since_s, self.stretch, self.shared = now_s, stretch, True
