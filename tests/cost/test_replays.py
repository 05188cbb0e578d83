"""Replayed decodes: whole iterations of the tiny profile (tests/conftest.py) in milliseconds.

A replay of 2 decodes takes 20 at a summed context of 10 and 30 at 110, one of 4 takes 30 at 20 and
50 at 220: 19 + C / 10 and 28 + C / 10.
"""

from typing import Any

import pandas as pd
import pytest

from moesim.cost.iteration import CostModel
from moesim.cost.profile import REPLAY, Cell, Profile, Stored, Transfers, load_profile
from moesim.cost.roofline import on_slice, roofline_profile
from moesim.cost.stored import through_store
from moesim.errors import ProfileError
from moesim.facts.catalog import load_device, load_model
from moesim.facts.slices import group, mig_slices
from moesim.scenario import load_scenario, scenario_from
from moesim.serving.sequences import Batch, Chunk, Sequence
from moesim.simulation.inputs import load_inputs
from moesim.simulation.memory import memory_of
from moesim.simulation.run import simulate

CELLS = {(2, 10): 20, (2, 110): 30, (4, 20): 30, (4, 220): 50}


def with_replays(profile: Profile, seconds: dict[tuple[float, float], float]) -> Profile:
    """Return the profile of an engine that replays these sizes."""
    cells = [Cell(at=at, median_s=s, spread=0.0, repeats=9) for at, s in seconds.items()]
    return profile.model_copy(
        update={
            "operations": {**profile.operations, REPLAY: cells},
            "decode_graphs": tuple(sorted({int(at[0]) for at in seconds})),
        }
    )


@pytest.fixture
def replayed(tiny_profile: Profile) -> Profile:
    """Return the tiny profile with the replays above."""
    return with_replays(tiny_profile, {at: ms / 1000 for at, ms in CELLS.items()})


def decode_ms(profile: Profile, *contexts: int, beside: tuple[Chunk, ...] = ()) -> float:
    """Return an iteration of decodes after so many cached tokens each."""
    cost = CostModel(profile, max_batched_tokens=4096, max_num_seqs=256)
    chunks = [Chunk(Sequence(n, each, 9, generated=1), 1, each) for n, each in enumerate(contexts)]
    return 1000 * cost.iteration_s(Batch([*chunks, *beside]))


@pytest.mark.parametrize(
    ("contexts", "ms"),
    [
        ((4, 4), 20),
        ((54, 54), 30),
        ((9, 49), 25),  # by the sum alone
        ((54,) * 4, 50),
        ((4, 4, 4), 30),  # four rows of 5 tokens each
        ((9,), 21),  # two rows of 10
    ],
)
def test_decodes_alone_take_what_their_graph_took(
    replayed: Profile, contexts: tuple[int, ...], ms: float
) -> None:
    """As measured, on the line between, and padded to the next size."""
    assert decode_ms(replayed, *contexts) == pytest.approx(ms)


def test_all_else_is_launched(replayed: Profile, tiny_profile: Profile) -> None:
    """More decodes than the largest graph holds, and any beside a prompt, add up as before."""
    prompt = (Chunk(Sequence(9, 4, 9), 4, 0),)
    for contexts, beside in (((3,) * 5, ()), ((3, 3), prompt)):
        wanted = decode_ms(tiny_profile, *contexts, beside=beside)
        assert decode_ms(replayed, *contexts, beside=beside) == wanted
    assert replayed.launched() == tiny_profile
    assert tiny_profile.launched() is tiny_profile


def test_a_variant_s_own_router(replayed: Profile) -> None:
    """Shares 1, 1, 0, 0 hit 2 experts of two tokens in place of 3: 3 ms less in each layer."""
    own = replayed.router.model_copy(update={"popularity": [[1, 1, 0, 0]] * 2})
    variants = {"skewed": {"model_digest": "d", "router": own}}
    transfers = Transfers.model_validate({"variants": variants})
    profile = replayed.model_copy(update={"transfers": transfers})
    skewed = profile.of_variant("skewed")
    assert decode_ms(skewed, 4, 4) == pytest.approx(20 - 2 * 3)
    assert decode_ms(skewed.of_variant("skewed"), 4, 4) == decode_ms(skewed, 4, 4)
    assert decode_ms(profile, 4, 4) == pytest.approx(20)


def test_experts_in_a_store(replayed: Profile) -> None:
    """Half as long again: 2 + 3 x 3 = 11 ms become 16.5 in each layer; one by one no graph holds.

    Where a store was never measured nothing is known but that.
    """
    places = [cell.at for cell in replayed.operations["experts"]]
    stored = Stored(copies=8, complete=True, factors=[(at[0], at[1], 1.5) for at in places])
    profile = replayed.model_copy(update={"transfers": Transfers(stored=[stored])})
    pooled = through_store(profile, 8, complete=True)
    assert decode_ms(pooled, 4, 4) == pytest.approx(20 + 2 * 5.5)
    for each in (profile, replayed):
        assert through_store(each, 8, complete=False) == each.launched()


@pytest.mark.parametrize("kind", ["slice", "group"])
def test_replays_are_scaled_with_their_operations(kind: str) -> None:
    """Replays that took the sum of their rooflines do so on a part of the device, and on a group.

    But for the passes between kernels, which nothing scales: 0.9 ms a layer's sum, and which are
    taken for launches of the replays too.
    """
    gpu = load_device("h100-sxm-80gb")
    part = mig_slices(gpu, ["3g.40gb"])[0] if kind == "slice" else group(gpu, tensor_parallel=2)
    plain = roofline_profile(
        load_model("mixtral-8x7b"), gpu, max_batched_tokens=512, max_num_seqs=64
    )
    seconds = {
        (size, size * (context + 1)): decode_ms(plain, *[context] * size) / 1000
        for size in (1, 64)
        for context in (15, 4000)
    }
    whole = with_replays(plain, {(float(n), float(c)): s for (n, c), s in seconds.items()})
    for size in (1, 64):
        contexts = [1000] * size
        wanted = decode_ms(on_slice(plain, gpu, part), *contexts)
        assert decode_ms(on_slice(whole, gpu, part), *contexts) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("blocks", [60, 4000])
def test_jumping_equals_stepping(blocks: int) -> None:
    """Replays are lines over the context too, whether blocks run out or not."""
    demo = load_profile("demo-cpu")
    seconds = {
        (float(size), float(size * context)): 1e-3 * (1 + size / 10 + context / 1000)
        for size in (1, 2, 4, 8)
        for context in (17, 400)
    }
    profile = with_replays(demo, seconds)
    content: dict[str, Any] = load_scenario("quickstart").to_content()
    (name,) = content["models"]
    content |= {"duration_s": 10.0, "alternatives": {}}
    content["deployment"]["kv_blocks"] = blocks
    scenario = scenario_from(content)
    jumped, stepped, launched = (
        simulate(scenario, {name: found}, stepwise=stepwise).records
        for found, stepwise in ((profile, False), (profile, True), (profile.launched(), False))
    )
    pd.testing.assert_frame_equal(jumped, stepped, rtol=0, atol=1e-9)
    assert jumped["finish_s"].mean() < launched["finish_s"].mean()


@pytest.mark.parametrize("asked", [None, "bf16", "int8"])
def test_narrowed_weights_have_to_be_said(asked: str | None) -> None:
    """A profile of weights in fp8 serves who says so; anything else is one line with the remedy."""
    drawn = roofline_profile(
        load_model("mixtral-8x7b"),
        load_device("h200-sxm-141gb"),
        max_batched_tokens=64,
        max_num_seqs=8,
    )
    formats = {"experts": "fp8", "rest": "fp8", "kv": "bf16"}
    content = drawn.model_dump() | {"source": "measured", "precision": formats}
    content["provenance"]["device"] = "NVIDIA H200"
    measured = Profile.model_validate(content)
    written: dict[str, Any] = load_scenario("quickstart").to_content()
    (name,) = written["models"]
    model = {"architecture": "mixtral-8x7b", "profile": "given"}
    written["models"][name] = model | {"precision": asked}
    written["hardware"] = {"device": "h200-sxm-141gb"}
    said = rf"^models\.{name}\.precision: {asked or 'bf16'}, the profile was measured in fp8; "
    with pytest.raises(ProfileError, match=said + "say fp8, profile the model so"):
        load_inputs(scenario_from(written), {name: measured})
    written["models"][name] = model | {"precision": "fp8"}
    (memory,) = memory_of(scenario_from(written), {name: measured})
    assert memory.plan.private_expert_bytes == 256 * 176_160_768
