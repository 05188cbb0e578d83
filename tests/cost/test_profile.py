"""Profile files: what is written reads back, and what is broken is one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moesim.cost.profile import COORDINATES, Profile, load_profile, save_profile
from moesim.errors import ProfileError, ScenarioError

Content = Callable[[], dict[str, Any]]


def _refusal(path: Path, content: Any) -> str:
    """Write a profile and return the one line with which it is refused."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a profile is written."""
    return tmp_path / "profile.json"


def test_a_saved_profile_loads_as_it_was(tiny_profile: Profile, path: Path) -> None:
    """Every cell to the last bit."""
    save_profile(tiny_profile, path)
    assert load_profile(path) == tiny_profile
    assert list(path.parent.iterdir()) == [path]


def test_another_format_version_says_which_is_read(tiny_content: Content, path: Path) -> None:
    """The remedy is to profile again."""
    message = _refusal(path, tiny_content() | {"format_version": 2})
    assert message.startswith("format_version: 2, this moesim reads 1")
    assert "profile again" in message


@pytest.mark.parametrize("content", [{}, [], {"format": "something"}, "3"])
def test_another_kind_of_file_is_no_profile(path: Path, content: Any) -> None:
    """Any JSON that does not call itself a profile."""
    assert _refusal(path, content) == "format: not a moesim profile"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_says_where(tiny_content: Content, path: Path, share: float) -> None:
    """Cut off anywhere, it names line and column."""
    text = json.dumps(tiny_content(), indent=1)
    message = _refusal(path, text[: int(share * len(text))])
    assert message.startswith("broken at line ")
    assert "truncated?" in message


@pytest.mark.parametrize("name", COORDINATES)
def test_a_missing_operation_is_named(tiny_content: Content, path: Path, name: str) -> None:
    """Absent, or there with no cell."""
    content = tiny_content()
    content["operations"][name] = []
    assert _refusal(path, content) == f"operations.{name}: no measured cell"
    del content["operations"][name]
    assert _refusal(path, content) == f"operations.{name}: no measured cell"


def test_collectives_may_be_absent_but_not_empty(tiny_content: Content, path: Path) -> None:
    """A profile of one device has none; a group's are checked as all others are."""
    content = tiny_content()
    content["operations"]["collectives"] = [{"at": [1], "median_s": 1, "spread": 0, "repeats": 1}]
    Profile.model_validate(content)
    content["operations"]["collectives"][0]["at"] = [1, 2]
    assert _refusal(path, content) == "operations.collectives.0.at: expected tokens"
    content["operations"]["collectives"] = []
    assert _refusal(path, content) == "operations.collectives: no measured cell"


LLAMA = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32,
    "max_position_embeddings": 64,
}  # fmt: skip
QWEN = LLAMA | {
    "model_type": "qwen3_moe", "moe_intermediate_size": 4, "num_experts": 4,
    "num_experts_per_tok": 2, "mlp_only_layers": [0],
}  # fmt: skip


@pytest.mark.parametrize(("model", "popularity"), [(LLAMA, [[1.0]] * 2), (QWEN, [[0.5] * 4])])
def test_models_with_plain_layers(
    tiny_content: Content, path: Path, model: dict[str, Any], popularity: list[list[float]]
) -> None:
    """One expert in each layer that all visit, or a row for each layer that has experts."""
    content = tiny_content() | {"model": model}
    assert _refusal(path, content).startswith("router.popularity: ")
    content["router"]["popularity"] = popularity
    Profile.model_validate(content)
    content["router"]["popularity"] = [*popularity, popularity[0]]
    assert _refusal(path, content).startswith("router.popularity: not one row a layer")


def test_an_unknown_operation_is_named(tiny_content: Content, path: Path) -> None:
    """A newer tool's table is not silently left out."""
    content = tiny_content()
    content["operations"]["teleport"] = content["operations"]["host"]
    assert _refusal(path, content) == "operations.teleport: unknown operation"


@pytest.mark.parametrize("at", [[1], [1, 2, 3], []])
def test_a_cell_of_other_coordinates_is_named(
    tiny_content: Content, path: Path, at: list[float]
) -> None:
    """Which cell, and what its coordinates should be."""
    content = tiny_content()
    content["operations"]["experts"][2]["at"] = at
    assert _refusal(path, content) == "operations.experts.2.at: expected tokens, distinct"


@pytest.mark.parametrize(
    "popularity", [[[0.5] * 4], [[0.5] * 4] * 3, [[0.5] * 4, [0.5] * 3], [[], []]]
)
def test_a_router_of_another_shape_is_named(
    tiny_content: Content, path: Path, popularity: list[list[float]]
) -> None:
    """Two layers of four experts need two rows of four shares."""
    content = tiny_content()
    content["router"]["popularity"] = popularity
    assert _refusal(path, content).startswith("router.popularity: ")


@pytest.mark.parametrize(
    ("keys", "value", "field"),
    [
        (["kv", "num_blocks"], 0, "kv.num_blocks"),
        (["kv", "block_size"], "x", "kv.block_size"),
        (["operations", "host", 0, "median_s"], -1, "operations.host.0.median_s"),
        (["operations", "host", 0, "median_s"], None, "operations.host.0.median_s"),
        (["operations", "host", 0, "repeats"], 0, "operations.host.0.repeats"),
        (["provenance", "device_kind"], "tpu", "provenance.device_kind"),
        (["provenance", "mood"], "good", "provenance.mood"),
        (["max_batched_tokens"], 0, "max_batched_tokens"),
    ],
)
def test_a_wrong_value_is_named_by_its_place(
    tiny_content: Content, path: Path, keys: list[Any], value: Any, field: str
) -> None:
    """Dotted, down to the cell."""
    content = tiny_content()
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    assert _refusal(path, content).startswith(f"{field}: ")


@pytest.mark.parametrize("field", ["kv", "router", "operations", "provenance", "verdict"])
def test_a_missing_part_is_named(tiny_content: Content, path: Path, field: str) -> None:
    """The field comes first."""
    content = tiny_content()
    del content[field]
    assert _refusal(path, content).startswith(f"{field}: ")


def test_bytes_that_are_no_text_are_refused(path: Path) -> None:
    """Say, a checkpoint given as its profile."""
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="not readable"):
        load_profile(path)


def test_a_profile_that_is_not_there_lists_the_shipped() -> None:
    """The scenario names something that does not exist."""
    with pytest.raises(ScenarioError, match="demo-cpu"):
        load_profile("no-such-profile")
