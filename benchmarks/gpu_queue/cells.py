"""The cells of step `variants`: how many variants, which traffic, deployed how, at which load."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_queue.room import Room
from benchmarks.gpu_queue.sizes import PUBLISHED, Size, Traffic
from engine.variants.family import LOOSE, PACKED
from moesim.cost.profile import Profile
from moesim.scenario import Scenario, scenario_from

NAMES = ("a", "b", "c")
FAMILIES = ("packed", "per tensor", "time-shared", "offloaded")
OF_THREE = ("packed", "time-shared")
"""Those of them that three variants are served in too."""

SLICES = "slices"
SWAPS = {"per tensor": LOOSE}
"""How non-expert sets are replaced, where it is not in one copy."""

PUBLISHED_LOAD, THREE_LOAD = 0.1, 0.3
"""Shares of what packed ones work off at which their rivals are not saturated: by the simulator on
an H200's datasheet, offloaded experts are from a fifth on, time-shared models from a half."""

PUBLISHED_TIMES = 2.0
"""How much longer the published traffic is served: its requests are few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One thing to serve."""

    variants: int
    traffic: str
    deployment: str
    load: float

    @property
    def name(self) -> str:
        """What its files are called."""
        way = self.deployment.replace(" ", "-")
        return f"{self.variants}-{self.traffic}-{way}-{100 * self.load:.0f}"

    @property
    def swap(self) -> str:
        """How a non-expert set is replaced."""
        return SWAPS.get(self.deployment, PACKED)


def cells(loads: Sequence[float]) -> Iterator[Cell]:
    """Yield all cells, two variants at these `loads` of what packed ones work off.

    Those of one family come one after the other, so that it is loaded once; shares of SMs come
    last, since what goes wrong in a context of the driver's may spoil the process.
    """
    for ways in (FAMILIES, (SLICES,)):
        for way in ways:
            for load in loads:
                yield Cell(variants=2, traffic="many", deployment=way, load=load)
            yield Cell(variants=2, traffic="published", deployment=way, load=PUBLISHED_LOAD)
        for way in ways:
            if way in (*OF_THREE, SLICES):
                yield Cell(variants=3, traffic="many", deployment=way, load=THREE_LOAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What all cells stand on: checkpoints, their profile, the device, the whole models' room."""

    size: Size
    folders: Mapping[str, Path]
    profile_file: Path
    profile: Profile
    device: str
    room: Room

    def traffic(self, cell: Cell) -> Traffic:
        """Return the requests of a cell."""
        return PUBLISHED if cell.traffic == "published" else self.size.variant_traffic

    def duration_s(self, cell: Cell) -> float:
        """Return how long a cell's requests arrive [s]."""
        return self.size.cell_s * (PUBLISHED_TIMES if cell.traffic == "published" else 1.0)

    def of(self, cell: Cell) -> dict[str, Path]:
        """Return the checkpoints of a cell by name."""
        return {name: self.folders[name] for name in NAMES[: cell.variants]}

    def profiles(self, cell: Cell) -> dict[str, Profile]:
        """Return the profile of each variant of a cell."""
        return {name: self.profile.of_variant(name) for name in self.of(cell)}

    def scenario(self, cell: Cell, arrivals: Mapping[str, Any], duration_s: float) -> Scenario:
        """Return a cell's scenario; every variant has such arrivals."""
        traffic, folders = self.traffic(cell), self.of(cell)
        models = {
            name: {"architecture": str(folder), "profile": str(self.profile_file)}
            for name, folder in folders.items()
        }
        content = {
            "name": cell.name,
            "duration_s": duration_s,
            "models": models,
            "tenants": {name: traffic.tenant(name, arrivals) for name in folders},
            "hardware": {"device": self.device},
            "deployment": {
                **self.deployment(cell),
                "kv_blocks": self.size.variant_blocks,
                "scheduler": {
                    "max_num_seqs": traffic.max_num_seqs,
                    "max_batched_tokens": self.size.max_batched_tokens,
                },
            },
        }
        return scenario_from(content)

    def deployment(self, cell: Cell) -> dict[str, Any]:
        """Return what is written of a cell's deployment beside scheduler and KV blocks."""
        count, room = cell.variants, self.room
        if cell.deployment == "time-shared":
            return {"kind": "time_shared"}
        if cell.deployment == SLICES:
            return {"kind": "mps", "sm_percent": dict.fromkeys(self.of(cell), 100 / count)}
        if cell.deployment == "offloaded":
            resident = room.resident(count, 0.0, sets=count)
            return {"kind": "offloaded", "experts": {"resident": resident}}
        ratio = room.ratio(count)
        return {
            "kind": "consolidated",
            "ratio": ratio,
            "experts": {"resident": room.resident(count, ratio, sets=1)},
            **({"swap_gb_per_s": self.loose_gb_per_s()} if cell.swap == LOOSE else {}),
        }

    def loose_gb_per_s(self) -> float:
        """Return how fast a non-expert set is swapped tensor by tensor, as it was profiled."""
        swaps = self.profile.transfers.swaps if self.profile.transfers else []
        loose = next(s for s in swaps if (s.what, s.way) == ("non_expert_set", "per_tensor"))
        return loose.set_bytes / loose.median_s / 1e9
