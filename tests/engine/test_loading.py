"""One way in and out for every architecture: made, saved, read again, by transformers too."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from engine.model.decoder import Decoder
from engine.model.loading import load_model, random_model, save_model
from engine.model.switch.model import Switch
from engine.serve.generate import generate
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec

SWITCH = ModelSpec.from_config(
    {
        "model_type": "switch_transformers", "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4,
        "num_layers": 2, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1, "num_experts": 4, "expert_capacity": 64, "vocab_size": 50,
    }
)  # fmt: skip
PROMPT, OUTPUT = [7, 3, 11, 29], 6


@pytest.mark.parametrize("kind", [Decoder, Switch])
def test_a_model_comes_back_as_what_it_was(
    kind: type, engine_spec: ModelSpec, tmp_path: Path
) -> None:
    """The same kind and weights, from which transformers generates the same."""
    made = random_model(engine_spec if kind is Decoder else SWITCH, seed=3)
    save_model(made, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert type(made) is type(again) is kind
    for ours, theirs in zip(made.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    whole = AutoModelForCausalLM if kind is Decoder else AutoModelForSeq2SeqLM
    oracle = whole.from_pretrained(tmp_path / "model").eval()
    answer = oracle.generate(
        torch.tensor([PROMPT]), max_new_tokens=OUTPUT, do_sample=False, eos_token_id=None
    )
    assert generate(again, [PROMPT], output_tokens=OUTPUT) == [answer[0, -OUTPUT:].tolist()]


def test_another_format_is_read_into(tmp_path: Path) -> None:
    """As the caller says."""
    save_model(random_model(SWITCH, seed=0), tmp_path / "model")
    assert load_model(tmp_path / "model", dtype=torch.bfloat16).spec.dtype == "bfloat16"


def test_another_architecture_is_named(tmp_path: Path) -> None:
    """With those that run."""
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(EngineError, match=r"'gpt2' is not supported .*'mixtral'.*'switch_tr"):
        load_model(tmp_path)
