"""How long a reconfiguration takes: one copy of a packed, pinned set, or a copy a tensor.

    python benchmarks/swap.py --model mixtral-8x7b --rounds 7

Replaces the non-expert set of one variant by another's, in turn, in the ways of
`engine.variants.reconfigure`: packed in pinned memory as the engine does it, packed in pageable
memory, and tensor by tensor from pageable memory, as it was published (Imani et al., ICML 2025,
arXiv:2505.06481: about 3 GB in about 1.2 s on an A100 with PCIe 4). Ways are measured in turn, so
that a slow spell of the host touches all alike. Without a GPU sets are copied within host memory,
where nothing is pinned and a copy costs what memory costs.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from statistics import median

import torch

from engine.variants.reconfigure import LooseSets, PackedSets, Sets
from engine.variants.skeleton import meta_weights
from moesim.facts.catalog import load_model
from moesim.units import format_bytes, format_seconds

VARIANTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way: seconds of each swap, and the bytes that it moves."""

    way: str
    set_bytes: int
    tensors: int
    seconds: list[float]

    @property
    def median_s(self) -> float:
        """The middle one of all swaps [s]."""
        return median(self.seconds)


def measured(model: str, rounds: int, device: torch.device) -> list[Row]:
    """Swap back and forth, all ways in every round, after one that is not counted."""
    like = meta_weights(load_model(model))
    ways: dict[str, Sets] = {"packed, pageable": PackedSets(like, VARIANTS, device, pageable=True)}
    if device.type == "cuda":
        ways = {"packed, pinned": PackedSets(like, VARIANTS, device), **ways}
    ways["a copy a tensor, pageable"] = LooseSets(like, VARIANTS, device)
    for sets in ways.values():
        for variant in range(VARIANTS):
            for weight in sets.room(variant).values():
                weight.fill_(variant)  # touches every page
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, sets in ways.items():
            taken_s = sets.load(turn % VARIANTS)
            if turn:
                seconds[way].append(taken_s)
    size = sum(weight.nbytes for weight in like.values())
    return [
        Row(way=way, set_bytes=size, tensors=len(like), seconds=taken)
        for way, taken in seconds.items()
    ]


def main() -> None:
    """Print a table, or JSON with every swap."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mixtral-8x7b", help="a shipped model or a config.json")
    parser.add_argument("--rounds", type=int, default=7, help="swaps of each way")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    rows = measured(given.model, given.rounds, torch.device(given.device))
    if given.json:
        print(json.dumps([asdict(row) | {"median_s": row.median_s} for row in rows], indent=1))
        return
    first = rows[0]
    size = format_bytes(first.set_bytes)
    print(f"{given.model}: {size} in {first.tensors} tensors to {given.device}")
    print(f"{'way':<28} {'median':>9} {'range':>21} {'GB/s':>7} {'ratio':>6}")
    for row in rows:
        low, high = format_seconds(min(row.seconds)), format_seconds(max(row.seconds))
        print(
            f"{row.way:<28} {format_seconds(row.median_s):>9} {f'{low} to {high}':>21} "
            f"{row.set_bytes / row.median_s / 1e9:>7.3g} {row.median_s / first.median_s:>6.3g}"
        )


if __name__ == "__main__":
    main()
