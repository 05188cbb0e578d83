"""`moesim-engine generate`: what its options say reaches the model, the engine and the sampler."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.cli import app
from engine.model.checkpoint import load_decoder
from engine.model.loading import told_precision
from engine.serve.generate import generate
from engine.serve.sampling import Sampling
from engine.server.hosting import Hosting, config_of
from moesim.errors import MoesimError
from moesim.facts.precision import Precision

PROMPTS = [[5, 6, 7], [9, 8]]


def told(checkpoint: Path, *words: str) -> Any:
    """Run the command for both prompts; return what it prints as JSON, or its complaint."""
    asked = [word for prompt in PROMPTS for word in ("--prompt", ",".join(map(str, prompt)))]
    line = ["generate", "--model", str(checkpoint), *asked, "--output-tokens", "8", "--json"]
    result = CliRunner().invoke(app, [*line, *words])
    return json.loads(result.output) if result.exit_code == 0 else result.stderr


def test_greedy_tokens(checkpoint: Path) -> None:
    """Those of the library call."""
    assert told(checkpoint) == generate(load_decoder(checkpoint), PROMPTS, output_tokens=8)


def test_narrowed_weights(checkpoint: Path) -> None:
    """The answers are those of a model that was narrowed as told, not of the whole one."""
    narrow = Precision(experts="int4", rest="fp32", kv="fp32")
    decoder = load_decoder(checkpoint, precision=narrow)
    answers = told(checkpoint, "--precision", "int4", "--rest-precision", "fp32")
    assert answers == generate(decoder, PROMPTS, output_tokens=8)
    assert answers != told(checkpoint)


def test_drawn_tokens(checkpoint: Path) -> None:
    """Temperature, nucleus and seed are the sampler's; a nucleus of next to nothing is greedy."""
    drawn = told(checkpoint, "--temperature", "1.5", "--top-p", "0.8", "--seed", "4")
    rule = Sampling(temperature=1.5, top_p=0.8, seed=4)
    assert drawn == generate(load_decoder(checkpoint), PROMPTS, output_tokens=8, sampling=rule)
    assert told(checkpoint, "--temperature", "1.5", "--top-p", "1e-6") == told(checkpoint)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--experts", "swift"], "experts: 'swift' is none of auto, loop"),
        (["--precision", "int3"], "'int3' is not one of"),
        (["--precision", ""], "--precision: is empty; give a value or leave it out"),
        (["--temperature", "inf"], "temperature: inf must be finite"),
        (["--seed", str(2**64)], "Invalid value for '--seed'"),
        (["--top-p", "0"], "top_p: 0.0 must be above 0"),
    ],
)
def test_nonsense(checkpoint: Path, words: list[str], said: str) -> None:
    """One line each."""
    complaint = told(checkpoint, *words)
    assert said in complaint
    assert len(complaint.strip().splitlines()) == 1


@pytest.mark.parametrize("told", [("", None), (None, ""), ("fp32", "")])
def test_an_empty_format_is_none(checkpoint: Path, told: tuple[str | None, str | None]) -> None:
    """Nothing given is something else."""
    with pytest.raises(MoesimError, match="'' is not one of"):
        load_decoder(checkpoint, precision=told_precision(checkpoint, *told))
    assert told_precision(checkpoint, None, None) is None


@pytest.mark.parametrize("graphs", [True, False])
def test_graphs_as_told(checkpoint: Path, graphs: bool) -> None:
    """`serve --no-graphs` reaches the engine."""
    hosting = Hosting(num_blocks=8, graphs=graphs)
    assert config_of(load_decoder(checkpoint), hosting, sharers=1).graphs == graphs
