"""What sits where on the slices of each kind of deployment, worked out by hand; and ways out.

Mixtral-8x7B in 16 bit: 256 experts of 352,321,536 B, other weights 3,211,272,192 B, KV blocks of 16
tokens 2 MiB. One sequence of at most 512 tokens an iteration has activations of
2 (6 x 512 x 4096 + 3 x 512 x 2 x 14336 + 32000) + 4 x 32000 = 113,438,208 B. In 8 bit an expert is
half as much; of the other weights attention is (1,342,177,280 B), the rest (526,917,632 B) is not.
"""

from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.profile import load_profile
from moesim.errors import CapacityError, ScenarioError
from moesim.facts.catalog import load_device
from moesim.facts.mig import find_profile
from moesim.scenario import Scenario, scenario_from
from moesim.simulation.memory import counted, memory_of
from moesim.simulation.pool import shared_out
from moesim.simulation.run import simulate
from moesim.simulation.slice_memory import SliceMemory

EXPERT, SET, BLOCK, ACTIVE = 352_321_536, 3_211_272_192, 2**21, 113_438_208
SET_8, EXPERT_8 = 1_342_177_280 + 526_917_632, EXPERT // 2
A100 = load_device("a100-sxm-80gb")
H200 = load_device("h200-sxm-141gb")
FIT = {"resident": "fit", "load_gb_per_s": 25}


def scenario(deployment: dict[str, Any], *, device: str = A100.name, **model: Any) -> Scenario:
    """Return two Mixtrals, one sequence at a time."""
    scheduler = {"max_num_seqs": 1, "max_batched_tokens": 512}
    router = deployment["kind"] == "expert_router"
    if not router:
        deployment = {"scheduler": scheduler, **deployment}
    lengths = {"kind": "fixed", "tokens": 20}
    return scenario_from(
        {
            "name": "memory",
            "duration_s": 200,
            "models": {
                name: {"architecture": "mixtral-8x7b", "profile": "roofline", **model}
                for name in ("base", "tuned")
            },
            "tenants": {
                name: {
                    "model": "gate" if router else name,
                    "arrivals": {"kind": "constant", "rate_per_s": 0.02},
                    "prompt_tokens": lengths,
                    "output_tokens": lengths,
                }
                for name in ("base", "tuned")
            },
            "hardware": {"device": device, "count": 16},
            "deployment": deployment,
        }
    )


def only(found: Scenario) -> SliceMemory:
    (memory,) = memory_of(found)
    return memory


def parts(memory: SliceMemory) -> tuple[int, ...]:
    """Return other weights, shared and private experts, KV cache, activations, set aside."""
    return tuple(memory.plan.parts.values())


def aside(size: int) -> int:
    return ceil(0.1 * size)


def room(size: int) -> int:
    return size - aside(size) - ACTIVE


def test_dedicated() -> None:
    """An H200 each; what is left beside all weights is for KV blocks, or so many as asked for."""
    base, tuned = memory_of(scenario({"kind": "dedicated"}, device=H200.name))
    blocks = (room(H200.memory_bytes) - SET - 256 * EXPERT) // BLOCK
    assert base.kv_blocks == (blocks,)
    assert parts(base) == (
        SET, 0, 256 * EXPERT, blocks * BLOCK, ACTIVE, aside(H200.memory_bytes)
    )  # fmt: skip
    assert (base.models, tuned.models, base.plan) == (("base",), ("tuned",), tuned.plan)
    asked = memory_of(scenario({"kind": "dedicated", "kv_blocks": 64}, device=H200.name))
    assert asked[0].plan.kv_bytes == 64 * BLOCK


def test_dedicated_with_experts_in_host_memory() -> None:
    """Whatever experts fit beside 64 blocks."""
    base = memory_of(scenario({"kind": "dedicated", "kv_blocks": 64, "experts": FIT}))[0]
    here = (room(A100.memory_bytes) - SET - 64 * BLOCK) // EXPERT
    assert parts(base)[:4] == (SET, 0, here * EXPERT, 64 * BLOCK)
    assert base.plan.host_expert_bytes == (256 - here) * EXPERT


def test_tensor_parallel_on_each_device() -> None:
    """Half of attention, experts, vocabulary and KV heads; routers and norms on both."""
    memories = memory_of(
        scenario({"kind": "tensor_parallel", "tensor_parallel": 2, "replicas": 3, "kv_blocks": 64})
    )
    assert list(counted(memories).values()) == [3, 3]
    first = memories[0]
    others = 2 * (32 * 41_943_040 // 2 + 262_144_000 // 2 + 32 * 32_768 + 65 * 4096)
    assert parts(first)[:4] == (others, 0, 128 * EXPERT, 64 * BLOCK // 2)
    assert (first.devices, first.plan.slice_bytes) == (2, A100.memory_bytes)


def test_expert_parallel_on_each_device() -> None:
    """Every fourth expert, a quarter of attention, two of eight KV heads."""
    first = memory_of(scenario({"kind": "expert_parallel", "expert_parallel": 4, "kv_blocks": 64}))[
        0
    ]
    others = 2 * (32 * 41_943_040 // 4 + 262_144_000 // 4 + 32 * 32_768 + 65 * 4096)
    assert parts(first)[:4] == (others, 0, 64 * EXPERT, 64 * BLOCK // 4)


def test_mig() -> None:
    """Each instance its own memory: what of the experts fits there."""
    memories = memory_of(
        scenario({"kind": "mig", "layout": ["3g.40gb", "2g.20gb"], "kv_blocks": 64, "experts": FIT})
    )
    for memory, profile in zip(memories, ("3g.40gb", "2g.20gb"), strict=True):
        size = find_profile(A100, profile).memory_bytes
        here = (room(size) - SET - 64 * BLOCK) // EXPERT
        assert parts(memory) == (SET, 0, here * EXPERT, 64 * BLOCK, ACTIVE, aside(size))


def test_models_side_by_side_on_an_instance() -> None:
    """In 8 bit both are whole on a 7g.141gb; what is left for KV is halved."""
    dealt = {"layout": ["7g.141gb"], "instances": {"base": [0], "tuned": [0]}}
    memory = only(scenario({"kind": "mig", **dealt}, device=H200.name, precision="fp8"))
    left = room(140 * 2**30) - 2 * (SET_8 + 256 * EXPERT_8)
    assert memory.kv_blocks == (left // 2 // BLOCK,) * 2
    assert parts(memory)[:3] == (2 * SET_8, 0, 512 * EXPERT_8)


def test_mps_is_one_pool() -> None:
    """Both models' weights and, as they run at once, activations, against the whole device."""
    shares = {"sm_percent": {"base": 30, "tuned": 70}}
    memory = only(scenario({"kind": "mps", **shares}, device=H200.name, precision="fp8"))
    left = room(H200.memory_bytes) - ACTIVE - 2 * (SET_8 + 256 * EXPERT_8)
    blocks = left // 2 // BLOCK
    assert memory.kv_blocks == (blocks, blocks)
    assert parts(memory) == (
        2 * SET_8, 0, 512 * EXPERT_8, 2 * blocks * BLOCK, 2 * ACTIVE, aside(H200.memory_bytes)
    )  # fmt: skip


def test_mps_with_experts_in_host_memory() -> None:
    """What all else leaves is halved: as many experts of each as fit into its half."""
    shares = {"sm_percent": {"base": 50, "tuned": 50}}
    memory = only(scenario({"kind": "mps", **shares, "kv_blocks": 64, "experts": FIT}))
    left = room(A100.memory_bytes) - ACTIVE - 2 * (SET + 64 * BLOCK)
    here = left // 2 // EXPERT
    assert parts(memory)[:4] == (2 * SET, 0, 2 * here * EXPERT, 128 * BLOCK)
    assert memory.plan.host_expert_bytes == 2 * (256 - here) * EXPERT


def test_time_shared() -> None:
    """One model at a time, the other in host memory; each keeps its half of the KV room."""
    memory = only(scenario({"kind": "time_shared", "load_gb_per_s": 25}, device=H200.name))
    left = room(H200.memory_bytes) - SET - 256 * EXPERT
    assert memory.kv_blocks == (left // 2 // BLOCK,) * 2
    assert parts(memory)[:3] == (SET, 0, 256 * EXPERT)
    assert memory.plan.host_expert_bytes + memory.plan.host_non_expert_bytes == SET + 256 * EXPERT


def test_time_shared_with_experts_in_host_memory() -> None:
    """Of the loaded model what fits; all of the other waits."""
    memory = only(scenario({"kind": "time_shared", "kv_blocks": 64, "experts": FIT}))
    here = (room(A100.memory_bytes) - SET - 128 * BLOCK) // EXPERT
    assert parts(memory)[:4] == (SET, 0, here * EXPERT, 128 * BLOCK)
    assert memory.plan.host_expert_bytes == (512 - here) * EXPERT
    assert memory.plan.host_non_expert_bytes == SET


def test_offloaded() -> None:
    """Both non-expert sets and one cache each; experts fill the rest."""
    memories = memory_of(scenario({"kind": "offloaded", "kv_blocks": 64, "replicas": 2}))
    here = (room(A100.memory_bytes) - 2 * SET - 128 * BLOCK) // EXPERT
    ((memory, count),) = counted(memories).items()
    assert count == 2
    assert parts(memory)[:4] == (2 * SET, 0, here * EXPERT, 128 * BLOCK)


def test_consolidated() -> None:
    """Half of 256 positions shared, of the 256 private copies as many as fit; one set at a time."""
    memory = only(scenario({"kind": "consolidated", "ratio": 0.5, "kv_blocks": 64}))
    here = (room(A100.memory_bytes) - SET - 128 * BLOCK) // EXPERT
    assert parts(memory)[:4] == (SET, 128 * EXPERT, (here - 128) * EXPERT, 128 * BLOCK)
    assert memory.plan.host_expert_bytes == (128 + 256 - here) * EXPERT
    assert memory.plan.host_non_expert_bytes == SET


@pytest.mark.parametrize(
    "deployment",
    [
        {"kind": "offloaded", "experts": FIT},
        {"kind": "consolidated", "ratio": 1.0, "swap_gb_per_s": 25, "experts": FIT},
        {
            "kind": "mig",
            "layout": ["7g.80gb"],
            "instances": {"base": [0], "tuned": [0]},
            "experts": FIT,
        },
    ],
    ids=["offloaded", "consolidated", "mig"],
)
@pytest.mark.parametrize("narrow", ["base", "tuned"])
def test_copies_of_one_memory_have_one_format(deployment: dict[str, Any], narrow: str) -> None:
    """An expert in int4 does not serve a variant in bf16, nor take the place of its copy."""
    content = scenario(deployment).model_dump(mode="json")
    content["models"][narrow]["precision"] = "int4"
    with pytest.raises(ScenarioError, match=r"models\.tuned\.precision: another than that of base"):
        memory_of(scenario_from(content))


def test_expert_router() -> None:
    """Each expert model as its own deployment says."""
    experts = {
        "base": {"kind": "tensor_parallel", "tensor_parallel": 2, "kv_blocks": 64},
        "tuned": {"kind": "offloaded", "kv_blocks": 64},
    }
    gateway = {"name": "gate", "classify_s": 0.001, "shares": {"base": 1, "tuned": 1}}
    base, tuned = memory_of(
        scenario({"kind": "expert_router", "gateway": gateway, "experts": experts})
    )
    assert (base.name, base.plan.private_expert_bytes) == (f"2x {A100.name}", 128 * EXPERT)
    assert (tuned.models, tuned.plan.non_expert_bytes) == (("tuned",), SET)


KINDS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "dedicated"}, H200.name),
    ({"kind": "dedicated", "experts": FIT, "kv_blocks": 99}, A100.name),
    ({"kind": "tensor_parallel", "tensor_parallel": 4}, A100.name),
    ({"kind": "mig", "layout": ["3g.40gb", "3g.40gb"], "experts": FIT}, A100.name),
    ({"kind": "mps", "sm_percent": {"base": 50, "tuned": 50}, "experts": FIT}, A100.name),
    ({"kind": "time_shared"}, H200.name),
    ({"kind": "time_shared", "experts": FIT}, A100.name),
    ({"kind": "offloaded"}, A100.name),
    ({"kind": "consolidated", "ratio": 0.5}, A100.name),
]


@pytest.mark.parametrize(("deployment", "device"), KINDS, ids=str)
def test_replicas_have_the_blocks_that_are_shown(deployment: dict[str, Any], device: str) -> None:
    """The simulation divides memory up by the same figures."""
    written = scenario(deployment, device=device)
    shown = [blocks for memory in memory_of(written) for blocks in memory.kv_blocks]
    assert simulate(written).replicas["kv_blocks"].tolist() == shown


def test_what_does_not_fit_is_said_and_not_raised() -> None:
    """By how much, slice by slice; `simulate` raises with the same figures and ways out."""
    written = scenario({"kind": "dedicated", "kv_blocks": 64})
    memory = memory_of(written)[0]
    used = SET + 256 * EXPERT + 64 * BLOCK + ACTIVE + aside(A100.memory_bytes)
    assert memory.plan.short_by_bytes == used - A100.memory_bytes
    with pytest.raises(CapacityError) as caught:
        simulate(written)
    assert str(caught.value).startswith(f"model base does not fit on {A100.name}: weights 87 GiB +")
    assert str(caught.value).endswith(memory.sentence.removeprefix("does not fit: "))
    assert "\n" not in str(caught.value)


def changed(deployment: dict[str, Any], way: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the deployment and the models' precision that a way out asks for."""
    words = way.split()
    if words[:2] == ["set", "precision"]:
        return deployment, {"precision": words[-1]}
    if words[:2] == ["set", "experts.resident"]:
        return {**deployment, "experts": {**FIT, "resident": float(words[3])}}, {}
    if words[:3] == ["take", "kind:", "tensor_parallel,"]:
        kept = {"kv_blocks": deployment["kv_blocks"]}
        return {"kind": "tensor_parallel", "tensor_parallel": int(words[-1]), **kept}, {}
    if words[:2] == ["set", "non_expert_sets"]:
        return {**deployment, "non_expert_sets": "one"}, {}
    field = words[1]
    return {**deployment, field: type(deployment[field])(float(words[3]))}, {}


SHORT: list[tuple[dict[str, Any], set[str]]] = [
    (
        {"kind": "dedicated", "kv_blocks": 64},
        {"set experts.resident", "set precision", "take kind: tensor_parallel"},
    ),
    ({"kind": "consolidated", "ratio": 1.0, "kv_blocks": 25_000}, {"set kv_blocks"}),
    (
        {
            "kind": "consolidated", "ratio": 0.25, "kv_blocks": 64, "non_expert_sets": "all",
            "experts": {"resident": 0.455},
        },
        {"set experts.resident", "raise ratio", "set precision", "set non_expert_sets"},
    ),
    ({"kind": "tensor_parallel", "tensor_parallel": 2, "kv_blocks": 40_000},
     {"set kv_blocks", "set precision", "set tensor_parallel"}),
    ({"kind": "expert_parallel", "expert_parallel": 2, "kv_blocks": 40_000},
     {"set kv_blocks", "set precision", "set expert_parallel"}),
    ({"kind": "mps", "sm_percent": {"base": 50, "tuned": 50}, "kv_blocks": 20_000, "experts": FIT},
     {"set kv_blocks"}),
    ({"kind": "time_shared", "kv_blocks": 20_000, "experts": FIT}, {"set kv_blocks"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("deployment", "kinds"), SHORT, ids=lambda each: each["kind"] if isinstance(each, dict) else ""
)
def test_the_ways_out_lead_out(deployment: dict[str, Any], kinds: set[str]) -> None:
    """Each change, made to the scenario as it is written, makes every slice fit."""
    memory = memory_of(scenario(deployment))[0]
    assert not memory.plan.fits
    ways = [way for way in memory.remedies if not way.startswith("take a whole ")]
    assert {kind for kind in kinds for way in ways if way.startswith(kind)} == kinds
    for way in ways:
        other, model = changed(deployment, way)
        assert all(each.plan.fits for each in memory_of(scenario(other, **model))), way


@pytest.mark.parametrize("kind", ["consolidated", "time_shared", "mps", "tensor_parallel"])
def test_no_way_out_gives_up_more_blocks_than_it_must(kind: str) -> None:
    """One more does not fit."""
    deployment = next(each for each, _ in SHORT if each["kind"] == kind and "kv_blocks" in each)
    if kind == "consolidated":
        deployment = SHORT[1][0]
    (way,) = (way for way in memory_of(scenario(deployment))[0].remedies if "kv_blocks" in way)
    blocks = int(way.split()[3])
    for count, fits in ((blocks, True), (blocks + 1, False)):
        memory = memory_of(scenario({**deployment, "kv_blocks": count}))[0]
        assert memory.plan.fits is fits


def test_a_device_of_unknown_memory_is_refused() -> None:
    """The one that was profiled may have any."""
    written = scenario({"kind": "dedicated"})
    hardware = written.hardware.model_copy(update={"device": "profiled"})
    with pytest.raises(ScenarioError, match="its memory is not known; name a device"):
        memory_of(written.model_copy(update={"hardware": hardware}))


INT8 = {"precision": "int8"}


def test_free_memory_goes_to_the_kv_caches_of_variants() -> None:
    """With all experts there: evenly, as where models are whole; nothing but rounding is left."""
    memory = only(scenario({"kind": "consolidated", "ratio": 1}, **INT8))
    free = room(A100.memory_bytes) - SET_8 - 256 * EXPERT_8
    assert memory.kv_blocks == (free // BLOCK // 2,) * 2
    assert memory.plan.free_bytes < 2 * BLOCK


@pytest.mark.parametrize("experts", [FIT, {**FIT, "resident": 0.25}], ids=["fit", "told"])
def test_a_longest_sequence_goes_before_experts(experts: dict[str, Any]) -> None:
    """32,768 tokens a variant; as many experts as fit or are asked for, then blocks once more."""
    memory = only(scenario({"kind": "consolidated", "ratio": 0.5, "experts": experts}))
    here = (room(A100.memory_bytes) - SET - 2 * 2048 * BLOCK) // EXPERT
    if experts["resident"] != "fit":
        here = 96
    assert memory.plan.shared_expert_bytes + memory.plan.private_expert_bytes == here * EXPERT
    free = room(A100.memory_bytes) - SET - here * EXPERT
    assert memory.kv_blocks == (free // BLOCK // 2,) * 2


@pytest.mark.parametrize(
    "deployment",
    [
        {"kind": "time_shared"},
        {"kind": "mig", "layout": ["7g.141gb"], "instances": {"base": [0], "tuned": [0]}},
        {"kind": "mps", "sm_percent": {"base": 50, "tuned": 50}},
        {"kind": "dedicated"},
    ],
    ids=lambda each: each["kind"],
)
def test_experts_that_may_be_absent_but_are_not(deployment: dict[str, Any]) -> None:
    """KV caches are as large as where none may be."""
    whole = memory_of(scenario(deployment, device=H200.name, **INT8))
    maybe = memory_of(scenario({**deployment, "experts": FIT}, device=H200.name, **INT8))
    assert [each.kv_blocks for each in maybe] == [each.kv_blocks for each in whole]


def test_variants_have_no_more_blocks_than_the_profiled_engine() -> None:
    """Whose cache may have been bounded by more than memory."""
    written = scenario(
        {"kind": "consolidated", "ratio": 0.5, "non_expert_sets": "all"},
        device="cpu-2core", architecture="demo-moe", profile="demo-cpu",
    )  # fmt: skip
    allocated = load_profile("demo-cpu").kv.num_blocks
    memory = only(written)
    assert memory.kv_blocks == (allocated, allocated)
    assert memory.plan.free_bytes > 0


def formats_offered(*, device: str, profile: str) -> tuple[str, str]:
    """Return the formats and the larger device that are a lone Mixtral's ways out."""
    memory = memory_of(scenario({"kind": "dedicated"}, device=device, profile=profile))[0]
    (narrower,) = (way for way in memory.remedies if way.startswith("set precision"))
    (larger,) = (way for way in memory.remedies if way.startswith("take a whole"))
    return narrower, larger


def test_ways_out_go_with_the_profile() -> None:
    """There are kernels in fp8 for the H100 and none in int8 for the A100; another GPU has its own.

    A roofline is drawn for anything.
    """
    own = " with profile: roofline or one of its own"
    narrower, larger = formats_offered(device="h100-sxm-80gb", profile="h100-sxm-80gb")
    assert narrower.endswith(" to fp8")
    assert own in larger
    narrower, larger = formats_offered(device=A100.name, profile=A100.name)
    assert narrower.endswith(" to int8 with profile: roofline")
    narrower, larger = formats_offered(device=A100.name, profile="roofline")
    assert narrower.endswith(" to int8")
    assert own not in larger


def test_absent_experts_are_counted() -> None:
    """Of all variants together, slices alike once; nothing is said where all are there."""
    written = scenario({"kind": "consolidated", "ratio": 0.5, "kv_blocks": 64, "replicas": 2})
    here = (room(A100.memory_bytes) - SET - 128 * BLOCK) // EXPERT
    said = f"in host memory: {384 - here} of 384 expert copies of base + tuned"
    assert simulate(written).metrics()["absent_experts"] == said
    apart = {"kind": "mig", "layout": ["3g.40gb", "3g.40gb"], "kv_blocks": 64, "experts": FIT}
    sentence = simulate(scenario(apart)).metrics()["absent_experts"]
    assert sentence.count(" of 256 expert copies of ") == 2
    whole = scenario({"kind": "consolidated", "ratio": 1, "kv_blocks": 64}, **INT8)
    assert simulate(whole).metrics()["absent_experts"] is None


@given(st.integers(-100, 10**6), st.lists(st.integers(0, 10**6), min_size=1, max_size=5))
def test_sharing_out_is_even_and_wastes_nothing(room: int, wanted: list[int]) -> None:
    """Nobody gets more than wanted, nor the unsatisfied less than others, but for a remainder."""
    given_out = shared_out(room, wanted)
    assert sum(given_out) <= max(0, room)
    short = [part for part, want in zip(given_out, wanted, strict=True) if part < want]
    if short:
        assert sum(given_out) > room - len(wanted) or room < 0
        assert min(short) >= max(given_out) - 1
