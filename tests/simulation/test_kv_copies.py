"""Preempted KV blocks beside neighbours: a warning where they met on the host link."""

from typing import Any

import pytest

from moesim.simulation.run import Result, simulate
from tests.simulation.test_sharing import Maker, fixed, poisson, tenant

Content = dict[str, Any]

SWAPPING: Content = {
    "kv_blocks": 12,
    "scheduler": {
        "policy": "chunked_prefill",
        "preemption": "swap",
        "swap_gb_per_s": 0.01,
        "swap_gib": 1,
        "max_num_seqs": 8,
        "max_batched_tokens": 64,
    },
}
HALVES: Content = {"kind": "mig", "layout": ["3g.40gb", "3g.40gb"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("kv"))


def simulated(made: Maker, deployment: Content, *, outputs: tuple[int, int]) -> Result:
    """Simulate two streams whose answers are so long."""
    tenants = {
        name: tenant(name, poisson(20.0), fixed(30), fixed(output))
        for name, output in zip("ab", outputs, strict=True)
    }
    return simulate(made.scenario(deployment, tenants))


def copying(result: Result) -> list[str]:
    return [replica for replica, copies in result.copies.items() if copies]


def warned(result: Result) -> list[str]:
    return [warning for warning in result.warnings if "swap_gb_per_s" in warning]


def test_neighbours_that_both_copy_are_warned_of(made: Maker) -> None:
    result = simulated(made, HALVES | SWAPPING, outputs=(40, 40))
    assert copying(result) == ["a/0", "b/0"]
    (warning,) = warned(result)
    assert "a/0, b/0 were copied" in warning


def test_one_that_copies_beside_expert_loads(made: Maker) -> None:
    deployment = HALVES | SWAPPING | {"experts": {"resident": 0.5}}
    result = simulated(made, deployment, outputs=(40, 1))
    assert copying(result) == ["a/0"]
    assert len(warned(result)) == 1


@pytest.mark.parametrize(
    ("deployment", "outputs"),
    [
        (HALVES | SWAPPING, (40, 1)),  # nobody else is on the link
        ({"kind": "dedicated", **SWAPPING}, (40, 40)),  # each has its own
    ],
    ids=["alone", "dedicated"],
)
def test_who_has_the_link_to_himself_is_not(
    made: Maker, deployment: Content, outputs: tuple[int, int]
) -> None:
    result = simulated(made, deployment, outputs=outputs)
    assert copying(result)
    assert not warned(result)
