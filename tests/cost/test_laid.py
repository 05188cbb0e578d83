"""What is laid out over a profile's cells is kept with it, and with none that differs from it."""

import pytest

from moesim.cost.iteration import CostModel
from moesim.cost.profile import Profile
from moesim.serving.sequences import Batch, Chunk, Sequence


def _cost(profile: Profile, max_num_seqs: int = 16) -> CostModel:
    return CostModel(profile, max_batched_tokens=64, max_num_seqs=max_num_seqs)


def _iteration_s(profile: Profile) -> float:
    return _cost(profile).iteration_s(Batch([Chunk(Sequence(0, 4, 9), 4, 0)]))


def test_tables_are_laid_out_once_for_the_same_limits(tiny_profile: Profile) -> None:
    """Each cost model still notes for itself what was asked of it."""
    one, two, wider = _cost(tiny_profile), _cost(tiny_profile), _cost(tiny_profile, 32)
    assert one.tables is two.tables
    assert len(wider.tables.joined) == 32
    assert len(one.tables.joined) == 16
    one.iteration_s(Batch([Chunk(Sequence(0, 4, 9), 4, 0)]))
    assert one.basis()
    assert not two.basis()


def test_a_copy_lays_out_its_own_cells(tiny_profile: Profile) -> None:
    """The host's 10 ms doubled, after the original was laid out."""
    before_s = _iteration_s(tiny_profile)
    slower = [
        cell.model_copy(update={"median_s": 2 * cell.median_s})
        for cell in tiny_profile.operations["host"]
    ]
    copied = tiny_profile.model_copy(
        update={"operations": {**tiny_profile.operations, "host": slower}}
    )
    assert _iteration_s(copied) - before_s == pytest.approx(0.010)
    assert _iteration_s(tiny_profile) == before_s


def test_a_copy_has_its_own_shape(tiny_profile: Profile) -> None:
    """As much as its model says, whatever was read of the original."""
    layers = tiny_profile.spec.num_hidden_layers
    deeper = {**tiny_profile.model, "num_hidden_layers": layers + 1}
    assert tiny_profile.model_copy(update={"model": deeper}).spec.num_hidden_layers == layers + 1


def test_a_used_profile_equals_an_unused_one(tiny_profile: Profile) -> None:
    """What was laid out is no part of what a profile says, nor of what is written."""
    unused = Profile.model_validate(tiny_profile.model_dump())
    _cost(tiny_profile)
    assert tiny_profile == unused
    assert tiny_profile.model_dump() == unused.model_dump()
