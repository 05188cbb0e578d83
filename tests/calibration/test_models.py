"""Which models are calibrated: decoders; others are refused in one line."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from calibration.cli import app
from calibration.models import dtype_of, open_model
from engine.model.loading import random_model, save_model
from moesim.errors import CalibrationError
from moesim.facts.models import ModelSpec


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a tiny Switch Transformer."""
    config = {
        "model_type": "switch_transformers", "d_model": 16, "d_ff": 16, "d_kv": 4, "num_heads": 2,
        "num_layers": 2, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1, "num_experts": 2, "expert_capacity": 8, "vocab_size": 20,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("switch") / "model"
    save_model(random_model(ModelSpec.from_config(config), seed=0), folder)
    return folder


def test_a_switch_transformer_is_refused(switch: Path) -> None:
    """By a checkpoint folder or by the name of a shipped shape, before any weight is made."""
    for name in (str(switch), "switch-base-8"):
        with pytest.raises(CalibrationError, match=f"{name}: model_type: 'switch_tr.*give a dec"):
            open_model(name, torch.device("cpu"))


def test_the_command_says_so(switch: Path, tmp_path: Path) -> None:
    """One line, exit code 2, no file."""
    options = ["--model", str(switch), "--out", str(tmp_path / "p.json"), "--budget-s", "1"]
    done = CliRunner().invoke(app, ["profile", *options])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {switch}: model_type: 'switch_transformers' can be")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16"), ("float32", "float32")]
)
def test_number_formats_by_either_name(name: str, dtype: str) -> None:
    """Ours, and that of config.json."""
    assert dtype_of(name) == dtype


@pytest.mark.parametrize("name", ["fp8", "int4", "half", " bf16", ""])
def test_other_formats_are_refused(name: str) -> None:
    """With those that the engine computes in."""
    with pytest.raises(CalibrationError, match=r"--dtype: .* is not one of fp32, bf16, fp16"):
        dtype_of(name)
