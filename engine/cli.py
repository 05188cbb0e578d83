"""The command `moesim-engine`: make checkpoints, generate from them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from moesim import commands

app = commands.application("A mixture-of-experts inference engine in PyTorch, on CUDA or CPU.")

MAKE_HELP = """Make a checkpoint with random weights, in Hugging Face's layout.

Example:

  moesim-engine make --model demo-moe --out checkpoint/
"""

GENERATE_HELP = """Generate tokens from prompts given as token ids, batched.

Example:

  moesim-engine generate --model checkpoint/ --prompt 1,2,3 --prompt 9,8 --output-tokens 8
"""


@app.command(help=MAKE_HELP)
def make(
    model: Annotated[str, typer.Option(help="A shipped model or a config.json.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights.")] = 0,
) -> None:
    """Make a checkpoint."""
    import torch

    from engine.model.checkpoint import random_decoder, save_decoder
    from moesim.errors import EngineError
    from moesim.facts.catalog import load_model
    from moesim.units import format_bytes

    if out.exists():
        raise EngineError(f"{out}: exists already; remove it or choose another --out")
    decoder = random_decoder(load_model(model), seed=seed, device=torch.device("cpu"))
    save_decoder(decoder, out)
    spec = decoder.spec
    print(f"{out}: {spec.parameters:,} parameters, {format_bytes(spec.weight_bytes)}")


@app.command(help=GENERATE_HELP)
def generate(
    model: Annotated[Path, typer.Option(help="A checkpoint folder.")],
    prompt: Annotated[list[str], typer.Option(help="Token ids, comma separated; repeatable.")],
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 16,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Generate tokens."""
    import torch

    from engine.model.checkpoint import load_decoder
    from engine.serve.generate import generate as generate_batch
    from engine.serve.sampling import Sampling

    prompts = [_token_ids(text) for text in prompt]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    answers = generate_batch(
        load_decoder(model, device),
        prompts,
        output_tokens=output_tokens,
        sampling=Sampling(temperature=temperature, seed=seed),
    )
    if as_json:
        print(json.dumps(answers))
    else:
        for answer in answers:
            print(",".join(map(str, answer)))


def _token_ids(text: str) -> list[int]:
    from moesim.errors import EngineError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise EngineError(f"--prompt: {text!r} is not a list of token ids like 1,2,3") from None


def main() -> None:
    """Run the command."""
    app()
