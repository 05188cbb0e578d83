"""Llama and Qwen3-MoE against transformers: logits, generation, checkpoints, what is refused."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from engine.cli import app
from engine.model.checkpoint import load_decoder, random_decoder, save_decoder
from engine.model.decoder import Decoder
from engine.model.layout import places
from engine.model.routing import forced_routing, observed_routing
from engine.model.step import PagedKvCache
from engine.serve.generate import generate
from moesim.errors import EngineError
from moesim.facts.catalog import load_model
from moesim.facts.configs import ARCHITECTURES
from moesim.facts.models import ModelSpec

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
OUTPUT = 12
TINY = {"vocab_size": 97, "hidden_size": 32, "max_position_embeddings": 128}
LLAMA = {
    **TINY, "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48,
}  # fmt: skip
QWEN = {
    **TINY, "model_type": "qwen3_moe", "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "moe_intermediate_size": 24,
    "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True,
}  # fmt: skip
LLAMA3_ROPE = {
    # Of wavelengths 6, 63, 628 and 6283 the first stays, the second is mixed, the others stretch.
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 100,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama, 8 query heads a key": {**LLAMA, "num_attention_heads": 8, "num_key_value_heads": 1},
    "llama, stretched": {**LLAMA, "rope_parameters": LLAMA3_ROPE},
    "llama, tied": {**LLAMA, "tie_word_embeddings": True},
    "llama, biased": {**LLAMA, "attention_bias": True},
    "qwen": QWEN,
    "qwen, weights as they are": {**QWEN, "norm_topk_prob": False},
    "qwen, every second layer": {**QWEN, "decoder_sparse_step": 2},
    "qwen, dense ends": {**QWEN, "mlp_only_layers": [0, 2], "attention_bias": True},
    "qwen, stretched": {**QWEN, "rope_parameters": LLAMA3_ROPE},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "default": {},
    "fused": {"save_original_format": False},
    "sharded": {"max_shard_size": "20KB"},
}
SHIPPED = ("mixtral-8x7b", "mixtral-8x22b", "qwen3-30b-a3b", "llama-3-8b", "llama-3-70b")

every_family = pytest.mark.parametrize("family", FAMILIES)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def built(config: dict[str, Any]) -> PreTrainedModel:
    """Build transformers' model of a configuration; no weight, norm or bias is a plain one."""
    options = {key: value for key, value in config.items() if key != "model_type"}
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(config["model_type"], **options)
    ).eval()
    for name, weight in theirs.named_parameters():
        nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.3)
    return theirs


def logits_of(theirs: PreTrainedModel, prompt: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = theirs(torch.tensor([prompt])).logits[0]
    return logits


@pytest.fixture(scope="module")
def oracles() -> Callable[[str], PreTrainedModel]:
    """Return a family's model, built once."""
    models: dict[str, PreTrainedModel] = {}

    def oracle(family: str) -> PreTrainedModel:
        if family not in models:
            models[family] = built(FAMILIES[family])
        return models[family]

    return oracle


@pytest.fixture(scope="module")
def folders(
    oracles: Callable[[str], PreTrainedModel], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return a family's checkpoint as transformers writes it by default, written once."""
    root = tmp_path_factory.mktemp("families")

    def folder(family: str) -> Path:
        path = root / family
        if not path.exists():
            oracles(family).save_pretrained(path)
        return path

    return folder


def cache_of(decoder: Decoder, device: str = "cpu") -> PagedKvCache:
    """Return a cache in which reading what nobody wrote turns every logit into a nan."""
    cache = PagedKvCache(decoder.spec, 32, 4, device)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    return cache


@every_family
def test_mixed_batch(family: str, oracles: Any, folders: Any, batcher: Any) -> None:
    """Decodes, a chunk with context and a fresh prompt share one step, as each alone there."""
    ours = load_decoder(folders(family))
    expected = [logits_of(oracles(family), prompt) for prompt in batcher.prompts]
    cache = cache_of(ours)
    first = ours(batcher.step((0, 0, 8), (1, 0, 5)), cache)
    assert_close(first, torch.cat((expected[0][:8], expected[1][:5])), **TOLERANCE)
    mixed = ours(batcher.step((0, 8, 9), (3, 0, 1), (1, 5, 11), (2, 0, 7)), cache)
    wanted = torch.cat((expected[0][8:9], expected[3], expected[1][5:11], expected[2]))
    assert_close(mixed, wanted, **TOLERANCE)


@every_family
@pytest.mark.parametrize("cuts", [(0, 4, 8, 13), (0, 5, 6, 13)])
def test_chunked_prefill(
    family: str, oracles: Any, folders: Any, batcher: Any, cuts: tuple[int, ...]
) -> None:
    """A prompt in chunks, on block boundaries and off them."""
    ours = load_decoder(folders(family))
    cache = cache_of(ours)
    rows = [ours(batcher.step((1, first, end)), cache) for first, end in pairwise(cuts)]
    assert_close(torch.cat(rows), logits_of(oracles(family), batcher.prompts[1]), **TOLERANCE)


@every_family
@pytest.mark.parametrize("budget", [3, 512])
def test_greedy_generation(
    family: str, oracles: Any, folders: Any, prompts: list[list[int]], budget: int
) -> None:
    """The engine's answers, batched, in chunks and whole, are transformers' to each prompt."""
    wanted = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(OUTPUT):
            tokens.append(int(logits_of(oracles(family), tokens)[-1].argmax()))
        wanted.append(tokens[len(prompt) :])
    ours = load_decoder(folders(family))
    answers = generate(ours, prompts, output_tokens=OUTPUT, max_batched_tokens=budget)
    assert answers == wanted


@pytest.mark.parametrize("family", ["llama, tied", "qwen", "qwen, dense ends"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(family: str, layout: str, oracles: Any, batcher: Any, tmp_path: Path) -> None:
    """One tensor a projection, fused experts and several files hold the same model."""
    oracles(family).save_pretrained(tmp_path / "model", **LAYOUTS[layout])
    files = list((tmp_path / "model").glob("*.safetensors"))
    fused = any(name.endswith("experts.gate_up_proj") for file in files for name in load_file(file))
    assert fused is (layout == "fused" and "qwen" in family)
    assert (len(files) > 1) is (layout == "sharded")
    ours = load_decoder(tmp_path / "model")
    logits = ours(batcher.step((0, 0, 9)), cache_of(ours))
    assert_close(logits, logits_of(oracles(family), batcher.prompts[0]), **TOLERANCE)


@pytest.mark.parametrize("family", ["llama, stretched", "qwen"])
def test_old_config_keys(family: str, oracles: Any, folders: Any, tmp_path: Path) -> None:
    """Configs of transformers 4 (`rope_scaling`, `torch_dtype`, `num_experts`) read as of 5."""
    old = Path(shutil.copytree(folders(family), tmp_path / "model"))
    config = json.loads((old / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    (old / "config.json").write_text(json.dumps(config))
    assert load_decoder(old).spec == load_decoder(folders(family)).spec


@every_family
def test_save_for_transformers(family: str, batcher: Any, tmp_path: Path) -> None:
    """Transformers reads what we write of random weights, and we read it back."""
    ours = random_decoder(ModelSpec.from_config({**FAMILIES[family], "dtype": "float32"}), seed=5)
    assert sum(weight.numel() for weight in ours.parameters()) == ours.spec.parameters
    save_decoder(ours, tmp_path / "saved")
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(report.values())
    again = load_decoder(tmp_path / "saved")
    assert again.spec == ours.spec
    assert_close(again.state_dict(), ours.state_dict(), rtol=0, atol=0)
    logits = ours(batcher.step((0, 0, 9)), cache_of(ours))
    assert 0.5 < logits.std() < 2
    assert_close(logits, logits_of(theirs, batcher.prompts[0]), **TOLERANCE)


@pytest.mark.parametrize("family", ["llama, stretched", "qwen, dense ends"])
def test_make(family: str, prompts: list[list[int]], tmp_path: Path) -> None:
    """The command writes a checkpoint of any family's configuration, which generates."""
    (tmp_path / "shape.json").write_text(json.dumps({**FAMILIES[family], "dtype": "float32"}))
    arguments = ["make", "--model", str(tmp_path / "shape.json"), "--out", str(tmp_path / "made")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    made = load_decoder(tmp_path / "made")
    assert f"{made.spec.parameters:,} parameters" in done.output
    assert [len(answer) for answer in generate(made, prompts, output_tokens=3)] == [3, 3, 3, 3]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_shapes(name: str) -> None:
    """At full size, every tensor of transformers' model has a place of its shape, and no other."""
    spec = load_model(name)
    config = spec.to_config()
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config.pop("model_type"), **config)
        )
    wanted = {key: weight.shape for key, weight in theirs.state_dict().items()}
    found = places(Decoder(spec, "meta"), fused=True)
    assert {key: place.shape for key, place in found.items()} == wanted


@pytest.mark.parametrize("family", ["llama", "qwen, dense ends"])
def test_laps(family: str, folders: Any, batcher: Any) -> None:
    """Dense layers lap as those with experts do, so that one profile knows all."""
    ours, laps = load_decoder(folders(family)), list[str]()
    ours(batcher.step((2, 0, 7)), cache_of(ours), laps.append)
    layer = ["projections", "attention_prefill", "projections", "router", "experts"]
    assert laps == ["embedding", *layer * ours.spec.num_hidden_layers, "head"]


def test_routing_of_some_layers(folders: Any, batcher: Any) -> None:
    """Only layers with experts are watched and forced: one of three here, three of eight each."""
    ours = load_decoder(folders("qwen, dense ends"))
    with forced_routing(ours, 5), observed_routing(ours) as counts:
        ours(batcher.step((0, 0, 9)), cache_of(ours))
    assert counts.tolist() == [[6, 6, 5, 5, 5, 0, 0, 0]]


def test_routing_of_no_layer(folders: Any, batcher: Any, oracles: Any) -> None:
    """A model without experts can be watched, and forced to the one network of each layer."""
    ours = load_decoder(folders("llama"))
    with forced_routing(ours, 1), observed_routing(ours) as counts:
        logits = ours(batcher.step((0, 0, 9)), cache_of(ours))
    assert counts.shape == (0, 0)
    assert_close(logits, logits_of(oracles("llama"), batcher.prompts[0]), **TOLERANCE)
    with pytest.raises(EngineError, match="distinct: 2 must"), forced_routing(ours, 2):
        pass


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_bfloat16(family: str, oracles: Any, folders: Any, batcher: Any) -> None:
    """In bfloat16 we are no further from the float32 logits than transformers is, twice over."""
    prompt = batcher.prompts[0]
    exact = logits_of(oracles(family), prompt)
    ours = load_decoder(folders(family), dtype=torch.bfloat16)
    error = (ours(batcher.step((0, 0, 9)), cache_of(ours)).float() - exact).abs().mean()
    theirs = logits_of(built(FAMILIES[family]).to(torch.bfloat16), prompt)
    assert error < 2 * (theirs.float() - exact).abs().mean()


def refusal(folder: Path) -> str:
    """Return the one line with which a checkpoint is refused."""
    with pytest.raises(EngineError) as caught:
        load_decoder(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert str(folder) in line
    return line


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("llama, biased", "model.layers.0.self_attn.v_proj.bias"),
        ("qwen", "model.layers.2.mlp.experts.7.down_proj.weight"),
        ("qwen", "model.layers.0.self_attn.k_norm.weight"),
        ("qwen, dense ends", "model.layers.2.mlp.gate_proj.weight"),
    ],
)
def test_missing_tensor(family: str, name: str, folders: Any, tmp_path: Path) -> None:
    """A tensor that is not there is named, whichever part of the model it belongs to."""
    broken = Path(shutil.copytree(folders(family), tmp_path / "model"))
    tensors = load_file(broken / "model.safetensors")
    del tensors[name]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    assert f"model.safetensors: {name}: missing tensor (of 1 missing)" in refusal(broken)


@pytest.mark.parametrize("family", ["llama", "qwen"])
@pytest.mark.parametrize("kept", [5, -40])
def test_truncated_file(family: str, kept: int, folders: Any, tmp_path: Path) -> None:
    """A download that stopped is told from a model."""
    broken = Path(shutil.copytree(folders(family), tmp_path / "model"))
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert "model.safetensors: not readable as safetensors" in refusal(broken)


@pytest.mark.parametrize(
    ("weights", "config"), [("llama", "qwen"), ("qwen", "llama"), ("llama, biased", "llama")]
)
def test_weights_of_another_model(weights: str, config: str, folders: Any, tmp_path: Path) -> None:
    """Weights beside another model's configuration are refused by the first that differs."""
    mixed = Path(shutil.copytree(folders(weights), tmp_path / "model"))
    shutil.copy(folders(config) / "config.json", mixed)
    line = refusal(mixed)
    assert "unexpected" in line or "config.json belongs to another model" in line


@pytest.mark.parametrize("kind", ["switch_transformers", "gpt2"])
def test_other_architecture(kind: str, tmp_path: Path) -> None:
    """A checkpoint of another architecture is refused by its configuration, with what runs."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    line = refusal(tmp_path)
    assert f"model_type: {kind!r} is not supported here" in line
    assert line.endswith("'mixtral', 'qwen3_moe', 'llama'")


def test_decoder_refuses_another_architecture() -> None:
    """Whoever asks for a decoder of an encoder-decoder's shape hears so before it is allocated."""
    switch = load_model("switch-base-8", architectures=ARCHITECTURES)
    with pytest.raises(EngineError, match="model_type: 'switch_transformers' is not one of"):
        Decoder(switch)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("family", ["llama, stretched", "qwen, dense ends"])
def test_cuda_agrees(family: str, oracles: Any, folders: Any, cuda_batcher: Any) -> None:
    """The same code on the GPU has the same logits, decodes and chunks with context included."""
    ours = load_decoder(folders(family), "cuda")
    cache = cache_of(ours, "cuda")
    ours(cuda_batcher.step((0, 0, 8), (1, 0, 5)), cache)
    logits = ours(cuda_batcher.step((0, 8, 9), (1, 5, 13)), cache).cpu()
    first, second = (logits_of(oracles(family), cuda_batcher.prompts[n]) for n in (0, 1))
    assert_close(logits, torch.cat((first[8:], second[5:])), atol=1e-3, rtol=1e-3)
