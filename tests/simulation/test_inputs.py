"""Which models a scenario may name."""

from typing import Any

import pytest
import yaml

from moesim.cost.roofline import roofline_profile
from moesim.errors import ProfileError, ScenarioError
from moesim.facts.catalog import load_device, load_model, shipped
from moesim.scenario import scenario_from
from moesim.simulation.inputs import load_inputs


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
