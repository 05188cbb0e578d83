"""The whole models' shortage of memory, worked out by hand for Mixtral-8x7B on an H200."""

import pytest

from benchmarks.gpu_queue.room import room_on
from moesim.facts.catalog import load_device

H200 = load_device("h200-sxm-141gb").memory_bytes


def test_copies_by_hand() -> None:
    """0.9 of 151.4 GB, less 8.59 of KV, 3.21 of other layers and 0.5: 124 GB of 352.3 MB each."""
    room = room_on(H200)
    free = 0.9 * 151.397597184e9 - 8 * 2**30 - 3.21e9 - 0.46e9
    assert room.copies(sets=1) == pytest.approx(free / (3 * 4096 * 14336 * 2), abs=1.5)
    assert "two 186.8" in room.told()


@pytest.mark.parametrize("variants", [2, 3])
def test_all_shared_copies_fit(variants: int) -> None:
    """The ratio is the least at which every copy has a place: one position less and none has."""
    room = room_on(H200)
    positions, copies = 256, room.copies(sets=1)
    shared = round(room.ratio(variants) * positions * 1000) / 1000
    needed = shared + variants * (positions - shared)
    assert needed == pytest.approx(copies)
    assert room.resident(variants, room.ratio(variants), sets=1) == pytest.approx(1.0)


def test_a_small_card_shares_everything() -> None:
    """An A100 holds no whole model: one copy a position, and of these not all."""
    room = room_on(load_device("a100-sxm-80gb").memory_bytes)
    assert room.ratio(2) == 1.0
    assert room.resident(2, 1.0, sets=1) == pytest.approx(room.copies(1) / 256)
    assert room.resident(2, 1.0, sets=1) < 1


def test_a_large_card_shares_nothing() -> None:
    """Where two models fit whole, nothing has to be shared."""
    room = room_on(2 * H200)
    assert room.ratio(2) == 0.0
    assert room.resident(2, 0.0, sets=2) == 1.0
