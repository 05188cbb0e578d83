"""Which variants are served how, and what their scenarios say."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

from benchmarks.gpu_queue.cells import SLICES, Cell, Ground, cells
from benchmarks.gpu_queue.room import room_on
from benchmarks.gpu_queue.sizes import mixtral
from benchmarks.gpu_queue.variants import claim, told
from moesim.cost.profile import Profile
from moesim.deployment import Consolidated, Mps, Offloaded, TimeShared
from moesim.facts.catalog import load_device

LOADS = (0.3, 0.6)


@pytest.fixture
def ground(tiny_profile: Profile) -> Ground:
    """Return what the H200's cells stand on, with a profile that knows one slow swap."""
    swap = {
        "what": "non_expert_set",
        "way": "per_tensor",
        "memory": "pageable",
        "set_bytes": 860_000_000,
        "tensors": 23,
        "median_s": 0.2,
        "spread": 0.0,
        "repeats": 9,
    }
    content = tiny_profile.model_dump() | {"transfers": {"swaps": [swap]}}
    return Ground(
        size=mixtral(),
        folders={name: Path("/variants") / name for name in "abc"},
        profile_file=Path("/variants/profile.json"),
        profile=Profile.model_validate(content),
        device="h200-sxm-141gb",
        room=room_on(load_device("h200-sxm-141gb").memory_bytes),
    )


def test_a_family_is_loaded_once() -> None:
    """Cells of as many variants deployed alike follow each other, shares of SMs behind all."""
    found = list(cells(LOADS))
    assert len({cell.name for cell in found}) == len(found)
    families = [key for key, _ in groupby(found, key=lambda c: (c.variants, c.deployment))]
    assert len(set(families)) == len(families) == 5 + 3
    others = [cell.deployment != SLICES for cell in found]
    assert others == sorted(others, reverse=True)


@pytest.mark.parametrize(
    ("way", "kind", "check"),
    [
        ("packed", Consolidated, lambda d: (d.ratio, d.experts.resident) == (0.625, 1.0)),
        ("per tensor", Consolidated, lambda d: d.swap_gb_per_s == pytest.approx(4.3)),
        ("time-shared", TimeShared, lambda d: d.experts is None),
        ("offloaded", Offloaded, lambda d: d.experts.resident == pytest.approx(343 / 512)),
        ("slices", Mps, lambda d: d.sm_percent == {"a": 50, "b": 50}),
    ],
)
def test_deployments(ground: Ground, way: str, kind: type, check: Callable[[object], bool]) -> None:
    """Two variants: 352 copies have a place, 343 beside a second non-expert set; of 512."""
    cell = Cell(variants=2, traffic="many", deployment=way, load=0.3)
    scenario = ground.scenario(cell, {"kind": "poisson", "rate_per_s": 1.0}, 8.0)
    assert isinstance(scenario.deployment, kind)
    assert check(scenario.deployment)
    assert list(scenario.models) == ["a", "b"]
    assert scenario.deployment.scheduler.max_num_seqs == 8


def test_the_published_traffic(ground: Ground) -> None:
    """20 and 25 tokens, one request at a time, served for longer as there are few."""
    cell = Cell(variants=2, traffic="published", deployment="packed", load=0.1)
    scenario = ground.scenario(cell, {"kind": "poisson", "rate_per_s": 1.0}, 8.0)
    tenant = scenario.tenants["a"]
    assert (tenant.prompt_tokens.tokens, tenant.output_tokens.tokens) == (20, 25)
    assert scenario.deployment.scheduler.max_num_seqs == 1
    assert ground.duration_s(cell) == 2 * mixtral().cell_s


def test_the_claim_by_hand() -> None:
    """8.78 s against 49.67 are 82.3 % less."""
    rows = [
        {"traffic": "published", "metric": "turnaround_s", "deployment": way}
        | {"measured": seen, "predicted": foreseen}
        for way, seen, foreseen in (("per tensor", 8.78, 10.0), ("slices", 49.67, 40.0))
    ]
    assert claim(rows)[1:] == [
        "here, the same traffic: per tensor against slices +82% shorter, predicted +75%"
    ]
    row = {"metric": "turnaround_s", "measured": 0.0478, "predicted": 0.05, "error": 0.046}
    assert told(row) == "47.8 / 50, +5%"
