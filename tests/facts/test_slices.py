"""Groups of devices: which there are, and which models can be cut over them."""

from dataclasses import replace

import pytest

from moesim.errors import ScenarioError
from moesim.facts.catalog import load_device, load_model
from moesim.facts.configs import ARCHITECTURES
from moesim.facts.models import ModelSpec
from moesim.facts.slices import Slice, check_divides, group, whole

H100 = load_device("h100-sxm-80gb")


def model(name: str) -> ModelSpec:
    return load_model(name, architectures=ARCHITECTURES)


def test_a_group_has_the_product_of_its_ranks() -> None:
    """Two by four: eight devices, of which each has its own memory."""
    part = group(H100, tensor_parallel=2, expert_parallel=4)
    assert (part.devices, part.memory_bytes) == (8, H100.memory_bytes)
    assert (part.name, part.whole) == ("8x h100-sxm-80gb", False)


def test_a_group_of_one_is_the_device() -> None:
    """Nothing is cut."""
    assert group(H100) == whole(H100)
    assert whole(H100).whole
    assert whole(H100).devices == 1


@pytest.mark.parametrize(
    ("tensor", "expert", "message"),
    [
        (16, 1, r"16 x 1 = 16 devices are more than the 8 of a node; take fewer"),
        (4, 4, r"4 x 4 = 16"),
        (0, 1, r"tensor_parallel: 0 must be above zero"),
        (1, -2, r"expert_parallel: -2"),
    ],
)
def test_no_group_is_larger_than_a_node(tensor: int, expert: int, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        group(H100, tensor_parallel=tensor, expert_parallel=expert)


def test_groups_without_figures_are_refused() -> None:
    """With the fields that are missing."""
    device = H100.model_copy(update={"nvlink_bytes_per_s": None, "all_reduce": {}})
    with pytest.raises(
        ScenarioError, match=r"neither nvlink_bytes_per_s nor all_reduce.*add the figure"
    ):
        group(device, tensor_parallel=2)
    assert group(device).whole


def test_groups_are_as_large_as_a_bridge() -> None:
    """Two H100 NVL under one; larger groups would go over PCIe, of which nothing was measured."""
    nvl = load_device("h100-nvl-94gb")
    assert group(nvl, tensor_parallel=2).devices == 2
    with pytest.raises(ScenarioError, match=r"NVLink joins 2.*groups of at most 2"):
        group(nvl, tensor_parallel=4)


def test_groups_over_pcie_where_they_were_measured() -> None:
    """Eight L40S, that have no NVLink."""
    assert group(load_device("l40s-48gb"), tensor_parallel=8).devices == 8


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["mixtral-8x7b", "mixtral-8x22b", "llama-3-70b", "qwen3-30b-a3b"])
def test_shipped_models_divide(name: str, devices: int) -> None:
    """Qwen3 has 4 heads of keys and values: on 8 devices each is kept twice."""
    check_divides(model(name), group(H100, tensor_parallel=devices))


MIXTRAL = model("mixtral-8x7b")


@pytest.mark.parametrize(
    ("spec", "tensor", "expert", "message"),
    [
        (MIXTRAL, 3, 1, r"num_key_value_heads: 8 .* 3 devices; take one of 1, 2, 4, 8"),
        (replace(MIXTRAL, num_attention_heads=40, num_key_value_heads=1), 6, 1, r"40 .* 6 devices"),
        (replace(MIXTRAL, intermediate_size=14337), 2, 1, r"intermediate_size: 14337 .* 2 ranks"),
        (replace(MIXTRAL, num_local_experts=6), 1, 4, r"local_experts: 6 .* 4 parts.* 1, 2, 3, 6"),
        (model("llama-3-8b"), 2, 2, r"without experts; take tensor_parallel: 4"),
        (replace(model("llama-3-8b"), dense_intermediate_size=7), 2, 1, r"intermediate_size: 7"),
    ],
)  # fmt: skip
def test_what_does_not_divide_is_named(
    spec: ModelSpec, tensor: int, expert: int, message: str
) -> None:
    part = group(H100, tensor_parallel=tensor, expert_parallel=expert)
    with pytest.raises(ScenarioError, match=message):
        check_divides(spec, part)


def test_keys_and_values_neither_divide_nor_repeat() -> None:
    """Eight heads on three devices would be unequal; one head on three is kept by all."""
    spec = replace(MIXTRAL, num_attention_heads=24, num_key_value_heads=3, intermediate_size=12)
    part = Slice(name="", compute_share=1, bandwidth_share=1, memory_bytes=1, tensor_parallel=6)
    check_divides(spec, part)
    with pytest.raises(ScenarioError, match="num_key_value_heads: 8 does not divide over 6"):
        check_divides(replace(spec, num_key_value_heads=8), part)
