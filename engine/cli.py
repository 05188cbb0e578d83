"""The command `moesim-engine`: make checkpoints, generate from them, serve them."""

import sys

try:
    import json
    from pathlib import Path
    from typing import Annotated

    import typer

    from engine.gateway.command import app as gateway_app
    from moesim import commands
    from moesim.serving.policies import POLICIES
    from moesim.serving.queues import ORDERS
    from moesim.serving.turns import POLICIES as TURNS
except KeyboardInterrupt:  # before there is anything that could end it in order
    print("interrupted", file=sys.stderr)
    raise SystemExit(130) from None

app = commands.application("A mixture-of-experts inference engine in PyTorch, on CUDA or CPU.")
app.add_typer(gateway_app, name="gateway")

MAKE_HELP = """Make a checkpoint with random weights, in Hugging Face's layout.

Example:

  moesim-engine make --model demo-moe --out checkpoint/
"""

GENERATE_HELP = """Generate tokens from prompts given as token ids, batched.

Example:

  moesim-engine generate --model checkpoint/ --prompt 1,2,3 --prompt 9,8 --output-tokens 8
"""

SERVE_HELP = """Serve checkpoints over HTTP, as OpenAI's API has it.

Scheduling is set as in a scenario: docs/scheduling.md says what each policy, order and way of
preemption does. A request's tenant is its `user`.

Examples:

  moesim-engine serve --model tiny=checkpoint/ --port 8000

  moesim-engine serve --model tiny=checkpoint/ --policy no_evict --max-num-seqs 32

  moesim-engine serve --model tiny=checkpoint/ --order fair --weight chat=3 --weight reports=1

  moesim-engine serve --model tiny=checkpoint/ --preemption swap --swap-gib 2

  moesim-engine serve --variants base=base/,chat=chat/ --layout layout.json --resident 0.5

  moesim-engine serve --model code=a/ --model chat=b/ --gateway g.npz --experts-of router=chat,code
"""

EXPERTS_HELP = "Style of the experts: auto, loop, dense, grouped or triton."
PRECISION_HELP = "Format of the weights: bf16, fp8, int8, int4 or its own."
REST_HELP = "Format of all weights but the experts."
CONSOLIDATE_HELP = """Find the experts that variants of one model can share, and write a layout.

Compares the experts at each position, most similar first, and divides the first of them, as many as
the ratio says, among the variants in turn. Checkpoints may be larger than memory.

Examples:

  moesim-engine consolidate base/ chat/ --ratio 0.75 --out layout.json

  moesim-engine consolidate base=mixtral/ chat=mixtral-instruct/ --ratio 0.5 --out layout.json
"""

QUALITY_HELP = """Train small models here, and measure what sharing their experts costs in quality.

A seed takes minutes on two cores. Nothing is downloaded: the texts are those that come with Python
and torch. Writes results.json, a curve for scenarios of each family, and a plot. Interrupted, the
same command goes on from the models that are there. docs/quality.md says what is measured.

Examples:

  moesim-engine quality --out quality/

  moesim-engine quality --out quality/ --seeds 3

  moesim-engine quality --out quick/ --steps 20 --fine-steps 10
"""

MOST_SEED = 2**63 - 1
"""The largest that torch takes with and without a sign."""

RANKS_HELP = "GPUs that share the model, each with a process; without a GPU, processes alone."


@app.command(help=MAKE_HELP)
def make(
    model: Annotated[str, typer.Option(help="A shipped model or a config.json.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the weights.")] = 0,
) -> None:
    """Make a checkpoint."""
    import torch
    from safetensors import SafetensorError

    from engine.model.loading import random_model, save_model
    from moesim.errors import EngineError
    from moesim.facts.catalog import load_model
    from moesim.units import format_bytes

    if out.exists():
        raise EngineError(f"{out}: exists already; remove it or choose another --out")
    spec = load_model(model)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_model(random_model(spec, seed=seed, device=torch.device("cpu")), out)
    except (OSError, SafetensorError) as wrong:
        raise EngineError(f"--out {out}: cannot be written ({wrong}); choose another") from None
    print(f"{out}: {spec.parameters:,} parameters, {format_bytes(spec.weight_bytes)}")


@app.command(help=GENERATE_HELP)
def generate(
    model: Annotated[Path, typer.Option(help="A checkpoint folder.")],
    prompt: Annotated[list[str], typer.Option(help="Token ids, comma separated; repeatable.")],
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 16,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of probability to draw from.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the sampling.")] = 0,
    experts: Annotated[str, typer.Option(help=EXPERTS_HELP)] = "auto",
    precision: Annotated[str | None, typer.Option(help=PRECISION_HELP)] = None,
    rest_precision: Annotated[str | None, typer.Option(help=REST_HELP)] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help=RANKS_HELP)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Generate tokens."""
    import torch

    from engine.model.loading import load_model, told_precision
    from engine.serve.generate import generate as generate_batch
    from engine.serve.lead import led
    from engine.serve.sampling import Sampling

    prompts = [_token_ids(text) for text in prompt]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    told = told_precision(model, precision, rest_precision)
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    with led(tensor_parallel, model) as leader:
        answers = generate_batch(
            leader.load(model, precision=told)
            if leader
            else load_model(model, device, precision=told),
            prompts,
            output_tokens=output_tokens,
            sampling=sampling,
            experts=experts,
        )
    if as_json:
        print(json.dumps(answers))
    else:
        for answer in answers:
            print(",".join(map(str, answer)))


@app.command(help=SERVE_HELP)
def serve(
    model: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of a checkpoint; repeatable.")
    ] = None,
    variants: Annotated[
        str | None, typer.Option(help="NAME=FOLDER,... of variants that share one device.")
    ] = None,
    layout: Annotated[
        Path | None, typer.Option(help="Which experts variants share: a layout file.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of them, in place of the layout's.")
    ] = None,
    resident: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the variants' experts on the device.")
    ] = 1.0,
    expert_cache: Annotated[
        str, typer.Option(help="Which experts stay there: pinned, lru or lru-by-layer.")
    ] = "pinned",
    prefetch: Annotated[
        bool, typer.Option("--prefetch", help="Ask the next layer's router for experts ahead.")
    ] = False,
    non_expert_sets: Annotated[
        str, typer.Option(help="Variants whose other layers are on the device: one or all.")
    ] = "one",
    swap: Annotated[
        str, typer.Option(help="How the one is replaced by another: packed, ahead or loose.")
    ] = "packed",
    whole_models: Annotated[
        bool, typer.Option("--whole-models", help="Share nothing, swap experts and all.")
    ] = False,
    pageable: Annotated[
        bool, typer.Option("--pageable", help="Leave the host memory of absent weights unpinned.")
    ] = False,
    turns: Annotated[
        str, typer.Option(help=f"Which variant is next: {', '.join(TURNS)}.")
    ] = "fcfs",
    quantum_s: Annotated[
        float, typer.Option(min=0.001, help="Seconds of a turn, with --turns quantum.")
    ] = 1.0,
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
    policy: Annotated[
        str, typer.Option(help=f"How batches are put together: {', '.join(POLICIES)}.")
    ] = "chunked_prefill",
    order: Annotated[str, typer.Option(help=f"Who is next: {', '.join(ORDERS)}.")] = "fcfs",
    priority: Annotated[
        list[str] | None, typer.Option(help="TENANT=N, lowest first; repeatable; default 0.")
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="TENANT=SHARE of service; repeatable; default 1.")
    ] = None,
    preemption: Annotated[
        str, typer.Option(help="When KV blocks run out: recompute, or swap to host memory.")
    ] = "recompute",
    swap_gib: Annotated[
        float, typer.Option(min=0, help="GiB of host memory, a model, for swapped blocks.")
    ] = 4.0,
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching", help="Share blocks of prompts that begin alike.")
    ] = False,
    experts: Annotated[str, typer.Option(help=EXPERTS_HELP)] = "auto",
    graphs: Annotated[
        bool, typer.Option("--graphs/--no-graphs", help="Run decodes as CUDA graphs on a GPU.")
    ] = True,
    precision: Annotated[str | None, typer.Option(help=PRECISION_HELP)] = None,
    rest_precision: Annotated[str | None, typer.Option(help=REST_HELP)] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help=RANKS_HELP)] = 1,
    max_queue: Annotated[int, typer.Option(min=0, help="Prompts that may wait, a model.")] = 1024,
    max_body_mib: Annotated[float, typer.Option(min=0.001, help="MiB of a request's body.")] = 4,
    drain_s: Annotated[float, typer.Option(min=0, help="Seconds to finish at SIGTERM.")] = 30,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MOST_SEED, help="Seed of requests without one; default none."),
    ] = None,
    records: Annotated[
        Path | None, typer.Option(help="Write a row a request here at the end (.parquet, .csv).")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace records that are there.")
    ] = False,
    gateway: Annotated[
        Path | None, typer.Option(help="Sorts prompts by topic; of `gateway train`.")
    ] = None,
    experts_of: Annotated[
        str, typer.Option(help="NAME=MODEL,... what clients ask, and the models by cluster.")
    ] = "",
) -> None:
    """Serve over HTTP."""
    _require_server()
    from engine.server.command import Setting, body_bytes, named, serve
    from engine.server.hosting import Hosting
    from engine.server.scheduling import Scheduling, by_tenant
    from engine.server.scheduling import weight as share
    from engine.server.service import Bounds
    from engine.variants.family import Sharing
    from engine.variants.hosting import Together, together_or_none
    from engine.variants.serving import Turns
    from engine.variants.store import Residency

    hosting = Hosting(
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        block_size=block_size,
        scheduling=Scheduling(
            policy=policy,
            order=order,
            preemption=preemption,
            swap_gib=swap_gib,
            priorities=by_tenant("--priority", priority or (), int),
            weights=by_tenant("--weight", weight or (), share),
        ),
        prefix_caching=prefix_caching,
        experts=experts,
        graphs=graphs,
        precision=precision,
        rest_precision=rest_precision,
        seed=seed,
        tensor_parallel=tensor_parallel,
    )
    together = Together(
        folders=named(variants.split(","), "--variants") if variants else {},
        sharing=Sharing(
            residency=Residency(
                resident=resident, cache=expert_cache, prefetch=prefetch, pageable=pageable
            ),
            non_expert_sets=non_expert_sets,
            swap=swap,
            whole_models=whole_models,
        ),
        turns=Turns(policy=turns, quantum_s=quantum_s),
        layout=layout,
        ratio=ratio,
    )
    serve(
        Setting(
            models=model or [],
            together=together_or_none(together),
            hosting=hosting,
            bounds=Bounds(body_bytes=body_bytes(max_body_mib), queue=max_queue),
            host=host,
            port=port,
            api_key=api_key,
            drain_s=drain_s,
            records=records,
            overwrite=overwrite,
            gateway=gateway,
            experts_of=experts_of,
        )
    )


@app.command(help=CONSOLIDATE_HELP)
def consolidate(
    variants: Annotated[list[str], typer.Argument(help="FOLDER or NAME=FOLDER, two or more.")],
    ratio: Annotated[float, typer.Option(help="Share of the positions that one copy serves.")],
    out: Annotated[Path, typer.Option(help="The layout file to write.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a layout."""
    from engine.variants.command import named, sentence, summary, write_consolidation

    with commands.progress_bar(40) as tell:
        layout = write_consolidation(named(variants), ratio, out, tell)
    if as_json:
        print(json.dumps({"layout": str(out), **summary(layout)}, indent=1))
    else:
        print(f"{out}: {sentence(layout)}")


@app.command(help=QUALITY_HELP)
def quality(
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    steps: Annotated[int, typer.Option(min=1, help="Training steps of a base.")] = 400,
    fine_steps: Annotated[int, typer.Option(min=1, help="Training steps of a variant.")] = 100,
    training_kib: Annotated[
        int, typer.Option(min=1, help="Text a domain to learn from [KiB].")
    ] = 128,
    seeds: Annotated[int, typer.Option(min=1, help="Families of each kind to average over.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the means as JSON.")] = False,
) -> None:
    """Do the quality experiment."""
    from engine.quality.command import run
    from engine.quality.plan import Plan
    from engine.quality.table import table

    plan = Plan(steps=steps, fine_steps=fine_steps, training_kib=training_kib, seeds=seeds)
    with commands.progress_bar(40) as tell:
        families = run(plan, out, tell)["families"]
    if as_json:
        print(json.dumps({name: family["means"] for name, family in families.items()}, indent=1))
        return
    for name, family in families.items():
        print(f"{out / name}.yaml: {family['parameters']:,} parameters")
        print(table(family["means"]))


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
    try:
        app()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
