"""The benchmark scripts: they find the package `engine`, and reckon with the right bytes."""

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from engine.model.checkpoint import random_decoder
from moesim.facts.models import ModelSpec

ROOT = Path(__file__).parents[2]


def test_the_engine_gives_way() -> None:
    """A script beside `benchmarks/engine.py` that imports `engine` gets the package."""
    program = "import engine.model.weights; print(engine.__path__[0])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == (str(ROOT / "engine"), "")


@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_a_step_reads(
    engine_spec: ModelSpec, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them when every expert is visited, but for a table that is looked up only."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    weight_bytes = import_module("kernels").weight_bytes
    decoder = random_decoder(replace(engine_spec, tie_word_embeddings=tied), seed=0)
    spec = decoder.spec
    table = 0 if tied else spec.vocab_size * spec.hidden_size * 4
    everything = sum(weight.nbytes for weight in decoder.parameters())
    assert weight_bytes(decoder, spec.expert_positions) == everything - table
    one = 3 * spec.hidden_size * spec.intermediate_size * 4
    assert weight_bytes(decoder, spec.expert_positions - 1) == everything - table - one
