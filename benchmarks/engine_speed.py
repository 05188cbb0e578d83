"""Tokens per second and decode steps of the engine, beside transformers' own `generate`.

Both run the same Mixtral checkpoints (random weights, float32 on the CPU, bfloat16 on CUDA) with
the same prompts of 16 tokens to the same number of tokens, greedily, in one run. Batches are run in
turn, ours and theirs, so that a slow spell of the host touches both; medians are kept. A step is
what one more token costs: the time of the whole answer less that of its first token, a token. Ours
takes the batch as so many requests. With --mixed these want answers of different lengths, evenly
from next to nothing to --output-tokens: `generate` runs all to the longest, our engine each to its
own end, and tokens that nobody wants do not count. Prints a table, or JSON with --json.

    batch  what runs beside each other: sequences in one `generate`, requests in our engine
    ratio  theirs over ours in time: above 1 we are faster
"""

import argparse
import json
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from transformers import MixtralConfig, MixtralForCausalLM

from engine.model.checkpoint import load_decoder
from engine.model.decoder import Decoder
from engine.serve.engine import Engine, EngineConfig
from moesim.serving.records import Record
from moesim.serving.scheduling import Limits

PROMPT_TOKENS = 16
BLOCK_SIZE = 16

COMMON = {"num_experts_per_tok": 2, "max_position_embeddings": 1024, "sliding_window": None}
MODELS = {
    "tiny": {
        **COMMON,
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
    },
    "small": {
        **COMMON,
        "vocab_size": 4096,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_local_experts": 8,
    },
}

Generate = Callable[[int], None]
"""Generates so many tokens for every prompt of a batch, to the last."""


@dataclass(frozen=True)
class Row:
    """One line of the table; `spread` is the interquartile range of our steps over the median."""

    model: str
    batch: int
    tokens_per_s: float
    reference_tokens_per_s: float
    step_ms: float
    reference_step_ms: float
    spread: float

    @property
    def ratio(self) -> float:
        """How much faster we generate."""
        return self.tokens_per_s / self.reference_tokens_per_s

    @property
    def step_ratio(self) -> float:
        """How much faster we decode."""
        return self.reference_step_ms / self.step_ms


def lengths_of(batch: int, most: int, mixed: bool) -> list[int]:
    """Return how many tokens each sequence wants.

    >>> lengths_of(4, 32, mixed=True)
    [8, 16, 24, 32]
    """
    if not mixed:
        return [most] * batch
    return [max(1, most * (number + 1) // batch) for number in range(batch)]


def ours(decoder: Decoder, prompts: list[list[int]], args: argparse.Namespace) -> Generate:
    """Return our way to generate."""
    longest = decoder.spec.max_position_embeddings
    limits = Limits(
        max_num_seqs=len(prompts),
        max_batched_tokens=max(512, len(prompts) * PROMPT_TOKENS),
        max_model_len=longest,
    )
    blocks = len(prompts) * -(-longest // BLOCK_SIZE)
    config = EngineConfig(
        limits=limits, num_blocks=blocks, block_size=BLOCK_SIZE, experts=args.experts
    )
    engine = Engine(decoder, config)

    def generate(tokens: int) -> None:
        lengths = lengths_of(len(prompts), tokens, args.mixed)
        for number, (prompt, wanted) in enumerate(zip(prompts, lengths, strict=True)):
            record = Record(request_id=number, prompt_tokens=len(prompt), output_tokens=wanted)
            engine.submit(record, prompt)
        while engine.step():
            pass
        engine.ledger.records.clear()

    return generate


def theirs(model: MixtralForCausalLM, prompts: list[list[int]]) -> Generate:
    """Return transformers' way to generate."""
    tokens_in = torch.tensor(prompts, device=model.device)
    mask = torch.ones_like(tokens_in)

    def generate(tokens: int) -> None:
        out = model.generate(
            tokens_in,
            attention_mask=mask,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        if out.shape[1] != len(prompts[0]) + tokens:
            raise ValueError(f"{tuple(out.shape)} is not {tokens} new tokens")
        if out.is_cuda:
            torch.cuda.synchronize()

    return generate


def seconds(run: Callable[[], None]) -> float:
    """Return how long a run takes [s]."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measured(
    name: str, batch: int, ways: tuple[Generate, Generate], args: argparse.Namespace
) -> Row:
    """Run both ways in turn and keep medians."""
    for generate in ways:
        generate(2)  # whatever is made at first
    whole: tuple[list[float], list[float]] = ([], [])
    steps: tuple[list[float], list[float]] = ([], [])
    for _ in range(args.repeats):
        for way, generate in enumerate(ways):
            first_s = seconds(lambda generate=generate: generate(1))
            whole_s = seconds(lambda generate=generate: generate(args.output_tokens))
            whole[way].append(whole_s)
            steps[way].append((whole_s - first_s) / (args.output_tokens - 1))
    tokens = sum(lengths_of(batch, args.output_tokens, args.mixed))
    low, middle, high = statistics.quantiles(steps[0], n=4)
    return Row(
        model=name,
        batch=batch,
        tokens_per_s=tokens / statistics.median(whole[0]),
        reference_tokens_per_s=tokens / statistics.median(whole[1]),
        step_ms=1e3 * middle,
        reference_step_ms=1e3 * statistics.median(steps[1]),
        spread=(high - low) / middle,
    )


def models_of(name: str, device: str) -> tuple[Decoder, MixtralForCausalLM]:
    """Return the engine's and transformers' model of the same random checkpoint."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    reference = MixtralForCausalLM(MixtralConfig(**MODELS[name])).to(dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(Path(folder) / name)
        decoder = load_decoder(Path(folder) / name, device)
    return decoder, reference.to(device)


def prompts_of(batch: int, vocabulary: int) -> list[list[int]]:
    """Return random prompts without token 0, which transformers takes for padding."""
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, PROMPT_TOKENS)
    return torch.randint(1, vocabulary, shape, generator=generator).tolist()


def table(rows: list[Row]) -> str:
    """Return the rows as aligned text."""
    heads = ("model", "batch", "tok/s", "theirs", "ratio", "step ms", "theirs", "ratio", "spread")
    lines = [
        (
            row.model,
            str(row.batch),
            f"{row.tokens_per_s:,.0f}",
            f"{row.reference_tokens_per_s:,.0f}",
            f"{row.ratio:.2f}",
            f"{row.step_ms:.2f}",
            f"{row.reference_step_ms:.2f}",
            f"{row.step_ratio:.2f}",
            f"{row.spread:.0%}",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in (heads, *lines)
    )


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Speed of the engine beside transformers' generate."
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--experts", default="auto", help="our style of experts")
    parser.add_argument("--mixed", action="store_true", help="answers of different lengths")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if args.output_tokens < 2 or args.repeats < 2:
        parser.error("--output-tokens and --repeats must be at least 2")
    return args


def main() -> None:
    """Measure, and print a table or JSON."""
    args = arguments()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    rows = []
    for name in args.models:
        decoder, reference = models_of(name, args.device)
        for batch in args.batches:
            prompts = prompts_of(batch, decoder.spec.vocab_size)
            ways = (ours(decoder, prompts, args), theirs(reference, prompts))
            rows.append(measured(name, batch, ways, args))
    if args.json:
        where = {
            "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
            "threads": args.threads,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        derived = [asdict(row) | {"ratio": row.ratio, "step_ratio": row.step_ratio} for row in rows]
        print(json.dumps({"conditions": where, "rows": derived}, indent=2))
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
