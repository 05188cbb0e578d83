"""`moesim-engine gateway`: find clusters of prompts, sort prompts into them, time the sorting."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from engine.gateway.gateway import Gateway
    from engine.gateway.latency import Latency

app = typer.Typer(help="Sort prompts by topic, for expert models to answer.", no_args_is_help=True)

TRAIN_HELP = """Find clusters of prompts and write the gateway that tells them apart.

Prints each cluster's share of the prompts and the words that tell it. Needs the extra `gateway`.

Example:

  moesim-engine gateway train prompts.txt --clusters 4 --out gateway.npz
"""

ROUTE_HELP = """Print the cluster of each text, from 0, the largest in training.

Example:

  moesim-engine gateway route gateway.npz --text "Sort a list in Python"
"""

MEASURE_HELP = """Time the sorting of prompts, and count them by cluster.

Gives what a scenario's expert_router says of its gateway: classify_s and shares.

Example:

  moesim-engine gateway measure gateway.npz prompts.txt --experts code,chat,maths,chat
"""

GatewayFile = Annotated[Path, typer.Argument(help="A gateway, as `train` writes it.")]
TextsFile = Annotated[
    Path, typer.Argument(help="Prompts, one a line; or .jsonl, each line with the key prompt.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def gateway() -> None:
    """Sort prompts by topic, for expert models to answer."""


@app.command(help=TRAIN_HELP)
def train(
    texts: TextsFile,
    clusters: Annotated[int, typer.Option(min=1, help="How many to find.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the SVD and of k-means.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Find clusters."""
    from engine.gateway.file import save_gateway
    from engine.gateway.prompts import read_prompts
    from engine.gateway.training import train as found_in

    found = found_in(read_prompts(texts), clusters, seed)
    save_gateway(found, out)
    if as_json:
        print(json.dumps({"shares": found.shares, "topics": _topics(found)}))
        return
    print(f"{out}: {len(found.vocabulary):,} words in {found.directions.shape[1]} dimensions")
    for cluster, (share, topic) in enumerate(zip(found.shares, _topics(found), strict=True)):
        print(f"cluster {cluster}: {share:6.1%} of the prompts; {', '.join(topic)}")


@app.command(help=ROUTE_HELP)
def route(
    gateway: GatewayFile,
    text: Annotated[list[str], typer.Option(help="A prompt; repeatable.")],
    as_json: AsJson = False,
) -> None:
    """Print clusters."""
    from engine.gateway.file import load_gateway

    clusters = load_gateway(gateway).route_many(text)
    print(json.dumps(clusters) if as_json else "\n".join(map(str, clusters)))


@app.command(help=MEASURE_HELP)
def measure(
    gateway: GatewayFile,
    texts: TextsFile,
    experts: Annotated[
        str, typer.Option(help="Models by cluster, comma separated; cluster-0, ... if not given.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Time the sorting."""
    from engine.gateway.experts import by_cluster, shares_of, unnamed
    from engine.gateway.file import load_gateway
    from engine.gateway.latency import measure as timed
    from engine.gateway.prompts import read_prompts

    opened = load_gateway(gateway)
    names = unnamed(opened.clusters)
    if experts:
        names = by_cluster("--experts", experts, opened.clusters)
    latency = timed(opened, read_prompts(texts))
    shares = shares_of(names, latency.counts)
    if as_json:
        content = {"classify_s": latency.mean_s, "shares": shares, **latency.content()}
        print(json.dumps(content, indent=1))
    else:
        _print_latency(latency, shares)


def _topics(gateway: "Gateway") -> list[list[str]]:
    return [gateway.topic(cluster) for cluster in range(gateway.clusters)]


def _print_latency(latency: "Latency", shares: Mapping[str, int]) -> None:
    """Print a table, and the lines that a scenario wants."""
    print(f"{'characters':>12}{'prompts':>9}{'median us':>11}{'p90 us':>9}")
    for spell in latency.by_length:
        print(
            f"{f'up to {spell.characters}':>12}{spell.prompts:>9}"
            f"{1e6 * spell.median_s:>11.0f}{1e6 * spell.p90_s:>9.0f}"
        )
    print(
        f"{'all':>12}{latency.prompts:>9}{1e6 * latency.median_s:>11.0f}{1e6 * latency.p90_s:>9.0f}"
    )
    print("for a scenario's deployment.gateway:")
    print(f"  classify_s: {latency.mean_s:.3g}")
    print("  shares: {" + ", ".join(f"{name}: {count}" for name, count in shares.items()) + "}")
