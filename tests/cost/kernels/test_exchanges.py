"""Tables of collectives beside what device files say of them."""

import pytest

from moesim.cost.kernels.exchanges import contradictions
from moesim.cost.kernels.tables import Collective, load_kernels
from moesim.facts.catalog import load_device

L40S = load_device("l40s-48gb")


@pytest.mark.parametrize("name", ["a100-sxm-80gb", "h100-sxm-80gb", "h200-sxm-141gb"])
def test_shipped_tables_and_devices_agree(name: str) -> None:
    """They are of the same measurements."""
    assert not list(contradictions(load_kernels(name).collectives, load_device(name)))


@pytest.mark.parametrize(("times", "said"), [(0.3, True), (0.7, False), (1.5, False), (6, True)])
def test_another_kind_of_host_is_said(times: float, said: bool) -> None:
    """By the longest message; a ten-microsecond launch more is none."""
    reduce = L40S.all_reduce[8]
    sizes = (1024, 2**27)
    us = (1e6 * reduce.seconds(1024) + 10, times * 1e6 * reduce.seconds(2**27))
    curve = Collective(operation="all_reduce", ranks=8, bytes=sizes, us=us)
    found = list(contradictions([curve], L40S))
    assert len(found) == said
    if said:
        assert f"over 8 devices take {times:.2g} times as long as by the file of l40s" in found[0]


def test_what_the_device_says_nothing_of_is_no_contradiction() -> None:
    """Other exchanges, and other numbers of devices."""
    curves = [
        Collective(operation="all_gather", ranks=8, bytes=(2**27,), us=(1.0,)),
        Collective(operation="all_reduce", ranks=6, bytes=(2**27,), us=(1.0,)),
    ]
    assert not list(contradictions(curves, L40S))
