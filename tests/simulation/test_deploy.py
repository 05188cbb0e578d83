"""MIG deployments: which slices replicas get, what they cost, and what cannot be."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.expected import Rates, expected_s
from moesim.cost.iteration import CostModel
from moesim.cost.profile import Profile, load_profile
from moesim.cost.roofline import launch_s, on_slice, passes_s, roofline_profile
from moesim.errors import CapacityError, MoesimError
from moesim.facts.catalog import load_device, load_model
from moesim.facts.slices import Slice, mig_slices, whole
from moesim.scenario import scenario_from
from moesim.serving.sequences import Batch, Chunk, Sequence
from moesim.simulation.deploy import drafted_of
from moesim.simulation.inputs import load_inputs
from moesim.simulation.run import simulate

H200 = load_device("h200-sxm-141gb")


def content(**deployment: Any) -> dict[str, Any]:
    """Return two small models on instances of an H200."""
    lengths = {"kind": "fixed", "tokens": 50}
    arrivals = {"kind": "poisson", "rate_per_s": 5}
    tenant = {"arrivals": arrivals, "prompt_tokens": lengths, "output_tokens": lengths}
    model = {"architecture": "demo-moe", "profile": "roofline"}
    return {
        "name": "mig",
        "duration_s": 20,
        "models": {"a": model, "b": model},
        "tenants": {name: {"model": name, **tenant} for name in "ab"},
        "hardware": {"device": H200.name},
        "deployment": {"kind": "mig", **deployment},
    }


def roofline() -> Profile:
    return roofline_profile(
        load_model("mixtral-8x7b"), H200, max_batched_tokens=2048, max_num_seqs=64
    )


def iteration_s(profile: Profile, decodes: int, prompt: int) -> float:
    cost = CostModel(profile, max_batched_tokens=4096, max_num_seqs=64)
    chunks = [Chunk(Sequence(n, 500, 9, generated=1), 1, 500) for n in range(decodes)]
    if prompt:
        chunks.append(Chunk(Sequence(99, prompt, 9), prompt, 0))
    return cost.iteration_s(Batch(chunks))


def test_instances_are_dealt_in_turn() -> None:
    """Three instances, two models: the first has two replicas."""
    result = simulate(scenario_from(content(layout=["3g.71gb", "2g.35gb", "2g.35gb"])))
    assert sorted(result.logs) == ["a/0", "a/1", "b/0"]


def test_a_larger_instance_answers_sooner() -> None:
    """The same traffic on a 4g and on a 1g instance, as named."""
    layout = ["1g.18gb", "4g.71gb"]
    dealt = content(layout=layout, instances={"a": [1], "b": [0]})
    tenants = simulate(scenario_from(dealt)).metrics()["tenants"]
    assert tenants["a"]["tpot_s"]["mean"] < tenants["b"]["tpot_s"]["mean"]


def test_half_the_memory_slices_are_half_the_bandwidth() -> None:
    """A decoding sequence is all reading, twice as long on 3g; a prompt has 60 of 132 SMs."""
    part = mig_slices(H200, ["3g.71gb", "3g.71gb"])[0]
    half = on_slice(roofline(), H200, part)
    launches_s = 32 * passes_s(half.spec)
    twice_s = 2 * (iteration_s(roofline(), 1, 0) - launches_s)
    assert iteration_s(half, 1, 0) == pytest.approx(twice_s + launches_s)
    long = iteration_s(half, 0, 2048) / iteration_s(roofline(), 0, 2048)
    assert long == pytest.approx(132 / 60, rel=0.01)


def test_launches_do_not_shrink() -> None:
    """A measured profile keeps its host, router and launches, scales the rest, and says so."""
    measured = load_profile("demo-cpu")
    part = Slice(name="half", compute_share=0.5, bandwidth_share=0.5, memory_bytes=2**33)
    half = on_slice(measured, H200, part)
    rooflines = expected_s(measured.spec, Rates.of(H200))
    for name, cells in half.operations.items():
        before = measured.operations[name]
        fixed_s = launch_s(before, rooflines[name]) if name in rooflines else 0.0
        factor = 2 if name in rooflines else 1
        for cell, was in zip(cells, before, strict=True):
            assert cell.median_s == pytest.approx(fixed_s + factor * (was.median_s - fixed_s))
            assert fixed_s <= was.median_s
    cost = CostModel(half, max_batched_tokens=64, max_num_seqs=4)
    cost.iteration_s(Batch([Chunk(Sequence(0, 8, 2), 8, 0)]))
    assert set(cost.basis().values()) == {"scaled"}


def test_a_whole_device_is_left_alone() -> None:
    """Nothing is scaled by one."""
    profile = roofline()
    assert on_slice(profile, H200, whole(H200)) is profile


@given(
    st.floats(0.1, 1), st.floats(0.1, 1), st.floats(1, 3), st.integers(0, 40), st.integers(0, 900)
)
def test_more_of_a_device_is_never_slower(
    compute: float, bandwidth: float, more: float, decodes: int, prompt: int
) -> None:
    """Whatever the batch, with more SMs, more bandwidth, or both."""
    profile = roofline()

    def on(compute_share: float, bandwidth_share: float) -> float:
        part = Slice(
            name="s",
            compute_share=compute_share,
            bandwidth_share=bandwidth_share,
            memory_bytes=2**40,
        )
        return iteration_s(on_slice(profile, H200, part), decodes, prompt)

    if decodes or prompt:
        small = on(compute, bandwidth)
        slack = 1 + 1e-12
        assert on(compute * more, bandwidth) <= small * slack
        assert on(compute, bandwidth * more) <= small * slack


@pytest.mark.parametrize(
    ("deployment", "message"),
    [
        ({"layout": ["4g.71gb", "4g.71gb"]}, r"does not exist.*nearest that do: 4g.71gb \+ 3g"),
        ({"layout": ["9g.99gb"], "instances": {"a": [0]}}, r"model b has no instance"),
        ({"layout": ["3g.71gb", "9g.9gb"]}, r"no MIG profile '9g.9gb'; it has"),
        ({"layout": ["3g.71gb"]}, r"model b has no instance of the layout"),
        (
            {"layout": ["3g.71gb", "3g.71gb"], "instances": {"a": [0], "b": [2]}},
            r"instances.b: 2 must be one of 0 to 1, and given once",
        ),
        (
            {"layout": ["3g.71gb", "3g.71gb"], "instances": {"a": [0], "b": [1], "c": [1]}},
            r"instances.c: not one of the scenario's models",
        ),
    ],
)
def test_what_cannot_be(deployment: dict[str, Any], message: str) -> None:
    """One line each, with the remedy."""
    with pytest.raises(MoesimError, match=message):
        simulate(scenario_from(content(**deployment)))


def test_a_model_that_fits_no_instance() -> None:
    """Mixtral in 16 bit on 69.5 GiB."""
    whole_models = content(layout=["3g.71gb", "3g.71gb"])
    whole_models["models"]["a"] = {"architecture": "mixtral-8x7b", "profile": "roofline"}
    with pytest.raises(CapacityError, match=r"model a does not fit on .*3g.71gb: weights 87 GiB"):
        simulate(scenario_from(whole_models))


def test_a_cpu_cannot_be_divided() -> None:
    """Nor can a device that nobody named."""
    for device, message in (("cpu-2core", "no bf16_flop_per_s"), ("profiled", "roofline needs")):
        other = content(layout=["1g.18gb", "1g.18gb"])
        other["hardware"]["device"] = device
        with pytest.raises(MoesimError, match=message):
            simulate(scenario_from(other))


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_each_device_of_a_group_swaps_its_own_heads(ranks: int) -> None:
    """Llama 3 8B has 8 heads of keys and values: a block of 16 tokens is 2 MiB over all of them."""
    tenant = {
        "model": "m",
        "arrivals": {"kind": "poisson", "rate_per_s": 5},
        "prompt_tokens": {"kind": "fixed", "tokens": 9},
        "output_tokens": {"kind": "fixed", "tokens": 9},
    }
    scenario = scenario_from(
        {
            "name": "swap",
            "duration_s": 1,
            "models": {"m": {"architecture": "llama-3-8b", "profile": "roofline"}},
            "tenants": {"t": tenant},
            "hardware": {"device": "h100-sxm-80gb", "count": ranks},
            "deployment": {
                "kind": "tensor_parallel",
                "tensor_parallel": ranks,
                "scheduler": {"preemption": "swap", "swap_gb_per_s": 50},
            },
        }
    )
    (drafted,) = drafted_of(scenario, load_inputs(scenario))
    (station,) = drafted.stations()
    assert station.replicas[0].swap_block_s == pytest.approx(2**21 / ranks / 50e9)
