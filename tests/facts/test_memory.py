"""What fits on a device, and the arithmetic of a refusal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.profile import Profile
from moesim.errors import CapacityError
from moesim.facts.catalog import load_model
from moesim.facts.memory import place_replica

GIB = 2**30


def test_what_is_left_is_the_difference(tiny_profile: Profile) -> None:
    """4072 float32 weights are 16,288 B; 3 blocks of 4 tokens of 64 B are 768 B; 20,000 B there."""
    placed = place_replica(
        "m", tiny_profile.spec, kv_blocks=3, block_size=4, device="d", device_bytes=20_000
    )
    assert (placed.weight_bytes, placed.kv_bytes) == (16_288, 768)
    assert placed.free_bytes == 20_000 - 16_288 - 768


def test_a_refusal_shows_needs_has_and_remedy() -> None:
    """Mixtral's 87 GiB and 4096 blocks of 16 tokens (8 GiB) are too much for 80 GiB."""
    with pytest.raises(CapacityError) as caught:
        place_replica(
            "mixtral",
            load_model("mixtral-8x7b"),
            kv_blocks=4096,
            block_size=16,
            device="a100-sxm-80gb",
            device_bytes=80 * GIB,
        )
    for word in ["mixtral", "a100-sxm-80gb", "87 GiB", "8 GiB", "4096 blocks", "> 80 GiB"]:
        assert word in str(caught.value)
    assert "larger device" in str(caught.value)


@given(kv_blocks=st.integers(1, 1000), short=st.integers(1, 100_000))
def test_the_remedy_is_enough_and_no_more(
    tiny_profile: Profile, kv_blocks: int, short: int
) -> None:
    """Lowering kv_blocks by the number in the message fits and by one less does not."""

    def place(blocks: int) -> None:
        place_replica(
            "m", tiny_profile.spec, kv_blocks=blocks, block_size=4, device="d", device_bytes=has
        )

    has = tiny_profile.spec.weight_bytes + kv_blocks * 256 - short
    with pytest.raises(CapacityError) as caught:
        place(kv_blocks)
    if "single block" in str(caught.value):
        with pytest.raises(CapacityError):
            place(1)
        return
    lower_by = int(str(caught.value).split("kv_blocks by ")[1].split()[0])
    place(kv_blocks - lower_by)
    with pytest.raises(CapacityError):
        place(kv_blocks - lower_by + 1)
