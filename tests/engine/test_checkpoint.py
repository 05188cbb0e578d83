"""Hugging Face checkpoints: read in both layouts, written so that transformers reads them back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import MixtralForCausalLM

from engine.model.checkpoint import load_decoder, random_decoder, save_decoder
from engine.model.decoder import Decoder
from engine.model.step import PagedKvCache
from moesim.errors import EngineError
from moesim.facts.models import read_config

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def logits_of(model: Decoder, batcher: Any) -> torch.Tensor:
    return model(batcher.step((0, 0, 9)), PagedKvCache(model.spec, 32, 4))


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Edit the tensors of a checkpoint in place."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    """Return the one line with which a checkpoint is refused."""
    with pytest.raises(EngineError) as caught:
        load_decoder(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert str(folder) in line
    return line


@pytest.mark.parametrize(
    "options",
    [{}, {"save_original_format": False}, {"max_shard_size": "20KB"}],
    ids=["per_expert", "fused", "sharded"],
)
def test_layouts(
    oracle: Any, batcher: Any, expected: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    """One tensor a projection, fused experts and several files hold the same model."""
    oracle.save_pretrained(tmp_path / "model", **options)
    names = set().union(*(load_file(file) for file in (tmp_path / "model").glob("*.safetensors")))
    fused = "model.layers.0.mlp.experts.gate_up_proj" in names
    assert fused is ("save_original_format" in options)
    assert_close(logits_of(load_decoder(tmp_path / "model"), batcher), expected[0], **TOLERANCE)


def test_old_config_keys(broken: Path, batcher: Any, expected: Any) -> None:
    """Configs of transformers 4 (`rope_theta`, `torch_dtype`) read as those of 5."""
    config = json.loads((broken / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    (broken / "config.json").write_text(json.dumps(config))
    assert_close(logits_of(load_decoder(broken), batcher), expected[0], **TOLERANCE)


def test_dtype_is_converted(checkpoint: Path) -> None:
    """A number format given on loading replaces the checkpoint's, in the spec too."""
    model = load_decoder(checkpoint, dtype=torch.bfloat16)
    assert model.spec.dtype == "bfloat16"
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_parameters_are_all_there(checkpoint: Path) -> None:
    """The decoder allocates exactly the parameters that the spec counts."""
    model = load_decoder(checkpoint)
    assert sum(weight.numel() for weight in model.parameters()) == model.spec.parameters


@pytest.mark.parametrize("tied", [False, True])
def test_save_for_transformers(
    mixtral: Callable[..., Any], checkpoint: Path, batcher: Any, tmp_path: Path, tied: bool
) -> None:
    """Transformers reads what we write, and computes the same."""
    mixtral(tie_word_embeddings=tied).save_pretrained(tmp_path / "shape")
    ours = random_decoder(read_config(tmp_path / "shape"), seed=5)
    save_decoder(ours, tmp_path / "saved")
    theirs, report = MixtralForCausalLM.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(report.values())
    with torch.inference_mode():
        wanted = theirs(torch.tensor([batcher.prompts[0]])).logits[0]
    assert_close(logits_of(ours, batcher), wanted, **TOLERANCE)
    assert_close(logits_of(load_decoder(tmp_path / "saved"), batcher), wanted, **TOLERANCE)


def test_save_is_whole_or_absent(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that fails leaves nothing, and no save overwrites a folder."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    model = load_decoder(checkpoint)
    monkeypatch.setattr("engine.model.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_decoder(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EngineError, match="exists already"):
        save_decoder(model, checkpoint)


def test_missing_tensor(broken: Path) -> None:
    """A tensor that is not there is named."""
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    change(broken, lambda tensors: tensors.pop(name))
    assert f"model.safetensors: {name}: missing tensor" in refusal(broken)


def test_missing_head(broken: Path) -> None:
    """A checkpoint with tied embeddings under a config that denies it lacks its head."""
    change(broken, lambda tensors: tensors.pop("lm_head.weight"))
    assert "lm_head.weight: missing" in refusal(broken)


def test_wrong_shape(broken: Path) -> None:
    """A tensor of another shape is named with both shapes."""
    name = "model.layers.0.self_attn.k_proj.weight"
    change(broken, lambda tensors: tensors.update({name: torch.zeros(8, 32)}))
    assert f"{name}: shape [8, 32] is not [16, 32]" in refusal(broken)


def test_quantised_tensor(broken: Path) -> None:
    """Integers are not weights."""
    name = "model.norm.weight"
    change(broken, lambda tensors: tensors.update({name: torch.ones(32, dtype=torch.int8)}))
    assert f"{name}: dtype I8 is not one of" in refusal(broken)


def test_unexpected_tensor(broken: Path) -> None:
    """A tensor the model has no place for is named."""
    name = "model.layers.2.input_layernorm.weight"
    change(broken, lambda tensors: tensors.update({name: torch.ones(32)}))
    assert f"model.safetensors: {name}: unexpected" in refusal(broken)


def test_redundant_tensors(broken: Path, batcher: Any, expected: Any) -> None:
    """RoPE constants, which old checkpoints carry, are no tensor too many."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(broken, lambda tensors: tensors.update({name: torch.ones(4)}))
    assert_close(logits_of(load_decoder(broken), batcher), expected[0], **TOLERANCE)


@pytest.mark.parametrize("kept", [0, 5, 200, -40])
def test_truncated_file(broken: Path, kept: int) -> None:
    """A download that stopped, anywhere, is told from a model."""
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert "model.safetensors: not readable as safetensors" in refusal(broken)


def test_garbage_file(broken: Path) -> None:
    """A file of something else is told from a model."""
    (broken / "model.safetensors").write_bytes(b"<!DOCTYPE html>" * 1000)
    assert "not readable as safetensors" in refusal(broken)


def test_no_weights(broken: Path) -> None:
    """A folder without safetensors says what is read."""
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(broken)


def test_missing_shard(oracle: Any, tmp_path: Path) -> None:
    """A shard that the index names and the folder lacks is named."""
    oracle.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    shard = sorted((tmp_path / "model").glob("*.safetensors"))[1]
    shard.unlink()
    assert f"{shard.name}: not readable" in refusal(tmp_path / "model")


def test_missing_tensor_of_shards(oracle: Any, tmp_path: Path) -> None:
    """Where no shard holds a tensor, the index is to blame."""
    oracle.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    lost = content["weight_map"]["model.norm.weight"]
    shards = {name: file for name, file in content["weight_map"].items() if file != lost}
    index.write_text(json.dumps({"weight_map": shards}))
    assert "model.safetensors.index.json: " in refusal(tmp_path / "model")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}']
)
def test_broken_index(broken: Path, content: str) -> None:
    """An index that is none is told from a model."""
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors.index.json").write_text(content)
    assert "not a safetensors index" in refusal(broken)


def test_empty_index(broken: Path) -> None:
    """An index without files is told from a model."""
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "weight_map: names no file" in refusal(broken)


def test_other_architecture(broken: Path) -> None:
    """A config of another architecture is refused before any weight is read."""
    (broken / "config.json").write_text('{"model_type": "gpt2"}')
    assert "config.json: model_type: 'gpt2' is not supported here" in refusal(broken)


def test_unknown_dtype(checkpoint: Path) -> None:
    """A number format the engine does not compute in is refused."""
    with pytest.raises(EngineError, match="dtype: int8 is not one of float32"):
        load_decoder(checkpoint, dtype=torch.int8)
