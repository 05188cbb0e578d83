"""Which models a scenario may name."""

from typing import Any

import pytest
import yaml

from moesim.errors import ProfileError, ScenarioError
from moesim.facts.catalog import shipped
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
