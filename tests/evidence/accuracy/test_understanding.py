"""What a table's words mean: models, GPUs, metrics, engines, ranks and workloads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.evidence.accuracy.builds import reckoned
from moesim.evidence.accuracy.costs import Costs
from moesim.evidence.accuracy.course import simulated
from moesim.evidence.accuracy.engines import engine_of
from moesim.evidence.accuracy.experiments import figure_of, understood
from moesim.evidence.accuracy.metrics import metric_of
from moesim.evidence.accuracy.mixtral import MIXTRAL_ANSWERS, MIXTRAL_MEAN, mixtral_answers
from moesim.evidence.accuracy.names import UnknownRowError, device_of, model_of
from moesim.evidence.accuracy.served import EXECUTOR_0, SESSION_2024, VLLM_2024
from moesim.evidence.accuracy.table import Row
from moesim.evidence.accuracy.workloads import workload_of
from moesim.serving.policies import POLICIES

ROW = Row(
    line=2,
    source="s",
    model="Mixtral-8x7B",
    gpu="H100-SXM-80GB",
    n_gpus=None,
    tp=2,
    ep=1,
    precision="FP8",
    isl=128.0,
    osl=128.0,
    load="inf",
    scenario="offline_max_load",
    metric="output_tokens_per_s",
    value=1000.0,
    software="TensorRT-LLM 0.14",
    note="",
)


@pytest.mark.parametrize(
    ("name", "billions"),
    [  # the published numbers of parameters
        ("Mixtral-8x7B", 46.70),
        ("mistralai/Mixtral-8x22B-Instruct-v0.1", 140.62),
        ("Llama-2-7B", 6.738),
        ("Llama-2-70B", 68.98),
        ("Mistral-7B", 7.242),
        ("meta-llama/Llama-3.1-8B-Instruct", 8.030),
        ("Llama-3.3-70B", 70.55),
        ("meta-llama/Llama-3.1-405B", 405.85),
        ("Qwen3-32B", 32.76),
        ("Qwen3-235B-A22B-FP8", 235.09),
    ],
)
def test_models_by_their_published_size(name: str, billions: float) -> None:
    assert model_of(name).parameters / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("A100-SXM4-80GB", "a100-sxm-80gb"),
        ("A100-SXM4-80GB(330W cap)", "a100-sxm-80gb"),
        ("NVIDIA H100-SXM-80GB", "h100-sxm-80gb"),
        ("H100-80GB", "h100-sxm-80gb"),
        ("H200-SXM-141GB", "h200-sxm-141gb"),
        ("a100-sxm-40gb", "a100-sxm-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("H100 SXM", "h100-sxm-80gb"),
        ("NVIDIA H100-PCIe-80GB", "h100-pcie-80gb"),
        ("H100 NVL", "h100-nvl-94gb"),
        ("NVIDIA H200-NVL-141GB", "h200-nvl-141gb"),
        ("GH200 96GB HBM3", "gh200-96gb"),
        ("NVIDIA GH200 Grace Hopper Superchip 144GB", "gh200-144gb"),
    ],
)
def test_gpus(name: str, device: str) -> None:
    assert device_of(name).name == device


@pytest.mark.parametrize(
    "name", ["A100-PCIE-40GB", "A100", "H800-SXM-80GB", "H100-NVL-188GB", "L4-24GB", "", "B200"]
)
def test_other_gpus_are_not_taken_for_known_ones(name: str) -> None:
    with pytest.raises(UnknownRowError, match=f"gpu {name} is not known"):
        device_of(name)


@pytest.mark.parametrize(
    ("name", "of", "statistic", "per_second"),
    [
        ("mean_ttft_ms", "ttft_s", "mean", 1e3),
        ("ttft_mean_ms", "ttft_s", "mean", 1e3),
        ("e2e_p99_ms", "turnaround_s", "p99", 1e3),
        ("median_e2e_latency_ms", "turnaround_s", "p50", 1e3),
        ("first_token_latency_ms", "ttft_s", "mean", 1e3),
        ("batch_latency_s", "span_s", "mean", 1.0),
        ("p99_tpot_ms", "tpot_s", "p99", 1e3),
    ],
)
def test_latencies(name: str, of: str, statistic: str, per_second: float) -> None:
    metric = metric_of(name)
    assert (metric.kind, metric.of) == ("latency", of)
    assert (metric.statistic, metric.per_second) == (statistic, per_second)


@pytest.mark.parametrize("name", ["", "joules", "ttft", "p99_ms", "mean_power_w"])
def test_other_metrics_are_not_known(name: str) -> None:
    with pytest.raises(UnknownRowError, match="is not known"):
        metric_of(name)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model": "DeepSeek-R1"}, "model DeepSeek-R1 is not known"),
        ({"gpu": "L4-24GB"}, "gpu L4-24GB is not known"),
        ({"precision": "FP4"}, "precision FP4 is not modelled"),
        ({"gpu": "A100-SXM4-80GB"}, "a100-sxm-80gb has no fp8"),
        ({"model": "mixtral-8x7b-ft"}, "not known: nearest are mixtral-8x7b, mixtral-8x22b"),
        ({"gpu": "H100-SX"}, "nearest are h100-sxm-80gb"),
        ({"metric": "e2e"}, "nearest are mean_e2e_s, mean_e2e_ms"),
        ({"precision": "W8A8"}, "one of FP16, BF16, FP8, INT8, INT4, W8A16, W4A16, AWQ"),
        ({"software": "llama.cpp"}, "not modelled: one of TensorRT-LLM, vLLM, SGLang, gpt-fast"),
        ({"scenario": "online"}, "scenario online is not known: one of static_batch, "),
        (
            {"scenario": "online_serving", "load": "4.0"},
            "load 4.0 does not say at what rate: say `rate 4`",
        ),
        ({"scenario": "online_closed_loop", "load": "32"}, "say `concurrency 32`"),
        (
            {"scenario": "static_batch", "load": ""},
            "load (none) does not say how many: say `batch 8`",
        ),
        ({"software": "vLLM 0.3.3"}, "vLLM had no kernel for experts in fp8 yet"),
        (
            {
                "software": "TensorRT-LLM 0.9",
                "scenario": "static_batch",
                "load": "batch 8",
                "isl": 512.0,
            },
            "how 0.9 routed answers to 129 to 2,047 tokens is not known",
        ),
        ({"tp": None}, "tp is not given"),
        ({"tp": 3}, "cannot be divided"),
        ({"isl": None}, "isl is not given"),
        ({"note": "attn_dp=2 pp=1"}, "data parallel"),
        ({"n_gpus": 3, "tp": 2}, "do not add up"),
        ({"scenario": "static_batch", "load": "some"}, "load some does not say how many"),
        ({"scenario": "static_batch", "load": "batch 1,024"}, "does not say how many"),
        ({"scenario": "static_batch", "load": "batch 16.5"}, "does not say how many"),
        ({"scenario": "online_closed_loop", "load": "concurrency 8-64"}, "does not say how many"),
        ({"scenario": "online_serving", "load": "slow"}, "does not say at what rate"),
        ({"scenario": "online_serving", "load": "rate 1e2"}, "does not say at what rate"),
        ({"scenario": "online_serving", "load": "rate 1,000"}, "does not say at what rate"),
        ({"scenario": "online_serving", "load": "rate infernal"}, "does not say at what rate"),
        ({"scenario": "online_serving", "load": "-5 req/s"}, "does not say at what rate"),
        ({"scenario": "online_serving", "load": "rate 5 n 0"}, "does not say how many"),
    ],
)
def test_rows_are_left_out_for_a_reason(changed: dict[str, Any], reason: str) -> None:
    found = understood([replace(ROW, **changed), ROW])
    assert len(found.figures) == 1
    (said,) = found.left_out
    assert reason in said


@pytest.mark.parametrize(
    ("tp", "ep", "n_gpus", "tensor", "expert", "replicas"),
    [
        (2, 1, None, 2, 1, 1),
        (4, 4, 4, 1, 4, 1),  # attention over all, experts dealt
        (2, 4, 8, 2, 4, 1),  # counted apart
        (1, 1, 8, 1, 1, 8),
    ],
)
def test_ranks(
    tp: int, ep: int, n_gpus: int | None, tensor: int, expert: int, replicas: int
) -> None:
    figure = figure_of(replace(ROW, tp=tp, ep=ep, n_gpus=n_gpus))
    part = figure.experiment.system.part
    assert (part.tensor_parallel, part.expert_parallel) == (tensor, expert)
    assert figure.replicas == replicas


def test_tensorrt_llm_keeps_keys_and_values_of_fp8_engines_in_fp8() -> None:
    assert figure_of(ROW).experiment.system.precision.kv == "fp8"
    assert figure_of(replace(ROW, precision="FP16")).experiment.system.precision.kv == "fp16"
    assert figure_of(replace(ROW, software="vLLM 0.12")).experiment.system.precision.kv == "bf16"


def test_the_published_runs_have_their_published_numbers_of_requests() -> None:
    """TensorRT-LLM v0.14, docs/source/performance/perf-overview.md."""
    published = {
        (128, 128): 30000, (128, 2048): 3000, (128, 4096): 1500, (2048, 128): 3000,
        (2048, 2048): 1500, (5000, 500): 1500, (1000, 1000): 3000, (500, 2000): 3000,
        (20000, 2000): 1000,
    }  # fmt: skip
    for (prompt, output), requests in published.items():
        row = replace(ROW, isl=float(prompt), osl=float(output))
        assert workload_of(row).requests == requests


@pytest.mark.parametrize(
    ("load", "rate"), [("rate 2.5", 2.5), ("rate 10.0 conc None n 50", 10.0), ("8 req/s", 8.0)]
)
def test_rates_are_dealt_to_replicas(load: str, rate: float) -> None:
    row = replace(ROW, scenario="online_serving", load=load)
    assert workload_of(row).shared_by(4).rate_per_s == rate / 4


def test_a_replica_is_asked_at_least_once() -> None:
    """Eight replicas of a server that is asked once in a thousand seconds."""
    row = replace(ROW, tp=1, n_gpus=8, scenario="mlperf_server_closed", load="0.001 req/s target")
    assert figure_of(row).experiment.workload.requests == 1


def test_users_are_dealt_to_replicas() -> None:
    row = replace(ROW, scenario="online_closed_loop", load="concurrency/batch 64", n_gpus=8)
    assert figure_of(row).experiment.workload.users == 16
    with pytest.raises(UnknownRowError, match="do not add up"):
        figure_of(replace(row, load="concurrency 63"))


def test_mixtral_answers_have_the_published_percentiles_and_mean() -> None:
    answers = mixtral_answers((np.arange(200_000) + 0.5) / 200_000)
    for level, tokens in MIXTRAL_ANSWERS:
        assert np.quantile(answers, level) == pytest.approx(tokens, rel=0.01)
    assert answers.mean() == pytest.approx(MIXTRAL_MEAN, rel=0.001)


def test_engines() -> None:
    assert engine_of("TensorRT-LLM 0.14", "offline_max_load").policy.chunked
    assert engine_of("TensorRT 10.2.0, CUDA 12.4", "mlperf_server_closed").max_num_seqs == 896
    assert engine_of("TensorRT-LLM 0.9.0", "static_batch").policy.admission == "idle"


def test_servers_without_a_version_are_newer_than_the_table() -> None:
    """InferenceMAX's trtllm of 2025: the PyTorch backend; MLPerf's entries of 2024 are not."""
    newest = engine_of("TensorRT-LLM 1.0 (PyTorch backend)", "online_closed_loop")
    assert engine_of("trtllm", "online_closed_loop") == newest
    assert (newest.tabulated, newest.block_size) == (False, 32)
    assert engine_of("TensorRT-LLM 0.14", "offline_max_load").tabulated
    assert engine_of("TensorRT-LLM", "mlperf_server_closed").block_size == 64


def test_engines_are_built_for_what_the_cache_holds() -> None:
    """Rounded up, within trtllm-bench's bounds."""
    assert reckoned(250.9, 1000, 1000) == (256, 2048)
    assert reckoned(1e6, 2048, 128) == (4096, 16384)
    assert reckoned(1, 128, 128) == (64, 2048)


@pytest.mark.parametrize(
    ("software", "policy", "sequences"),
    [
        ("vLLM", "chunked_prefill", 1024),
        ("vLLM (CUDA 12.1)", "chunked_prefill", 1024),
        ("vLLM v1", "chunked_prefill", 1024),
        ("vLLM 0.8.0", "chunked_prefill", 1024),
        ("vLLM 0.7.3", "prefill_priority", 256),
        ("vllm-0.5.4.post1", "prefill_priority", 256),
        ("vLLM v0.4.0", "prefill_priority", 256),
        ("vLLM 0.3.3", "padded_prefill", 256),
        ("vLLM 0.2.1", "padded_prefill", 256),
        ("vLLM 0.1.7", "prefill_priority", 256),
    ],
)
def test_schedulers_of_vllm(software: str, policy: str, sequences: int) -> None:
    engine = engine_of(software, "online_serving")
    assert engine.policy is POLICIES[policy]
    assert engine.max_num_seqs == sequences
    assert engine_of(software, "static_batch").policy.chunked


def test_the_first_vllm_takes_its_context_at_once() -> None:
    """Mixtral's 32,768 tokens; of Llama 3.1's 131,072 as many."""
    row = replace(ROW, scenario="online_serving", load="rate 1 n 3", precision="FP16")
    for model in ("Mixtral-8x7B", "Llama-3.1-8B"):
        figure = figure_of(replace(row, software="vLLM 0.5.4", model=model))
        assert simulated(figure.experiment, Costs("roofline")).limits.max_batched_tokens == 32768


def test_older_engines_are_the_same_in_every_scenario() -> None:
    """Kernels and hosts belong to a version, however it is written."""
    for software in ("TensorRT-LLM 0.9.0", "TensorRT-LLM v0.9.0", "tensorrt-llm 0.8"):
        batch, served = (engine_of(software, name) for name in ("static_batch", "offline"))
        assert (batch.earlier, batch.gathered) == (served.earlier, served.gathered)
        assert (batch.wide_experts, served.wide_experts) == (True, True)
        assert (batch.made is None, served.made is None) == (False, True)
    assert engine_of("TensorRT-LLM 1.0.9", "static_batch").earlier is None
    assert engine_of("TensorRT-LLM (CUDA 12.4)", "static_batch").host is SESSION_2024
    assert engine_of("vLLM 0.5.4", "online_serving").host is VLLM_2024
    assert engine_of("vLLM", "online_serving").host is None


def test_backends_of_tensorrt_llm() -> None:
    torch = engine_of("TensorRT-LLM 0.21 (PyTorch backend)", "offline")
    assert (torch.host, torch.block_size) == (None, 32)
    cpp = engine_of("TensorRT-LLM 1.0 (TensorRT backend)", "offline")
    assert (cpp.host, cpp.block_size) == (EXECUTOR_0, 64)


@pytest.mark.parametrize(
    ("name", "weights"), [("W4A16", "int4"), ("awq", "int4"), ("W8A16", "int8")]
)
def test_formats_of_weights_alone(name: str, weights: str) -> None:
    row = replace(ROW, precision=name, software="vLLM 0.11")
    assert figure_of(row).experiment.system.precision.experts == weights


def test_a_config_file_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(model_of("Mixtral-8x7B").to_config() | {"num_hidden_layers": 16}))
    assert figure_of(replace(ROW, model=str(path))).experiment.system.spec.num_hidden_layers == 16
