"""What sharing experts costs in quality: points that somebody measured, and nothing beyond them.

A curve says what a metric was at some consolidation ratios, or for some numbers of models that
share. Between two ratios it is taken to be straight where the file says so; outside its points, and
between those that are not joined, nothing is known. Other models than the curve's are other curves.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from moesim.checked import checked
from moesim.facts.catalog import locate
from moesim.facts.hardware import Facts
from moesim.files import read_yaml

EVIDENCE = {
    "V": "read in a primary source",
    "S": "from a secondary source's summary",
    "D": "derived by arithmetic",
    "M": "from memory",
    "U": "not known, or assumed",
}
"""What the marks say of the figures, best first."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Point(Facts):
    """What the metric was at one place."""

    at: float | tuple[float, float]
    """The ratio, or the number of models; two ends where the source leaves open which between."""
    value: Finite | None = None
    """The metric over all variants; none where only some are known."""
    variants: dict[str, Finite] = Field(default={})
    """The metric of single variants, by what the source calls them."""

    @property
    def ends(self) -> tuple[float, float]:
        """Between which places it lies; one place twice where it is known."""
        return self.at if isinstance(self.at, tuple) else (self.at, self.at)


class Answer(NamedTuple):
    """What a curve knows of a place: values, or why there are none."""

    value: float | None = None
    variants: Mapping[str, float] = {}  # a default, never written to
    reason: str | None = None
    interpolated: bool = False


class Curve(Facts):
    """A metric of quality against how much is shared, as written in `data/quality/*.yaml`."""

    name: str
    """The curve's name, as scenarios refer to it."""
    metric: str
    """What was measured, such as `perplexity on WikiText-2`."""
    better: Literal["lower", "higher"]
    """Which values are good."""
    axis: Literal["ratio", "models"]
    """What the points are at: consolidation ratios, or numbers of models that share."""
    model: str | None = None
    """The shape that was measured: a shipped model, a checkpoint folder or a config.json."""
    variants: int | None = Field(default=None, gt=1)
    """How many models shared; of `axis: models` each point says it itself."""
    joined: bool = False
    """Whether values between two ratios may be taken to lie on a straight line."""
    points: tuple[Point, ...] = Field(min_length=1)
    """What is known, in order."""
    basis: Literal["measured", "published"]
    """Whether it was measured with this project's engine, or taken from a publication."""
    source: str
    """Where the values come from: publication, table; or host, data and date."""
    evidence: Literal["V", "S", "D", "M", "U"]
    """How sure the values are: V read in a primary source, S a secondary source's summary, D
    derived by arithmetic, M from memory, U of unknown origin."""
    notes: str = ""
    """What a reader of the values must know."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if (self.axis == "models") == (self.variants is not None):
            raise ValueError("variants: give it with axis: ratio, and only there")
        if self.axis == "models" and self.joined:
            raise ValueError("joined: there is nothing between two numbers of models")
        lowest, highest = (0.0, 1.0) if self.axis == "ratio" else (1.0, float("inf"))
        for index, point in enumerate(self.points):
            low, high = point.ends
            if not lowest <= low <= high <= highest:
                raise ValueError(
                    f"points.{index}.at: {point.at}: must be {_range_of(self.axis)}, the lower end "
                    "first"
                )
            if point.value is None and not point.variants:
                raise ValueError(f"points.{index}: give value, variants or both")
            if index and self.points[index - 1].ends[1] >= low:
                raise ValueError(f"points.{index}.at: {point.at}: give points in ascending order")
        return self

    def at(self, place: float) -> Answer:
        """Return what is known at a ratio, or for a number of models."""
        for point in self.points:
            if point.ends[0] <= place <= point.ends[1]:
                return Answer(point.value, point.variants)
        for before, after in pairwise(self.points):
            if before.ends[1] < place < after.ends[0] and self.joined:
                return _between(before, after, place)
        return Answer(reason=f"{self._called(place)} is not among what is known: {self._known}")

    def _called(self, place: float) -> str:
        return f"ratio {place:g}" if self.axis == "ratio" else f"{place:g} models"

    @property
    def _known(self) -> str:
        ends = [point.ends for point in self.points]
        if self.joined:
            return f"ratios {ends[0][0]:g} to {ends[-1][1]:g}"
        written = [f"{low:g}" if low == high else f"{low:g} to {high:g}" for low, high in ends]
        return f"{'ratios' if self.axis == 'ratio' else 'numbers of models'} {', '.join(written)}"


def load_curve(name: str, *, relative_to: Path | None = None) -> Curve:
    """Load a curve from a YAML file or a shipped name; ScenarioError where it is wrong."""
    path = locate("quality", name, relative_to=relative_to)
    return checked(Curve, read_yaml(path), str(path))


def _range_of(axis: str) -> str:
    return "from 0 to 1" if axis == "ratio" else "1 or more"


def _between(before: Point, after: Point, place: float) -> Answer:
    """Return the values on the straight lines between two points."""
    share = (place - before.ends[1]) / (after.ends[0] - before.ends[1])

    def line(start: float | None, end: float | None) -> float | None:
        return None if start is None or end is None else start + share * (end - start)

    variants = {
        name: value
        for name, start in before.variants.items()
        if (value := line(start, after.variants.get(name))) is not None
    }
    value = line(before.value, after.value)
    if value is None and not variants:
        return Answer(reason="nothing that is known on one side is known on the other")
    return Answer(value, variants, interpolated=True)
