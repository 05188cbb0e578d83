"""One layer's experts by style, and whole decode steps, beside the time it takes to read weights.

    python benchmarks/kernels.py --reference mixtral_moe_layer.parquet

On CUDA Mixtral-8x7B in bfloat16 with random weights, of which one layer, 2.8 GB, is larger than any
cache; on the CPU a small model in float32, as a rehearsal. Floors are bytes over the bandwidth of a
large copy (read and write counted), measured in the same run.

A layer's styles run in turn, those that can be captured as replays of a CUDA graph; medians are
kept. The bytes are those of the distinct experts that the batch visits. `--reference` adds the
fastest published layer of a table in AIConfigurator's columns (latency in ms; bfloat16, one rank,
balanced routing) for the GPU at hand, from a Parquet or CSV file.

A step is an iteration of the engine, from scheduling to sampled tokens, in which every sequence
decodes one token after `--context` others. The bytes are all weights but the embedding, and of the
experts those that the batch visits; not its keys and values. Prints tables, or JSON with --json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

from engine.model.checkpoint import random_decoder
from engine.model.decoder import Decoder
from engine.model.experts.choosing import replayed, sample
from engine.model.experts.styles import STYLES, Style
from engine.model.moe import MoeLayer
from engine.model.quantise import held_bytes
from engine.model.routing import observed_routing
from engine.serve.engine import Engine, EngineConfig
from moesim.facts.catalog import load_model
from moesim.serving.records import Record
from moesim.serving.scheduling import Limits

Run = Callable[[], object]
PARTS = ("layer", "step")
PREFILL = 2048
"""Tokens of an iteration in which prompts are read."""
MARGIN = 256
"""Tokens that a sequence may generate while the others' prompts are read."""


@dataclass(frozen=True)
class Row:
    """One style at one number of tokens; times in ms."""

    tokens: int
    distinct: int
    style: str
    ms: float
    floor_ms: float
    reference_ms: float | None


@dataclass(frozen=True)
class Step:
    """One decode step of so many sequences; `distinct` experts are visited in all layers."""

    sequences: int
    distinct: int
    ms: float
    floor_ms: float


def layer_of(model: str, device: torch.device) -> MoeLayer:
    """Return a layer with random weights of the size that keeps activations of order one."""
    spec = load_model(model)
    layer = MoeLayer(spec, device)
    for weight in (layer.gate_up, layer.down):
        weight.data.normal_(std=weight.shape[-1] ** -0.5)
    return layer


def synchronised(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(run: Run, device: torch.device) -> float:
    """Return how long a run takes [s]."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def copy_bytes_per_s(device: torch.device, repeats: int) -> float:
    """Return the bandwidth of a large copy, read and write counted."""
    size = 2**30 if device.type == "cuda" else 2**27
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    median_s = statistics.median(
        seconds(lambda: target.copy_(source), device) for _ in range(repeats)
    )
    return 2 * size / median_s


def launched(style: Style, layer: MoeLayer, tokens: int) -> Run:
    """Return what runs a style, compiled and captured where that can be."""
    inputs = sample(layer, tokens)

    def run() -> None:
        style.run(*inputs, layer.gate_up, layer.down)

    run()
    captured = layer.gate_up.is_cuda and style.capturable
    return replayed(run) if captured else run


def references(path: Path | None, layer: MoeLayer) -> dict[int, float]:
    """Return the least published latency [ms] by tokens, for this GPU and this shape."""
    if path is None:
        return {}
    if not layer.gate_up.is_cuda:
        raise SystemExit(f"--reference {path}: published layers are of GPUs; there is none here")
    experts, hidden, inner = layer.down.shape
    rows = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    names = {name for name in rows["gpu"].unique() if gpu_is(name)}
    same = rows[
        rows["gpu"].isin(names)
        & (rows["moe_dtype"] == "bfloat16")
        & (rows["moe_tp_size"] == 1)
        & (rows["moe_ep_size"] == 1)
        & (rows["num_experts"] == experts)
        & (rows["hidden_size"] == hidden)
        & (rows["inter_size"] == inner)
        & (rows["distribution"] == "balanced")
    ]
    return {
        int(tokens): float(ms) for tokens, ms in same.groupby("num_tokens")["latency"].min().items()
    }


def gpu_is(name: str) -> bool:
    """Whether a table's name like `h200_sxm` is that of the GPU here."""
    return name.split("_")[0].upper() in torch.cuda.get_device_name()


@torch.inference_mode()
def measured(layer: MoeLayer, bandwidth: float, args: argparse.Namespace) -> list[Row]:
    """Return a row for each style and number of tokens."""
    device = layer.gate_up.device
    published = references(args.reference, layer)
    expert_bytes = (layer.gate_up[0].numel() + layer.down[0].numel()) * layer.gate_up.itemsize
    styles = [style for style in STYLES.values() if not style.obstacle(layer.gate_up)]
    rows = []
    for tokens in args.tokens:
        distinct = len(sample(layer, tokens)[2].unique())
        runs = {style.name: launched(style, layer, tokens) for style in styles}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.repeats):
            for name, run in runs.items():
                synchronised(device)
                times[name].append(seconds(run, device))
        rows += [
            Row(
                tokens=tokens,
                distinct=distinct,
                style=name,
                ms=1e3 * statistics.median(each),
                floor_ms=1e3 * distinct * expert_bytes / bandwidth,
                reference_ms=published.get(tokens),
            )
            for name, each in times.items()
        ]
    return rows


def engine_of(decoder: Decoder, args: argparse.Namespace) -> Engine:
    """Return an engine with room for the largest batch, its experts and graphs chosen."""
    most, longest = max(args.sequences), args.context + args.repeats + MARGIN
    limits = Limits(max_num_seqs=most, max_batched_tokens=max(PREFILL, most), max_model_len=longest)
    blocks = most * -(-longest // 16)
    return Engine(decoder, EngineConfig(limits=limits, num_blocks=blocks))


def steps(model: str, bandwidth: float, args: argparse.Namespace) -> tuple[str, list[Step]]:
    """Return the styles that the engine chose for the experts, and a row for each batch."""
    decoder = random_decoder(load_model(model), seed=0, device=args.device)
    engine = engine_of(decoder, args)
    moes = decoder.moe_layers
    chosen = str(moes[0].choice) if moes else "none"
    return chosen, [step_of(engine, count, bandwidth, args) for count in args.sequences]


def step_of(engine: Engine, sequences: int, bandwidth: float, args: argparse.Namespace) -> Step:
    """Let so many sequences decode together, and time that."""
    decoder, scheduler = engine.runner.decoder, engine.scheduler
    tokens = torch.randint(decoder.spec.vocab_size, (sequences, args.context))
    longest = engine.config.limits.max_model_len
    for number, prompt in enumerate(tokens.tolist()):
        asked = longest - args.context
        record = Record(request_id=number, prompt_tokens=args.context, output_tokens=asked)
        engine.submit(record, prompt)
    while scheduler.waiting or not all(one.generated for one in scheduler.running):
        engine.step()
    with observed_routing(decoder) as counts:
        engine.step()
    distinct = int((counts > 0).sum())
    engine.step()  # the first that may be a graph's
    times = [seconds(engine.step, torch.device("cpu")) for _ in range(args.repeats)]
    for number in range(sequences):
        engine.cancel(number)
    engine.ledger.records.clear()
    return Step(
        sequences=sequences,
        distinct=distinct,
        ms=1e3 * statistics.median(times),
        floor_ms=1e3 * weight_bytes(decoder, distinct) / bandwidth,
    )


def weight_bytes(decoder: Decoder, distinct: int) -> int:
    """Return the bytes of all weights that a step reads when it visits so many experts."""
    experts = [moe.gate_up.nbytes + moe.down.nbytes for moe in decoder.moe_layers]
    table = 0 if decoder.spec.tie_word_embeddings else decoder.embed.nbytes
    one = experts[0] // decoder.moe_layers[0].num_experts if experts else 0
    return held_bytes(decoder) - sum(experts) - table + distinct * one


def arguments() -> argparse.Namespace:
    """Read the command line."""
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description="Experts of one layer by style.")
    parser.add_argument("--device", default=here)
    parser.add_argument("--model", help="a shipped model; default by device")
    parser.add_argument(
        "--tokens", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64, 512, 2048]
    )
    parser.add_argument("--sequences", nargs="+", type=int, default=[1, 8, 32, 64, 128])
    parser.add_argument("--context", type=int, default=128, help="tokens of each sequence's prompt")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--reference", type=Path, help="a parquet file of published layers")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    args.model = args.model or ("mixtral-8x7b" if args.device == "cuda" else "demo-moe")
    return args


def main() -> None:
    """Measure, and print tables or JSON."""
    args = arguments()
    device = torch.device(args.device)
    bandwidth = copy_bytes_per_s(device, args.repeats)
    rows = measured(layer_of(args.model, device), bandwidth, args) if "layer" in args.parts else []
    chosen, whole = steps(args.model, bandwidth, args) if "step" in args.parts else ("", [])
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    if args.json:
        content = {"device": name, "model": args.model, "copy_bytes_per_s": bandwidth}
        content |= {"rows": [asdict(row) for row in rows], "experts": chosen}
        print(json.dumps(content | {"steps": [asdict(step) for step in whole]}, indent=1))
        return
    print(f"{name}, {args.model}; copies at {bandwidth / 1e9:,.0f} GB/s")
    show_layers(rows)
    show_steps(chosen, whole)


def show_layers(rows: list[Row]) -> None:
    """Print the layer's table: times, and how often the floor and the published time go into it."""
    if rows:
        print(f"\n{'tokens':>6} {'distinct':>8} {'style':>8} {'ms':>9} {'/floor':>7} {'/publ.':>7}")
    for row in rows:
        published = f"{row.ms / row.reference_ms:.2f}" if row.reference_ms else "-"
        print(
            f"{row.tokens:>6} {row.distinct:>8} {row.style:>8} {row.ms:>9.3f}"
            f" {row.ms / row.floor_ms:>7.2f} {published:>7}"
        )


def show_steps(chosen: str, rows: list[Step]) -> None:
    """Print the table of decode steps."""
    if rows:
        print(f"\ndecode steps, experts: {chosen}")
        print(f"{'sequences':>9} {'distinct':>8} {'ms':>9} {'/floor':>7}")
    for row in rows:
        print(f"{row.sequences:>9} {row.distinct:>8} {row.ms:>9.3f} {row.ms / row.floor_ms:>7.2f}")


if __name__ == "__main__":
    main()
