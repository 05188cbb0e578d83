"""MIG: every published profile, every layout that exists, and none that does not."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import CapacityError, ScenarioError
from moesim.facts.catalog import load_device, shipped
from moesim.facts.hardware import Device
from moesim.facts.mig import (
    COMPUTE_SLICES,
    GEOMETRIES,
    MEMORY_SLICES,
    Layout,
    check_layout,
    find_profile,
    geometry_of,
    nearest_layouts,
    valid_layouts,
)
from moesim.units import GIB

DEVICES = [device for name in shipped("hardware") if (device := load_device(name)).mig is not None]
A100 = load_device("a100-sxm-80gb")
H100 = load_device("h100-sxm-80gb")
NAMES = tuple(geometry_of(A100).by_name)
by_device = pytest.mark.parametrize("device", DEVICES, ids=lambda device: str(device.name))


def everything_that_can_be_placed(device: Device, slot: int = 0) -> Iterator[Layout]:
    """Yield what memory slices from `slot` on can hold, leaving them free or starting there."""
    if slot == MEMORY_SLICES:
        yield ()
        return
    yield from everything_that_can_be_placed(device, slot + 1)
    for profile in geometry_of(device).profiles:
        if slot in profile.starts:
            for rest in everything_that_can_be_placed(device, slot + profile.memory_slices):
                yield profile.name, *rest


def parts_of(layout: Layout) -> set[Layout]:
    """Return all layouts of some of the instances, sorted by name."""
    return {
        tuple(sorted(part))
        for count in range(1, len(layout) + 1)
        for part in combinations(layout, count)
    }


PLACEABLE = set().union(*(parts_of(layout) for layout in valid_layouts(A100)))
"""Every layout that exists, in any number of instances, sorted by name."""


def accepted(device: Device, names: tuple[str, ...]) -> bool:
    try:
        check_layout(device, names)
    except CapacityError:
        return False
    return True


def test_every_geometry_has_its_device() -> None:
    """And a device names its own size."""
    assert {device.mig for device in DEVICES} == set(GEOMETRIES)


def test_an_a100_as_its_table_says() -> None:
    """NVIDIA's user guide and `nvidia-smi mig -lgip`: SMs, slices, engines, usable memory."""
    rows = [
        (p.name, p.profile_id, p.sms, p.memory_slices, p.l2_slices, p.copy_engines, len(p.starts))
        for p in geometry_of(A100).profiles
    ]
    assert rows == [
        ("7g.80gb", 0, 98, 8, 8, 7, 1),
        ("4g.40gb", 5, 56, 4, 4, 4, 1),
        ("3g.40gb", 9, 42, 4, 4, 3, 2),
        ("2g.20gb", 14, 28, 2, 2, 2, 3),
        ("1g.20gb", 15, 14, 2, 1, 1, 4),
        ("1g.10gb", 19, 14, 1, 1, 1, 7),
    ]
    assert find_profile(A100, "3g.40gb").memory_bytes == int(39.25 * GIB)


def test_an_h100_as_its_table_says() -> None:
    """A whole-GPU instance has all 132 SMs and 8 copy engines; two halves leave 12 SMs unused."""
    sms = {name: profile.sms for name, profile in geometry_of(H100).by_name.items()}
    assert sms == {
        "7g.80gb": 132, "4g.40gb": 64, "3g.40gb": 60, "2g.20gb": 32, "1g.20gb": 26, "1g.10gb": 16,
    }  # fmt: skip
    assert find_profile(H100, "7g.80gb").copy_engines == 8


def test_shares_of_compute_and_bandwidth() -> None:
    """Half the memory comes with 42 of 108 SMs on an A100, with 60 of 132 on an H100."""
    for device, share in ((A100, 42 / 108), (H100, 60 / 132)):
        profile = find_profile(device, "3g.40gb")
        assert geometry_of(device).compute_share(profile) == share
        assert profile.bandwidth_share == profile.l2_share == 0.5


@by_device
def test_profiles_are_parts_of_their_device(device: Device) -> None:
    """Usable memory is a little less than the slices' share, and the names keep to it."""
    geometry = geometry_of(device)
    assert geometry.device_sms == device.sms
    for profile in geometry.profiles:
        share = profile.memory_bytes / device.memory_bytes / profile.bandwidth_share
        assert 0.88 < share <= 1
        assert profile.name.startswith(f"{profile.compute_slices}g.")
        assert profile.profile_id >= 0
        assert max(profile.starts) + profile.memory_slices <= MEMORY_SLICES


def test_two_halves_leave_a_compute_slice() -> None:
    """3g + 3g take all memory, at slices 0 and 4."""
    placed = check_layout(A100, ["3g.40gb", "3g.40gb"])
    assert [one.start for one in placed] == [0, 4]
    assert ("3g.40gb", "3g.40gb") in valid_layouts(A100)


def test_instances_keep_the_order_they_were_named_in() -> None:
    """A 4g starts at 0 only, so the 3g named first goes behind it."""
    placed = check_layout(A100, ["3g.40gb", "4g.40gb"])
    assert [(one.profile.name, one.start) for one in placed] == [("3g.40gb", 4), ("4g.40gb", 0)]


def test_layouts_of_the_user_guide() -> None:
    """Combinations that NVIDIA draws for the A100, from one instance to seven."""
    layouts = set(valid_layouts(A100))
    for compute in ("7", "43", "421", "4111", "33", "322", "3211", "31111", "2221", "22111",
                    "211111", "1111111"):  # fmt: skip
        memory = {"7": "80gb", "4": "40gb", "3": "40gb", "2": "20gb", "1": "10gb"}
        assert tuple(f"{size}g.{memory[size]}" for size in compute) in layouts, compute


@by_device
def test_layouts_are_the_same_on_all_devices(device: Device) -> None:
    """The geometries differ in size, not in rules."""

    def ids(of: Device) -> list[list[int]]:
        known = geometry_of(of).by_name
        return [[known[name].profile_id for name in layout] for layout in valid_layouts(of)]

    assert ids(device) == ids(A100)


@by_device
def test_no_layout_exceeds_the_device(device: Device) -> None:
    """In slices of memory, of compute, in SMs and in bytes; and none can be added to."""
    known = geometry_of(device).by_name
    for layout in valid_layouts(device):
        held = [known[name] for name in layout]
        assert sum(one.memory_slices for one in held) <= MEMORY_SLICES
        assert sum(one.compute_slices for one in held) <= COMPUTE_SLICES
        assert sum(one.sms for one in held) <= geometry_of(device).device_sms
        assert sum(one.memory_bytes for one in held) <= device.memory_bytes
        assert not any(accepted(device, (*layout, name)) for name in known)


@by_device
def test_the_layouts_are_what_trying_every_placement_finds(device: Device) -> None:
    """All that can be placed is part of a listed layout, and all parts of those can be placed."""
    placed = {tuple(sorted(layout)) for layout in everything_that_can_be_placed(device)} - {()}
    listed = set().union(*(parts_of(layout) for layout in valid_layouts(device)))
    assert listed == placed


def test_every_layout_has_a_placement_that_keeps_the_rules() -> None:
    """Instances start where they may, on slices of their own, and come in the order asked for."""
    for names in PLACEABLE:
        placed = check_layout(A100, names)
        assert tuple(one.profile.name for one in placed) == names
        assert all(one.start in one.profile.starts for one in placed)
        taken = Counter(slot for one in placed for slot in one.slices)
        assert set(taken.values()) == {1}
        assert set(taken) <= set(range(MEMORY_SLICES))


@given(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=9).map(tuple))
def test_a_refused_layout_breaks_a_rule(names: tuple[str, ...]) -> None:
    """It is part of nothing that can be placed; an accepted one is."""
    assert (tuple(sorted(names)) in PLACEABLE) == accepted(A100, names)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["4g.40gb", "4g.40gb"], ["needs 8 of 7 compute slices", "4g.40gb + 3g.40gb"]),
        (["3g.40gb", "3g.40gb", "1g.10gb"], ["needs 9 of 8 memory slices", "3g.40gb + 3g.40gb;"]),
        (["1g.10gb"] * 8, ["needs 8 of 7 compute slices", " + ".join(["1g.10gb"] * 7)]),
        (["3g.40gb"] + ["1g.20gb"] * 2 + ["1g.10gb"], ["needs 9 of 8"]),
    ],
)
def test_a_refusal_says_why_and_what_is_nearest(names: list[str], words: list[str]) -> None:
    """One line."""
    with pytest.raises(CapacityError) as caught:
        check_layout(A100, names)
    for word in ["a100-sxm-80gb", " + ".join(names), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_nearest_differ_least() -> None:
    """A layout that exists is its own nearest."""
    for layout in valid_layouts(A100):
        assert nearest_layouts(A100, layout, count=1) == [layout]


def test_wrong_names_list_the_right() -> None:
    """Another device's profile, none at all, and a device that cannot be divided."""
    with pytest.raises(ScenarioError, match=r"no MIG profile '1g.18gb'; it has 7g.80gb, 4g.40gb"):
        check_layout(A100, ["1g.18gb"])
    with pytest.raises(ScenarioError, match="empty MIG layout"):
        check_layout(A100, [])
    with pytest.raises(ScenarioError, match="cpu-2core: cannot be divided"):
        check_layout(load_device("cpu-2core"), ["1g.10gb"])


def test_a_gpu_whose_geometry_nobody_said_is_taken_whole() -> None:
    """An H100 NVL can be divided, but not as any that is known here; its file may say otherwise."""
    with pytest.raises(ScenarioError, match=r"names no mig.*a100-40gb.*take the whole device"):
        check_layout(load_device("h100-nvl-94gb"), ["1g.12gb"])
