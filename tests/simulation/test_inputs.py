"""Which models a scenario may name."""

from typing import Any

import pytest
import yaml

from moesim.cost.roofline import roofline_profile
from moesim.errors import ProfileError, ScenarioError
from moesim.facts.catalog import load_device, load_model, shipped
from moesim.scenario import scenario_from
from moesim.simulation.inputs import load_inputs

PARTS = ("attention_decode", "experts", "projections")
"""Of an iteration's operations one that reads the cache, and two that do not."""


@pytest.fixture
def quickstart() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(shipped("scenarios")["quickstart"].read_text())
    return content


@pytest.mark.parametrize(
    ("profile", "error", "message"),
    [
        ("demo-cpu", ScenarioError, r"model_type: 'switch_transformers' is not supported here"),
        ("roofline", ProfileError, "profile roofline: knows decoders, not switch_transformers"),
    ],
)
def test_an_encoder_decoder_is_refused(
    quickstart: dict[str, Any], profile: str, error: type[Exception], message: str
) -> None:
    """The engine serves it; what it takes nobody has measured, nor drawn from a datasheet."""
    (name,) = quickstart["models"]
    quickstart["models"][name] = {"architecture": "switch-base-8", "profile": profile}
    quickstart["hardware"] = {"device": "a100-sxm-80gb"}
    with pytest.raises(error, match=message):
        load_inputs(scenario_from(quickstart), {})


@pytest.mark.parametrize(
    ("measured_on", "fits"),
    [
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", True),
        ("NVIDIA A100-SXM4-80GB", False),
        ("NVIDIA H100 PCIe", False),
    ],
)
def test_a_profile_of_another_gpu_is_refused(
    quickstart: dict[str, Any], measured_on: str, fits: bool
) -> None:
    """An instance is of its GPU; which layouts have it is asked where slices are made."""
    drawn = roofline_profile(
        load_model("llama-3-8b"),
        load_device("h100-sxm-80gb"),
        max_batched_tokens=64,
        max_num_seqs=8,
    )
    provenance = drawn.provenance.model_copy(update={"device": measured_on})
    measured = drawn.model_copy(update={"source": "measured", "provenance": provenance})
    (name,) = quickstart["models"]
    quickstart["models"][name] = {"architecture": "llama-3-8b", "profile": "given"}
    quickstart["hardware"] = {"device": "h100-sxm-80gb"}
    scenario = scenario_from(quickstart)
    if fits:
        assert load_inputs(scenario, {name: measured}).profiles[name] == measured
        return
    with pytest.raises(ProfileError, match=f"profile: measured on {measured_on}, hardware.device"):
        load_inputs(scenario, {name: measured})


def served(quickstart: dict[str, Any], **model: str) -> dict[str, Any]:
    """Return the quickstart with Mixtral 8x7B on an H100, by its kernels unless told otherwise."""
    (name,) = quickstart["models"]
    written = {"architecture": "mixtral-8x7b", "profile": "h100-sxm-80gb", "precision": "fp8"}
    quickstart["models"][name] = written | model
    quickstart["hardware"] = {"device": "h100-sxm-80gb"}
    return quickstart


@pytest.mark.parametrize("profile", ["h100-sxm-80gb", "roofline"])
def test_a_narrow_cache_holds_twice_as_much(quickstart: dict[str, Any], profile: str) -> None:
    """Keys and values of one byte in place of two, the weights as they were."""
    (name,) = quickstart["models"]
    blocks, seconds = [], []
    for kv in ("bf16", "fp8"):
        content = served(quickstart, profile=profile, kv_precision=kv)
        made = load_inputs(scenario_from(content), {}).profiles[name]
        blocks.append(made.kv.num_blocks)
        seconds.append([made.operations[part][-1].median_s for part in PARTS])
    assert blocks[1] in (2 * blocks[0], 2 * blocks[0] + 1)
    assert seconds[1][0] < seconds[0][0]
    assert seconds[1][1:] == seconds[0][1:]


def test_without_a_word_the_cache_stays_in_16_bits(quickstart: dict[str, Any]) -> None:
    """As before there was one to say: fp8 weights alone do not narrow it."""
    (name,) = quickstart["models"]
    made = [
        load_inputs(scenario_from(served(quickstart, **kv)), {}).profiles[name].kv.num_blocks
        for kv in ({}, {"kv_precision": "bf16"})
    ]
    assert made[0] == made[1]


def test_a_cache_that_was_not_measured_is_refused(quickstart: dict[str, Any]) -> None:
    """By kernels with the formats they have, by a model's own profile with its one."""
    with pytest.raises(ProfileError, match=r"kv_precision: no attention .* in int8 .* bf16, fp8"):
        load_inputs(scenario_from(served(quickstart, kv_precision="int8")), {})
    demo = yaml.safe_load(shipped("scenarios")["quickstart"].read_text())
    (name,) = demo["models"]
    demo["models"][name] = {
        "architecture": "demo-moe",
        "profile": "demo-cpu",
        "kv_precision": "fp8",
    }
    demo["hardware"] = {"device": "cpu-2core"}
    message = rf"models\.{name}\.kv_precision: fp8, the profile was measured in fp32"
    with pytest.raises(ProfileError, match=message):
        load_inputs(scenario_from(demo), {})


@pytest.mark.parametrize("part", ["device", "architecture", "profile"])
def test_a_file_that_is_not_there_is_named_with_its_field(
    quickstart: dict[str, Any], part: str
) -> None:
    """A name alone does not say which of the scenario's many is wrong."""
    (name,) = quickstart["models"]
    held = quickstart["hardware"] if part == "device" else quickstart["models"][name]
    held[part] = "b200"
    field = "hardware.device" if part == "device" else f"models.{name}.{part}"
    with pytest.raises(ScenarioError, match=rf"^{field}: b200: neither a file nor"):
        load_inputs(scenario_from(quickstart), {})
