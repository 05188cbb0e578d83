"""What a publication says, as written in `data/published/*.yaml`: scenarios, claims, constants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from moesim.checked import checked
from moesim.facts.catalog import data_folder
from moesim.facts.hardware import Facts
from moesim.files import read_yaml
from moesim.scenario import Scenario, scenario_from

Finite = Annotated[float, Field(allow_inf_nan=False)]
Ends = tuple[Finite | None, Finite | None]
"""From where to where; None where there is no end."""


class Figure(Facts):
    """A claim of a publication, with how it is judged."""

    claim: str
    """What is claimed, in words, the unit in brackets."""
    published: Finite | Ends | None = None
    """The figure, or from where to where it may be; none where no figure is published."""
    kind: Literal["figure", "shape", "unknown"]
    """Whether a figure has to come out, only its shape, or nothing can be checked."""
    tolerance: float = Field(default=0.0, ge=0, le=1)
    """How far from the published figure still counts, relative to it."""
    evidence: Literal["V", "S", "D", "M", "U"]
    """How sure the published figure is, as in `moesim.facts.quality`."""
    source: str
    """Where the figure stands, or what it is derived from."""
    why: str = ""
    """What is missing where it does not come out, or what is unknown."""

    @property
    def ends(self) -> Ends:
        """Between which values a simulated figure counts as the published one."""
        if self.published is None:
            return None, None
        if isinstance(self.published, tuple):
            low, high = self.published
        else:
            low = high = self.published
        return (
            None if low is None else low * (1 - self.tolerance),
            None if high is None else high * (1 + self.tolerance),
        )


class Constant(Facts):
    """A number that the scenarios rest on."""

    name: str
    """What it is."""
    value: str
    """How large, with its unit."""
    source: str
    """Where it was taken from."""
    fitted_on: str = ""
    """What it was fitted on; given constants are fitted on nothing."""


class Publication(Facts):
    """A published experiment."""

    system: str
    """What to call it."""
    title: str
    """What was done, in a line."""
    source: str
    """The publication."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures must know."""
    unknown: tuple[str, ...] = ()
    """What the publication leaves open."""
    constants: tuple[Constant, ...] = ()
    """What the scenarios rest on besides datasheets."""
    claims: Mapping[str, Figure]
    """By a short name."""
    scenarios: Mapping[str, Mapping[str, Any]]
    """Scenarios by what they are called, as in `data/scenarios/`."""
    beyond: Mapping[str, Mapping[str, Any]] = {}
    """Scenarios of questions that the publication does not ask, likewise."""

    def scenario(self, name: str) -> Scenario:
        """Return one of the scenarios; ScenarioError where it is wrong."""
        source = f"{self.system}: scenarios.{name}"
        return scenario_from(self.scenarios[name], source=source, folder=_folder())

    def scenario_beyond(self, name: str) -> Scenario:
        """Return one of those that go beyond the publication; ScenarioError where it is wrong."""
        source = f"{self.system}: beyond.{name}"
        return scenario_from(self.beyond[name], source=source, folder=_folder())


def load_publication(system: str) -> Publication:
    """Load a shipped publication by the name of its system."""
    path = _folder() / f"{system}.yaml"
    return checked(Publication, read_yaml(path), str(path))


def _folder() -> Path:
    return data_folder() / "published"
