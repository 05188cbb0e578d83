"""The file of kernels: whole or refused, in one line."""

import json
from pathlib import Path

import pytest

from moesim.cost.kernels.summary import facts_of
from moesim.cost.kernels.tables import Kernels, kernels_from, load_kernels, save_kernels
from moesim.cost.profile import load_profile
from moesim.errors import ProfileError
from moesim.facts.catalog import load_device, shipped

SHIPPED = ("a100-sxm-80gb", "h100-sxm-80gb", "h200-sxm-141gb")
LARGEST = 400_000
"""What a shipped file may take [B]."""


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return load_kernels("a100-sxm-80gb")


def test_a_file_comes_back_as_it_was(kernels: Kernels, tmp_path: Path) -> None:
    """A curve a line, so that two versions can be compared."""
    save_kernels(kernels, tmp_path / "k.json")
    assert load_kernels(tmp_path / "k.json") == kernels
    lines = (tmp_path / "k.json").read_text().splitlines()
    assert sum(line.startswith('  {"us":') for line in lines) == sum(
        len(curves)
        for curves in (
            kernels.gemm,
            kernels.prefill,
            kernels.decode,
            kernels.moe,
            kernels.collectives,
        )
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_kernels_are_small_named_and_judged(name: str) -> None:
    """For a device that ships, with their origin and their errors."""
    found = load_kernels(name)
    assert shipped("profiles")[name].stat().st_size < LARGEST
    assert found.device == load_device(name).name
    assert "Apache-2.0" in found.origin.source
    assert found.origin.command.startswith("moesim profile import aiconfigurator")
    assert {"gemm", "gemm_shapes", "prefill", "decode", "moe", "collectives"} <= set(
        found.residuals
    )
    for family in ("gemm", "prefill", "decode", "moe"):
        assert found.residuals[family].p50 <= 0.05


def test_shipped_kernels_say_how_products_go_between_sizes() -> None:
    """In waves before Hopper, in full rows where weights are widened; what is shown says so."""
    forms = facts_of(load_kernels("a100-sxm-80gb"))["families"]["gemm"]["forms"]
    assert forms == {"bf16": "waves", "int4": "rows", "int8": "rows"}
    assert set(load_kernels("h100-sxm-80gb").products.values()) == {"roofline"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "moesim-profile"}, "format: not a file of kernels"),
        ({"format_version": 9}, "format_version: 9, this moesim reads 1"),
        ({"gemm": [{"format": "bf16", "n": 1, "k": 1, "tokens": [1, 2], "us": [1.0]}]},
         "gemm.0: tokens: 2 sizes beside 1 durations"),
        ({"gemm": [{"format": "bf16", "n": 1, "k": 1, "tokens": [1], "us": [-1.0]}]},
         "gemm.0.us.0: -1.0"),
        ({"products": {"bf16": "spline"}}, "products.bf16"),
        ({"colour": 1}, "colour: unknown key"),
    ],
)  # fmt: skip
def test_a_wrong_file_names_its_field(
    kernels: Kernels, change: dict[str, object], words: str
) -> None:
    """One line with the file and the field."""
    content = kernels.model_dump(mode="json", exclude_none=True) | change
    with pytest.raises(ProfileError) as caught:
        kernels_from(content, "k.json")
    assert words in str(caught.value)
    assert str(caught.value).startswith("k.json: ")


def test_a_truncated_file_says_where(tmp_path: Path) -> None:
    """As profiles do."""
    path = tmp_path / "k.json"
    path.write_text(shipped("profiles")["a100-sxm-80gb"].read_text()[:5000])
    with pytest.raises(ProfileError, match="broken at line"):
        load_kernels(path)


def test_kernels_are_no_profile_of_a_model(tmp_path: Path, kernels: Kernels) -> None:
    """Who asks for one is told what to do."""
    with pytest.raises(ProfileError, match="kernels of a device, not a profile of one model"):
        load_profile("h100-sxm-80gb")
    (tmp_path / "k.json").write_text(json.dumps([1]))
    with pytest.raises(ProfileError, match="not a file of kernels"):
        load_kernels(tmp_path / "k.json")
