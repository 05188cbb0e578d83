"""The command `moesim-engine`: make checkpoints, generate from them, serve them."""

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

SERVE_HELP = """Serve checkpoints over HTTP, as OpenAI's API has it.

Example:

  moesim-engine serve --model tiny=checkpoint/ --port 8000
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


@app.command(help=SERVE_HELP)
def serve(
    model: Annotated[list[str], typer.Option(help="NAME=FOLDER of a checkpoint; repeatable.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8000,
    api_key: Annotated[
        str, typer.Option(envvar="MOESIM_API_KEY", help="What clients must send, if given.")
    ] = "",
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Sequences that run at once.")] = 256,
    max_batched_tokens: Annotated[int, typer.Option(min=1, help="Tokens an iteration.")] = 2048,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Tokens of prompt and answer; default the model's.")
    ] = None,
    num_blocks: Annotated[
        int | None, typer.Option(min=1, help="KV blocks a model; default what fits.")
    ] = None,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens a KV block.")] = 16,
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching", help="Share blocks of prompts that begin alike.")
    ] = False,
    max_queue: Annotated[int, typer.Option(min=0, help="Prompts that may wait, a model.")] = 1024,
    max_body_mib: Annotated[float, typer.Option(min=0.001, help="MiB of a request's body.")] = 4,
    drain_s: Annotated[float, typer.Option(min=0, help="Seconds to finish at SIGTERM.")] = 30,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of requests without one; default none.")
    ] = None,
    records: Annotated[
        Path | None, typer.Option(help="Write a row a request here at the end (.parquet, .csv).")
    ] = None,
) -> None:
    """Serve over HTTP."""
    _require_server()
    from engine.server.command import Setting, serve
    from engine.server.hosting import Hosting
    from engine.server.service import Bounds
    from moesim.units import MIB

    hosting = Hosting(
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        block_size=block_size,
        prefix_caching=prefix_caching,
        seed=seed,
    )
    serve(
        Setting(
            models=model,
            hosting=hosting,
            bounds=Bounds(body_bytes=int(max_body_mib * MIB), queue=max_queue),
            host=host,
            port=port,
            api_key=api_key,
            drain_s=drain_s,
            records=records,
        )
    )


def _require_server() -> None:
    """Name the command that installs the server's libraries where they are missing."""
    from importlib.util import find_spec

    from moesim.errors import EngineError

    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise EngineError(f"serve needs {' and '.join(missing)}; pip install 'moesim[server]'")


def _token_ids(text: str) -> list[int]:
    from moesim.errors import EngineError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise EngineError(f"--prompt: {text!r} is not a list of token ids like 1,2,3") from None


def main() -> None:
    """Run the command."""
    app()
