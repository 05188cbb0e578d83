"""Checkpoints of Switch Transformers: read as transformers writes them, and the other way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from engine.model.switch.checkpoint import load_switch, random_switch, save_switch
from engine.model.switch.config import SwitchConfig
from engine.model.switch.layout import DECODER_TABLE, ENCODER_TABLE, SHARED, TABLES, places
from engine.model.switch.model import Switch
from engine.serve.generate import generate
from moesim.errors import EngineError, ScenarioError
from moesim.facts.models import ModelSpec


def same_weights(one: Switch, other: Switch) -> bool:
    return all(
        torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True)
    )


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint to change."""
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Edit the tensors of a checkpoint in place."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, *absent: str, **changes: Any) -> None:
    """Edit the configuration of a checkpoint in place."""
    config = json.loads((folder / "config.json").read_text())
    kept = {name: value for name, value in config.items() if name not in absent}
    (folder / "config.json").write_text(json.dumps(kept | changes))


def refusal(folder: Path) -> str:
    """Return the one line with which a checkpoint is refused."""
    with pytest.raises(EngineError) as caught:
        load_switch(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert str(folder) in line
    return line


def test_configuration(checkpoint: Path) -> None:
    """Which layers have experts, where the decoder starts, and the rest of the shape."""
    config = load_switch(checkpoint).config
    assert config.spec.dense_encoder_layers == (0, 2, 4)
    assert config.spec.dense_layers == (0, 2)
    assert (config.spec.expert_capacity, config.spec.num_local_experts) == (3, 4)
    assert (config.max_distance, config.decoder_start_token, config.eos_tokens) == (20, 0, (1,))


def test_parameters_are_counted(switch: Callable[..., Any]) -> None:
    """The shape knows how many weights there are, tied or not."""
    for tied in (True, False):
        model = switch(tie_word_embeddings=tied)
        tables = 0 if tied else 2 * model.shared.weight.numel()  # transformers' copies
        spec = ModelSpec.from_config(model.config.to_dict())
        assert spec.parameters == sum(one.numel() for one in model.parameters()) - tables
        ours = random_switch(spec, seed=0)
        assert spec.parameters == sum(one.numel() for one in ours.parameters())


def test_shards(oracle: Any, checkpoint: Path, tmp_path: Path) -> None:
    """Several files hold the same model."""
    oracle.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    assert same_weights(load_switch(tmp_path / "model"), load_switch(checkpoint))


def test_old_files(checkpoint: Path, folder: Path) -> None:
    """Tables repeated by name, sparse steps in place of counts, and old keys read the same."""

    def repeat(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {name: tensors[SHARED].clone() for name in TABLES}

    change(folder, repeat)
    absent = ("num_sparse_encoder_layers", "num_sparse_decoder_layers", "dtype", "dense_act_fn")
    configure(folder, *absent, torch_dtype="float32", feed_forward_proj="relu")
    assert same_weights(load_switch(folder), load_switch(checkpoint))


@pytest.mark.parametrize("name", [ENCODER_TABLE, DECODER_TABLE, "lm_head.weight"])
def test_a_tied_table_by_any_name(checkpoint: Path, folder: Path, name: str) -> None:
    """Files that name a tied table only once do not always call it shared."""
    change(folder, lambda tensors: tensors.update({name: tensors.pop(SHARED)}))
    assert same_weights(load_switch(folder), load_switch(checkpoint))


def test_untied_tables(switch: Callable[..., Any], tmp_path: Path) -> None:
    """Transformers 5 has two more tables; older files have one for both halves."""
    switch(tie_word_embeddings=False).save_pretrained(tmp_path / "model")
    own = load_switch(tmp_path / "model")
    assert own.own_tables
    assert not torch.equal(own.embed, own.decoder_embed)
    for name in (ENCODER_TABLE, DECODER_TABLE):
        change(tmp_path / "model", lambda tensors, name=name: tensors.pop(name))  # type: ignore[misc]
    shared = load_switch(tmp_path / "model")
    assert shared.decoder_embed is shared.embed
    assert torch.equal(shared.embed, load_file(tmp_path / "model/model.safetensors")[SHARED])
    assert not torch.equal(shared.embed, own.embed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_what_is_saved(
    switch: Callable[..., Any], prompts: Any, tmp_path: Path, tied: bool, dtype: str
) -> None:
    """Saved and loaded by either side, a random model keeps its weights, shape and answers."""
    spec = ModelSpec.from_config(switch(tie_word_embeddings=tied).config.to_dict() | {
        "dtype": dtype
    })  # fmt: skip
    model = random_switch(spec, seed=3)
    save_switch(model, tmp_path / "model")
    again = load_switch(tmp_path / "model")
    assert again.config == model.config
    assert torch.equal(again.decoder_embed, model.embed)
    stored = places(again)
    for name, place in places(model).items():
        assert torch.equal(stored[name if name in stored else ENCODER_TABLE], place), name
    theirs = type(switch()).from_pretrained(tmp_path / "model")
    assert str(theirs.dtype) == f"torch.{dtype}"
    if dtype == "bfloat16":
        return  # where two experts are as probable, rounding chooses, and the tokens differ
    (answer,) = generate(again, prompts[1:2], output_tokens=8)
    expected = theirs.generate(
        torch.tensor(prompts[1:2]), max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    assert answer == expected[0, 1:].tolist()
    encoded = again.encode(torch.tensor(prompts[1]), [len(prompts[1])])
    with torch.inference_mode():
        states = theirs.encoder(torch.tensor(prompts[1:2])).last_hidden_state[0]
    assert_close(encoded, states, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layers", [2, 5, 8])
@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_sparse_steps(switch: Callable[..., Any], layers: int, step: int) -> None:
    """Whatever layers have experts, the configuration written says so, to transformers too."""
    theirs = switch(num_layers=layers, encoder_sparse_step=step)
    config = SwitchConfig(spec=ModelSpec.from_config(theirs.config.to_dict())).to_config()
    sparse = [block.is_sparse for block in theirs.encoder.block]
    again = switch(**{key: config[key] for key in config if key not in ("model_type", "dtype")})
    assert [block.is_sparse for block in again.encoder.block] == sparse
    assert ModelSpec.from_config(config).dense_encoder_layers == tuple(
        index for index, one in enumerate(sparse) if not one
    )


def test_damage_is_named(folder: Path) -> None:
    """A missing, an unexpected and a misshapen tensor, each by file and name."""
    expert = "encoder.block.1.layer.1.mlp.experts.expert_2.wi.weight"
    whole = load_file(folder / "model.safetensors")
    change(folder, lambda tensors: tensors.pop(expert))
    assert f"{expert}: missing tensor (of 1 missing)" in refusal(folder)
    change(folder, lambda tensors: tensors.update({expert: torch.zeros(3, 4)}))
    assert f"{expert}: shape [3, 4] is not [48, 32]" in refusal(folder)
    change(folder, lambda tensors: tensors.update({expert: whole[expert], "more": torch.ones(1)}))
    assert "more: unexpected or repeated tensor" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model_type", "t5", "model_type: 't5' is not supported"),
        ("router_dtype", "bfloat16", "router_dtype: 'bfloat16' is not supported; only 'float32'"),
        ("router_bias", True, "router_bias: True is not supported"),
        ("dense_act_fn", "gated-gelu", "dense_act_fn: 'gated-gelu' is not supported"),
        ("dtype", "float16", "dtype: 'float16' overflows"),
        ("decoder_start_token_id", 97, "decoder_start_token_id: 97 is not a token"),
        ("decoder_start_token_id", "a", "decoder_start_token_id: 'a' is not a token"),
        (
            "relative_attention_num_buckets",
            3,
            "relative_attention_num_buckets: 3 must be at least 4",
        ),
        ("eos_token_id", -2, "eos_token_id: -2 is not a token"),
        ("relative_attention_max_distance", 4, "relative_attention_max_distance: 4 must be"),
    ],
)
def test_unsupported_configurations(folder: Path, key: str, value: Any, words: str) -> None:
    """What would silently compute something else is refused."""
    configure(folder, **{key: value})
    assert words in refusal(folder)


def test_the_decoder_starts_with_the_pad_token(folder: Path) -> None:
    """Unless the configuration names another, as T5's do not."""
    configure(folder, "decoder_start_token_id", "eos_token_id", pad_token_id=7)
    config = load_switch(folder).config
    assert (config.decoder_start_token, config.eos_tokens) == (7, (1,))


def test_another_architecture_is_no_switch(engine_spec: ModelSpec) -> None:
    """Nor are half-precision floats, in which T5's activations overflow."""
    with pytest.raises(ScenarioError, match="model_type: 'mixtral' is not 'switch_transformers'"):
        random_switch(engine_spec, seed=0)


def test_an_existing_folder_is_kept(checkpoint: Path) -> None:
    """A model is not written over another."""
    with pytest.raises(EngineError, match="exists already"):
        save_switch(load_switch(checkpoint), checkpoint)
