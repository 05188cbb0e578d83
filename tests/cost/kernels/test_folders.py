"""Folders of other simulators' profilers: one model's kernels in our file."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moesim.cost.curves import Fan
from moesim.cost.kernels.assembling import assembled_profile
from moesim.cost.kernels.importing import from_folder
from moesim.cost.kernels.tables import Kernels
from moesim.errors import ProfileError
from moesim.facts.catalog import load_device, load_model
from moesim.facts.hardware import Device
from moesim.facts.slices import group

QWEN, LLAMA = load_model("qwen3-30b-a3b"), load_model("llama-3-8b")
H100 = load_device("h100-sxm-80gb")
LIMITS = {"max_batched_tokens": 2048, "max_num_seqs": 64}
REFERENCE = Path(__file__).parents[4] / "shared/reference/runs/rtxpro6000_qwen3_profile"
CARD = Device(
    name="rtx-pro-6000",
    kind="cuda",
    memory_bytes=103079215104,
    memory_bandwidth_bytes_per_s=1.597e12,
    bf16_flop_per_s=5.038e14,
    source="NVIDIA RTX PRO 6000 Blackwell Server Edition datasheet",
)
TOKENS = (1, 16, 256, 2048)


def _us(tokens: int, each: float) -> float:
    return 5.0 + each * tokens


@pytest.fixture
def sim(tmp_path: Path) -> Path:
    """Write a folder as LLMServingSim's profiler does, of lawful kernels."""
    folder = tmp_path / "H100/Qwen/bf16"
    (folder / "tp1").mkdir(parents=True)
    (folder / "meta.yaml").write_text("vllm_version: 0.19.0\ngpu: H100\n")
    layers = {"qkv_proj": 0.2, "o_proj": 0.1, "layernorm": 0.01, "embedding": 0.01,
              "rotary_emb": 0.01, "qk_norm": 0.02, "final_layernorm": 0.01}  # fmt: skip
    tables = {
        "dense": [
            {"layer": name, "tokens": t, "time_us": _us(t, each)}
            for name, each in layers.items()
            for t in TOKENS
        ],
        "per_sequence": [
            {"layer": name, "sequences": t, "time_us": 100 + t}
            for name in ("lm_head", "sampler")
            for t in (1, 16, 64)
        ],
        "moe": [
            {"tokens": t, "activated_experts": d, "time_us": 10 + 6 * d + 0.1 * t}
            for t in TOKENS
            for d in (8, 32, 128)
            if d <= 8 * t
        ],
        "attention": [
            {"prefill_chunk": c, "kv_prefill": k, "n_decode": n, "kv_decode": kd, "time_us": us}
            for c, k, n, kd, us in (
                *((c, k, 0, 0, 5 + c / 50 + c * k / 1e5) for c in TOKENS for k in (0, 512, 4096)),
                *((0, 0, n, k, 5 + n * k / 1e4) for n in (1, 8, 64) for k in (16, 512, 16384)),
                (256, 0, 8, 512, 1e6),  # together: passed over
            )
        ],
    }
    for name, rows in tables.items():
        pd.DataFrame(rows).to_csv(folder / f"tp1/{name}.csv", index=False)
    return tmp_path


def _imported(layout: str, folder: Path, spec: Any = QWEN, device: Device = H100) -> Kernels:
    return from_folder(layout, folder, device, "m", spec)


def _of(profile: Any, name: str, *at: float) -> float:
    return float(next(c.median_s for c in profile.operations[name] if c.at == at) * 1e6)


def test_llmservingsim_s_kernels_make_a_profile(sim: Path) -> None:
    """Measured kernels all through, microseconds as they are."""
    kernels = _imported("llmservingsim", sim)
    assert kernels.origin.software == "vLLM 0.19.0 on H100"
    profile = assembled_profile(kernels, QWEN, H100, **LIMITS)
    wanted = sum(_us(256, each) for each in (0.2, 0.1, 0.01, 0.01, 0.02))
    assert _of(profile, "projections", 256) == pytest.approx(wanted, rel=1e-3)
    assert _of(profile, "experts", 256, 32) == pytest.approx(10 + 6 * 32 + 25.6, rel=1e-3)
    assert _of(profile, "experts", 256, 64) == pytest.approx(10 + 6 * 64 + 25.6, rel=1e-3)
    decode = Fan.through(profile.operations["attention_decode"])
    layer = sum(
        _of(profile, name, 64, *at) for name, at in (("projections", ()), ("experts", (128,)))
    )
    assert decode(64, 64 * 512) * 1e6 == pytest.approx(5 + 64 * 512 / 1e4, abs=0.01 * layer)
    assert _of(profile, "attention_prefill", 256, 512) == pytest.approx(
        5 + 256 / 50 + 256 * 512 / 1e5, rel=1e-3
    )
    assert _of(profile, "sampling", 64) == pytest.approx(164)
    assert profile.rests_on("sampling") == "interpolated"
    assert profile.rests_on("projections") == "interpolated"


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("moe", lambda f: f.assign(activated_experts=512), "activated_experts: 512, the model has"),
        ("moe", lambda f: f.drop(columns="tokens"), r"moe\.csv: no column tokens"),
        ("dense", lambda f: f[f["layer"] != "o_proj"], "layer: no rows of o_proj"),
        ("attention", lambda f: f[f["n_decode"] > 0], "no rows of chunks alone"),
        ("attention", lambda f: f.assign(time_us="x"), "time_us: 'x' is not a number"),
        ("per_sequence", lambda f: f[:0], "no rows"),
    ],
)
def test_a_wrong_folder_of_llmservingsim_is_refused(
    sim: Path, file: str, change: Any, words: str
) -> None:
    """One line with the file and the column."""
    path = sim / f"H100/Qwen/bf16/tp1/{file}.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(ProfileError, match=words) as caught:
        _imported("llmservingsim", sim)
    assert "\n" not in str(caught.value)


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    """Whichever is asked for."""
    with pytest.raises(ProfileError, match=r"expected one meta\.yaml in it, found none"):
        _imported("llmservingsim", tmp_path)
    with pytest.raises(ProfileError, match=r"no mlp\.csv"):
        _imported("vidur", tmp_path, LLAMA)
    with pytest.raises(ProfileError, match="no such folder"):
        _imported("vidur", tmp_path / "none", LLAMA)


@pytest.fixture
def vidur(tmp_path: Path) -> Path:
    """Write a folder as Vidur's profiler does, of one device and of two."""
    shape = {"n_head": 32, "n_kv_head": 8, "n_embd": 4096}
    names = ("emb", "input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj",
             "mlp_up_proj", "mlp_act", "mlp_down_proj")  # fmt: skip
    mlp = [
        {f"time_stats.{name}.median": (5 + t / ranks) / 1e3 for name in names}
        | {**shape, "num_tokens": t, "num_tensor_parallel_workers": ranks}
        for t in TOKENS
        for ranks in (1, 2)
    ]
    attention = [
        {"time_stats.attn_prefill.median": us / 1e3 if c else None,
         "time_stats.attn_decode.median": None if c else us / 1e3,
         "n_embd": 4096, "n_q_head": 32, "n_kv_head": 8, "num_tensor_parallel_workers": ranks,
         "batch_size": b, "prefill_chunk_size": c, "kv_cache_size": k, "is_prefill": bool(c)}
        for ranks in (1, 2)
        for b, c, k, us in (
            *((1, c, k, 5 + c / 50 + c * k / 1e5) for c in (16, 256, 1024) for k in (0, 512, 2048)),
            *((b, 0, k, 5 + b * k / 1e4) for b in (1, 8, 64) for k in (128, 512, 8192)),
        )
    ]  # fmt: skip
    reduce = [
        {"time_stats.all_reduce.median": 0.01 + size / 1e8, "num_workers": 2, "size": size,
         "devices_per_node": devices}
        for size in (2**11, 2**20, 2**24)
        for devices in (1, 2)
    ]  # fmt: skip
    for name, rows in {"mlp": mlp, "attention": attention, "all_reduce": reduce}.items():
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


def test_vidur_s_kernels_make_a_profile_of_one_and_of_two(vidur: Path) -> None:
    """Milliseconds become microseconds; each group size has its own rows."""
    kernels = _imported("vidur", vidur, LLAMA)
    for ranks in (1, 2):
        part = group(H100, tensor_parallel=ranks)
        profile = assembled_profile(kernels, LLAMA, H100, part=part, **LIMITS)
        each = 5 + 256 / ranks
        # The norm is whole on every rank; QKV, O and rotary positions are cut.
        wanted = 5 + 256 + 3 * each
        assert _of(profile, "projections", 256) == pytest.approx(wanted, rel=1e-3)
        assert _of(profile, "experts", 256, 1) == pytest.approx(3 * each, rel=1e-3)
    message = 2048 * 4096 * 2
    assert _of(profile, "collectives", 2048) == pytest.approx(
        2e3 * (0.01 + message / 1e8), rel=1e-3
    )


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("mlp", lambda f: f.assign(n_embd=8192), "n_embd: 8192, the model has hidden_size 4096"),
        ("attention", lambda f: f.assign(n_kv_head=4), "n_kv_head: 4, the model has"),
        ("mlp", lambda f: f.drop(columns="num_tokens"), "no column num_tokens"),
        ("attention", lambda f: f[f["prefill_chunk_size"] > 0], "no rows of decode"),
    ],
)
def test_a_wrong_folder_of_vidur_is_refused(
    vidur: Path, file: str, change: Any, words: str
) -> None:
    """One line with the file and the column."""
    path = vidur / f"{file}.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(ProfileError, match=words) as caught:
        _imported("vidur", vidur, LLAMA)
    assert "\n" not in str(caught.value)


def test_experts_need_their_table(vidur: Path) -> None:
    """Vidur's own has none."""
    with pytest.raises(ProfileError, match=r"no moe\.csv"):
        from_folder("vidur", vidur, H100, "m", load_model("mixtral-8x7b"))


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference profile beside the project")
def test_a_real_profile_of_qwen_is_imported_and_used() -> None:
    """On a device that does not ship; the experts it measured are given back."""
    kernels = _imported("llmservingsim", REFERENCE, device=CARD)
    profile = assembled_profile(kernels, QWEN, CARD, max_batched_tokens=2048, max_num_seqs=256)
    # moe.csv: 512 tokens on all 128 experts; attention.csv: 512 new tokens on 4096 cached.
    assert _of(profile, "experts", 512, 128) == pytest.approx(912.033, rel=1e-3)
    assert _of(profile, "attention_prefill", 512, 4096) == pytest.approx(191.254, rel=1e-3)
    assert kernels.residuals["moe"].p50 < 0.05
