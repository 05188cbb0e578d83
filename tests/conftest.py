"""A tiny world whose durations are worked out by hand.

The model has 2 layers of 4 experts, top-2, and cells that lie on straight lines [ms]:

    host 10          per iteration
    embedding T      per iteration, T tokens
    projections 2 T  per layer
    router 1         per layer
    experts T + 3 d  per layer, d distinct experts; the router is uniform, so d = 4 (1 - 0.5^T)
    decode k + C/10  per layer, k sequences with C tokens of context in all
    prefill q (2 + c/2)  per layer, q new tokens after c cached ones
    head 5 m         per iteration, m sequences that emit a token
    sampling m       per iteration

A 4-token prompt alone: 10 + 4 + 2 (8 + 1 + 4 + 3 x 3.75 + 8) + 6 = 84.5 ms; its second token,
at a context of 5: 10 + 1 + 2 (2 + 1 + 1 + 3 x 2 + 1 + 0.5) + 6 = 40 ms.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import settings

from moesim.cost.profile import Profile
from moesim.facts.models import ModelSpec
from moesim.serving.metrics import summarise
from moesim.serving.records import COMPLETED, REFUSED, Record, records_frame

# Two test processes whose torch threads wait for each other by spinning take minutes for seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

MODEL = {
    "model_type": "mixtral",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "dtype": "float32",
}


def _grid(milliseconds: Callable[..., float], *axes: tuple[int, ...]) -> list[dict[str, Any]]:
    points = [
        (x, *rest) for x in axes[0] for rest in ([(y,) for y in axes[1]] if axes[1:] else [()])
    ]
    return [
        {"at": point, "median_s": milliseconds(*point) / 1000, "spread": 0.01, "repeats": 9}
        for point in points
    ]


def _profile_content() -> dict[str, Any]:
    return {
        "format": "moesim-profile",
        "format_version": 1,
        "model": MODEL,
        "max_batched_tokens": 64,
        "kv": {"block_size": 4, "num_blocks": 16},
        "router": {"popularity": [[0.5] * 4] * 2, "tokens": 100, "distinct": [[1, 2.0]]},
        "operations": {
            "host": _grid(lambda n: 10, (1, 64)),
            "embedding": _grid(lambda t: t, (1, 64)),
            "projections": _grid(lambda t: 2 * t, (1, 64)),
            "router": _grid(lambda t: 1, (1, 64)),
            "experts": _grid(lambda t, d: t + 3 * d, (1, 2, 3, 4, 64), (1, 4)),
            "attention_decode": _grid(lambda k, c: k + c / 10, (1, 64), (1, 256)),
            "attention_prefill": _grid(lambda q, c: q * (2 + c / 2), (2, 64), (0, 64)),
            "head": _grid(lambda m: 5 * m, (1, 64)),
            "sampling": _grid(lambda m: m, (1, 64)),
        },
        "provenance": {
            "device": "paper and pencil",
            "device_kind": "cpu",
            "host_hash": "0" * 16,
            "software": {"moesim": "0.1.0"},
            "threads": 1,
            "date": "2026-11-21T00:00:00+00:00",
            "model_source": "tiny",
            "model_digest": "0" * 16,
            "duration_s": 1.0,
        },
        "verdict": {
            "stable": True,
            "unstable_cells": 0,
            "cells": 30,
            "iteration_error_p50": None,
            "iteration_error_p90": None,
            "drift": 0.0,
        },
    }


@pytest.fixture(scope="session")
def tiny_content() -> Callable[[], dict[str, Any]]:
    """Return the tiny profile as the content of its file, a fresh copy a call."""
    return lambda: json.loads(json.dumps(_profile_content()))


@pytest.fixture(scope="session")
def tiny_profile(tiny_content: Callable[[], dict[str, Any]]) -> Profile:
    """Return the tiny profile."""
    return Profile.model_validate(tiny_content())


@pytest.fixture(scope="session")
def tiny_scenario(
    tiny_content: Callable[[], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], dict[str, Any]]:
    """Return a whole scenario of the tiny model as plain data, a fresh copy a call."""
    folder: Path = tmp_path_factory.mktemp("tiny")
    (folder / "model.json").write_text(json.dumps(MODEL))
    (folder / "profile.json").write_text(json.dumps(tiny_content()))
    content = {
        "name": "tiny",
        "duration_s": 10.0,
        "models": {
            "m": {
                "architecture": str(folder / "model.json"),
                "profile": str(folder / "profile.json"),
            }
        },
        "tenants": {
            "chat": {
                "model": "m",
                "arrivals": {"kind": "poisson", "rate_per_s": 3.0},
                "prompt_tokens": {"kind": "lognormal", "mean": 6.0, "cv": 0.5, "max": 12},
                "output_tokens": {"kind": "lognormal", "mean": 4.0, "cv": 0.5, "max": 8},
            }
        },
        "hardware": {"device": "cpu-2core", "count": 1},
        "deployment": {
            "kind": "dedicated",
            "replicas": 1,
            "scheduler": {"max_num_seqs": 8, "max_batched_tokens": 16},
        },
    }
    return lambda: json.loads(json.dumps(content))


@pytest.fixture
def records() -> pd.DataFrame:
    """Return three requests served and one refused; TTFT 1, 2 and 3 s, TPOT 1, 1 and none."""
    times = [(0, 1, 3, 3), (1, 3, 4, 2), (2, 5, 5, 1)]
    served = [
        Record(
            request_id=number,
            tenant="chat",
            model="demo",
            replica="demo/0",
            arrival_s=arrival,
            scheduled_s=arrival,
            first_token_s=first,
            finish_s=finish,
            prompt_tokens=8,
            output_tokens=tokens,
            outcome=COMPLETED,
        )
        for number, (arrival, first, finish, tokens) in enumerate(times)
    ]
    refused = Record(
        request_id=3, tenant="chat", model="demo", replica="demo/0", arrival_s=3, outcome=REFUSED
    )
    return records_frame([*served, refused])


@pytest.fixture
def slower(records: pd.DataFrame) -> pd.DataFrame:
    """Stretch every wait by a quarter."""
    stretched = {
        name: records["arrival_s"] + 1.25 * (records[name] - records["arrival_s"])
        for name in ("first_token_s", "finish_s")
    }
    return records.assign(**stretched)


@pytest.fixture(scope="session")
def predicting() -> Callable[..., dict[str, Any]]:
    """Make a record table's metrics a prediction: each figure give or take a share of it."""

    def prediction(records: pd.DataFrame, share: float = 0.1) -> dict[str, Any]:
        metrics = summarise(records)
        around = {"overall": _around(metrics["overall"], share), "tenants": {}}
        return metrics | {"replications": 20, "coverage": 0.9, "intervals": around}

    return prediction


def _around(figure: Any, share: float) -> Any:
    if isinstance(figure, dict):
        return {name: _around(part, share) for name, part in figure.items()}
    return None if figure is None else [(1 - share) * figure, (1 + share) * figure]


@pytest.fixture(scope="session")
def engine_spec() -> ModelSpec:
    """Return the shape of a model that is made and profiled within a test."""
    return ModelSpec(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=64,
        max_position_embeddings=96,
        dtype="float32",
    )
