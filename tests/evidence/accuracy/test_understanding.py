"""What a table's words mean: models, GPUs, metrics, engines, ranks and workloads."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moesim.evidence.accuracy.builds import reckoned
from moesim.evidence.accuracy.engines import engine_of
from moesim.evidence.accuracy.experiments import figure_of, understood
from moesim.evidence.accuracy.metrics import metric_of
from moesim.evidence.accuracy.mixtral import MIXTRAL_ANSWERS, MIXTRAL_MEAN, mixtral_answers
from moesim.evidence.accuracy.names import UnknownRowError, device_of, model_of
from moesim.evidence.accuracy.table import Row
from moesim.evidence.accuracy.workloads import workload_of

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
        ({"software": "llama.cpp"}, "software llama.cpp is not modelled"),
        ({"scenario": "training"}, "scenario training is not known"),
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
