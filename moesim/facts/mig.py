"""How a GPU divides into MIG instances: profiles, where each may start, which layouts exist.

A GPU has 8 memory slices and 7 compute slices. An instance takes memory slices that lie side by
side, from one of the starts that its profile allows; bandwidth goes with the memory slices, SMs
with the profile. PCIe is not divided. Starts and profile ids: NVIDIA Multi-Instance GPU User Guide,
"Supported MIG Profiles", and `nvidia-smi mig -lgipp`; SMs, copy engines and usable memory: `-lgip`
on each GPU. Whatever stays within both sums of slices can be placed on an empty GPU: a property of
these starts, which the tests establish by trying all. The variants with media engines (`+me`)
place like their plain profiles and are left out.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moesim.errors import CapacityError, ScenarioError
from moesim.facts.hardware import Device
from moesim.units import GIB

MEMORY_SLICES = 8
COMPUTE_SLICES = 7

NEAREST = 3
"""Layouts that a refusal names."""

Layout = tuple[str, ...]
"""Names of profiles, the largest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigProfile:
    """One kind of instance."""

    name: str
    profile_id: int
    """As `nvidia-smi mig -cgi` takes it."""
    compute_slices: int
    memory_slices: int
    l2_slices: int
    starts: tuple[int, ...]
    """Memory slices at which an instance may begin."""
    sms: int
    copy_engines: int
    memory_bytes: int
    """What programs can use: a little less than the name says [B]."""

    @property
    def bandwidth_share(self) -> float:
        """Share of the GPU's memory bandwidth."""
        return self.memory_slices / MEMORY_SLICES

    @property
    def l2_share(self) -> float:
        """Share of the GPU's L2 cache."""
        return self.l2_slices / MEMORY_SLICES

    @property
    def size(self) -> tuple[int, int]:
        """What profiles are ordered by: memory slices, then compute slices."""
        return self.memory_slices, self.compute_slices


@dataclass(frozen=True, slots=True, kw_only=True)
class MigGeometry:
    """The profiles of one GPU product, largest first."""

    device_sms: int
    profiles: tuple[MigProfile, ...]

    @property
    def by_name(self) -> dict[str, MigProfile]:
        """The profiles by name."""
        return {profile.name: profile for profile in self.profiles}

    def compute_share(self, profile: MigProfile) -> float:
        """Return the share of the whole GPU's SMs that an instance has."""
        return profile.sms / self.device_sms


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """An instance of a profile, from one memory slice on."""

    profile: MigProfile
    start: int

    @property
    def slices(self) -> frozenset[int]:
        """The memory slices it takes."""
        return frozenset(range(self.start, self.start + self.profile.memory_slices))


_KINDS = (
    # profile id, compute slices, memory slices, L2 slices, starts
    (0, 7, 8, 8, (0,)),
    (5, 4, 4, 4, (0,)),
    (9, 3, 4, 4, (0, 4)),
    (14, 2, 2, 2, (0, 2, 4)),
    (15, 1, 2, 1, (0, 2, 4, 6)),
    (19, 1, 1, 1, (0, 1, 2, 3, 4, 5, 6)),
)
"""What all geometries share, in the order in which they list their profiles."""


def _geometry(
    sms: int, copy_engines: int, instances: Sequence[tuple[str, int, float]]
) -> MigGeometry:
    """Build a geometry from each profile's name, SMs and usable memory [GiB]."""
    profiles = tuple(
        MigProfile(
            name=name,
            profile_id=profile_id,
            compute_slices=compute,
            memory_slices=memory,
            l2_slices=l2,
            starts=starts,
            sms=profile_sms,
            copy_engines=copy_engines if compute == COMPUTE_SLICES else compute,
            memory_bytes=int(gib * GIB),
        )
        for (profile_id, compute, memory, l2, starts), (name, profile_sms, gib) in zip(
            _KINDS, instances, strict=True
        )
    )
    return MigGeometry(device_sms=sms, profiles=profiles)


GEOMETRIES = {
    "a100-40gb": _geometry(
        108,
        7,
        [
            ("7g.40gb", 98, 39.5),
            ("4g.20gb", 56, 19.62),
            ("3g.20gb", 42, 19.62),
            ("2g.10gb", 28, 9.75),
            ("1g.10gb", 14, 9.75),
            ("1g.5gb", 14, 4.75),
        ],
    ),
    "a100-80gb": _geometry(
        108,
        7,
        [
            ("7g.80gb", 98, 79.0),
            ("4g.40gb", 56, 39.25),
            ("3g.40gb", 42, 39.25),
            ("2g.20gb", 28, 19.5),
            ("1g.20gb", 14, 19.5),
            ("1g.10gb", 14, 9.5),
        ],
    ),
    "h100-80gb": _geometry(
        132,
        8,
        [
            ("7g.80gb", 132, 79.25),
            ("4g.40gb", 64, 39.5),
            ("3g.40gb", 60, 39.5),
            ("2g.20gb", 32, 19.62),
            ("1g.20gb", 26, 19.62),
            ("1g.10gb", 16, 9.75),
        ],
    ),
    "h200-141gb": _geometry(
        132,
        8,
        [
            ("7g.141gb", 132, 140.0),
            ("4g.71gb", 64, 69.5),
            ("3g.71gb", 60, 69.5),
            ("2g.35gb", 32, 32.25),
            ("1g.35gb", 26, 32.25),
            ("1g.18gb", 16, 16.0),
        ],
    ),
}
"""The geometries that devices name. Usable memory differs by a few hundred MiB between drivers."""


def geometry_of(device: Device) -> MigGeometry:
    """Return how a device divides; raise ScenarioError if it does not, or nobody has said how."""
    if device.mig is None and device.kind == "cuda":
        known = ", ".join(GEOMETRIES)
        raise ScenarioError(
            f"{device.name}: its file names no mig, the geometry by which it is divided by MIG "
            f"({known}); add it if it has one of these, or take the whole device"
        )
    if device.mig is None:
        raise ScenarioError(f"{device.name}: cannot be divided by MIG; take the whole device")
    return GEOMETRIES[device.mig]


def find_profile(device: Device, name: str) -> MigProfile:
    """Return a device's MIG profile; raise ScenarioError with those it has."""
    known = geometry_of(device).by_name
    if name not in known:
        raise ScenarioError(f"{device.name}: no MIG profile {name!r}; it has {', '.join(known)}")
    return known[name]


def check_layout(device: Device, names: Sequence[str]) -> tuple[Placement, ...]:
    """Place instances of the named profiles on one device, in the order given.

    Raises ScenarioError for names that do not exist, and CapacityError with the nearest layouts
    where the instances do not go together.
    """
    profiles = [find_profile(device, name) for name in names]
    if not profiles:
        raise ScenarioError(f"{device.name}: an empty MIG layout; name at least one profile")
    if excess := _excess(profiles):
        nearest = "; ".join(" + ".join(layout) for layout in nearest_layouts(device, names))
        raise CapacityError(
            f"{device.name}: MIG layout {' + '.join(names)} does not exist: {excess}; "
            f"nearest that do: {nearest}"
        )
    return _place(profiles)


def valid_layouts(device: Device) -> list[Layout]:
    """List the layouts to which no further instance can be added."""
    profiles = geometry_of(device).profiles
    return [
        tuple(profile.name for profile in layout)
        for layout in _placeable(profiles, ())
        if all(_excess([*layout, profile]) for profile in profiles)
    ]


def nearest_layouts(device: Device, names: Sequence[str], count: int = NEAREST) -> list[Layout]:
    """Return the valid layouts that differ from `names` by the fewest instances."""
    asked = Counter(names)

    def distance(layout: Layout) -> int:
        has = Counter(layout)
        return ((asked - has) + (has - asked)).total()

    return sorted(valid_layouts(device), key=distance)[:count]


def _placeable(
    profiles: Sequence[MigProfile], layout: tuple[MigProfile, ...]
) -> Iterator[tuple[MigProfile, ...]]:
    """Yield all layouts that begin with `layout` and go on with `profiles`, none of them twice."""
    for index, profile in enumerate(profiles):
        longer = (*layout, profile)
        if not _excess(longer):
            yield longer
            yield from _placeable(profiles[index:], longer)


def _excess(profiles: Sequence[MigProfile]) -> str:
    """Say which slices run out, if any do."""
    compute = sum(profile.compute_slices for profile in profiles)
    memory = sum(profile.memory_slices for profile in profiles)
    if compute > COMPUTE_SLICES:
        return f"it needs {compute} of {COMPUTE_SLICES} compute slices"
    if memory > MEMORY_SLICES:
        return f"it needs {memory} of {MEMORY_SLICES} memory slices"
    return ""


def _place(profiles: Sequence[MigProfile]) -> tuple[Placement, ...]:
    """Choose a start for each instance so that none overlap, the largest first."""
    order = sorted(range(len(profiles)), key=lambda index: profiles[index].size, reverse=True)
    found = next(_placements([profiles[index] for index in order], frozenset()))
    at = dict(zip(order, found, strict=True))
    return tuple(at[index] for index in range(len(profiles)))


def _placements(
    profiles: Sequence[MigProfile], taken: frozenset[int]
) -> Iterator[tuple[Placement, ...]]:
    """Yield every choice of starts beside the slices `taken`."""
    if not profiles:
        yield ()
        return
    first, *others = profiles
    for start in first.starts:
        placement = Placement(profile=first, start=start)
        if not placement.slices & taken:
            for rest in _placements(others, taken | placement.slices):
                yield placement, *rest
