"""What a run says of quality: its curve's figure where one is known, and otherwise why not."""

from typing import Any

import pytest

from moesim.errors import ScenarioError
from moesim.scenario import Scenario, scenario_from
from moesim.simulation.run import simulate

CURVE = """
name: mine
metric: perplexity
better: lower
axis: ratio
variants: 2
joined: true
points: [{at: 0.2, value: 4.0}, {at: 0.6, value: 6.0}]
basis: measured
source: here
evidence: V
"""


def scenario(deployment: dict[str, Any], curve: str | None, **models: str) -> Scenario:
    """Return models of demo-moe's shape, or of others, on a device."""
    shapes = models or {"a": "demo-moe", "b": "demo-moe"}
    lengths = {"kind": "fixed", "tokens": 20}
    return scenario_from(
        {
            "name": "quality",
            "duration_s": 20,
            "models": {
                name: {"architecture": shape, "profile": "roofline"}
                for name, shape in shapes.items()
            },
            "tenants": {
                name: {
                    "model": name,
                    "arrivals": {"kind": "constant", "rate_per_s": 0.5},
                    "prompt_tokens": lengths,
                    "output_tokens": lengths,
                }
                for name in shapes
            },
            "hardware": {"device": "h200-sxm-141gb", "count": 4},
            "deployment": deployment,
            "quality": {"curve": curve} if curve else None,
        }
    )


def quality(deployment: dict[str, Any], curve: str | None, **models: str) -> Any:
    return simulate(scenario(deployment, curve, **models)).metrics()["quality"]


def consolidated(ratio: float) -> dict[str, Any]:
    return {"kind": "consolidated", "ratio": ratio}


@pytest.fixture
def curve(tmp_path: Any) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(CURVE)
    return str(path)


def test_no_curve_no_claim() -> None:
    """Not even that it is as served alone."""
    assert quality(consolidated(0.4), None) is None


def test_between_two_ratios(curve: str) -> None:
    """Half-way from 4 to 6, and said to be between."""
    known = quality(consolidated(0.4), curve)
    assert (known["value"], known["ratio"], known["interpolated"]) == (5.0, 0.4, True)
    assert known["sentence"] == (
        "quality: perplexity 5 (lower is better) at ratio 0.4, between two known ones; measured, "
        "read in a primary source: here"
    )


@pytest.mark.parametrize("ratio", [0.1, 0.7])
def test_beyond_the_curve(curve: str, ratio: float) -> None:
    known = quality(consolidated(ratio), curve)
    assert known["value"] is None
    assert known["sentence"].startswith(f"quality not known: ratio {ratio:g} is not among")


@pytest.mark.parametrize(
    "deployment", [{"kind": "dedicated"}, {"kind": "offloaded"}, consolidated(0.0)], ids=str
)
def test_what_is_not_consolidated_is_as_served_alone(
    curve: str, deployment: dict[str, Any]
) -> None:
    """Without a number, for the curve begins at 0.2."""
    known = quality(deployment, curve)
    assert (known["served_alone"], known["value"]) == (True, None)
    assert known["sentence"].startswith("quality as of each model served alone: mine has no figure")


def test_one_model_alone_shares_with_nobody(curve: str) -> None:
    """Whatever its ratio."""
    assert quality(consolidated(0.4), curve, a="demo-moe")["served_alone"]


def test_other_numbers_of_models_are_other_curves(curve: str) -> None:
    known = quality(consolidated(0.4), curve, a="demo-moe", b="demo-moe", c="demo-moe")
    assert known["reason"] == "mine is of 2 models, these are 3"


def test_another_shape_is_another_curve() -> None:
    """A curve of Mixtral says nothing of the demo model."""
    known = quality(consolidated(0.8), "mixtral-mt-bench")
    assert known["reason"] == "mixtral-mt-bench is of mixtral-8x7b, models.a is of another shape"


def test_the_published_layout_and_what_it_is_beside() -> None:
    """Within the range of ratios that it may have had; alone only one variant is known."""
    mixtrals = {"base": "mixtral-8x7b", "instruct": "mixtral-8x7b"}
    proposed = quality(consolidated(0.8), "mixtral-mt-bench", **mixtrals)
    alone = quality({"kind": "offloaded"}, "mixtral-mt-bench", **mixtrals)
    assert proposed["evidence"] == "S"
    assert proposed["value"] == pytest.approx(8.16, rel=0.01)
    assert (alone["value"], set(alone["variants"])) == (None, {"instruct"})
    assert "from a secondary source's summary: Imani et al." in alone["sentence"]
    assert quality(consolidated(0.5), "mixtral-mt-bench", **mixtrals)["value"] is None


def test_a_curve_that_is_not_there() -> None:
    with pytest.raises(ScenarioError, match=r"one of the shipped quality: .*mixtral-mt-bench"):
        quality(consolidated(0.4), "nope")


def test_reconfigurations_are_counted_in_share_of_time() -> None:
    """Models in turns on one device: as often as its table says, for that share of the run."""
    swapped = {"kind": "consolidated", "ratio": 0.5, "swap_overhead_s": 0.05}
    result = simulate(scenario(swapped, None))
    usage = result.replicas.set_index("replica")
    span_s = result.records["finish_s"].max() - result.records["arrival_s"].min()
    found = result.metrics()["reconfigurations"]
    assert set(found) == {"a/0", "b/0"}
    for name, load in found.items():
        assert load["count"] == usage.loc[name, "reconfigurations"] == len(result.loads[name]) > 0
        spent_s = sum(duration_s for _, duration_s in result.loads[name])
        assert load["share_of_time"] == pytest.approx(spent_s / span_s)
