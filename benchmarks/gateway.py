"""What a gateway takes of a request's time: trained and timed on this host's documentation.

    python benchmarks/gateway.py --lines 4000 --clusters 8

Prompts are paragraphs of what the installed packages say of themselves; a gateway is trained on
them and classifies prompts of several lengths, joined from paragraphs it was not trained on. Beside
that stands the shortest a request can take here: the small model that ships (`demo-moe`, random
weights) on the CPU, a byte a token, nobody else served. Prints a table, or JSON with --json. Exit
code 1 if the gateway takes 1 % of such a request or more, the bound of Expert Router
(arXiv 2404.15153: "minimal"), or if the file does not route as the gateway it was written from.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from itertools import islice
from pathlib import Path

from engine.gateway.file import load_gateway, save_gateway
from engine.gateway.gateway import Gateway
from engine.gateway.latency import measure
from engine.gateway.training import train
from engine.model.loading import random_model
from engine.model.model import Model
from engine.serve.generate import generate
from moesim.facts.catalog import load_model

LENGTHS = (64, 256, 768, 4096, 16_384, 65_536)
"""Characters of a prompt; the model takes up to 1,024 tokens of prompt and answer."""
OF_EACH = 50
LEAST_CHARACTERS = 40
"""What is shorter is seldom a sentence."""
BOUND = 0.01
ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Prompts of one length; `share` is the gateway's part of a request's time."""

    characters: int
    median_us: float
    p90_us: float
    request_ms: float | None
    share: float | None


def main() -> int:
    """Print what was measured; 1 if a check failed."""
    arguments = _parser().parse_args()
    paragraphs = list(islice(_paragraphs(), 2 * arguments.lines))
    known, unknown = paragraphs[::2], paragraphs[1::2]
    begin = time.perf_counter()
    gateway = train(known, arguments.clusters, seed=0)
    train_s = time.perf_counter() - begin
    alike, size = _through_a_file(gateway, unknown)
    model = random_model(load_model("demo-moe"), seed=0)
    rows = [_row(gateway, model, unknown, length, arguments.output_tokens) for length in LENGTHS]
    content = {
        "lines": len(known),
        "words": len(gateway.vocabulary),
        "train_s": round(train_s, 1),
        "file_mb": round(size / 1e6, 1),
        "shares": [round(share, 3) for share in gateway.shares],
        "output_tokens": arguments.output_tokens,
        "rows": [asdict(row) for row in rows],
    }
    if arguments.json:
        print(json.dumps(content, indent=1))
    else:
        _print(content, rows)
    worst = max(row.share for row in rows if row.share is not None)
    return 0 if alike and worst < BOUND else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=4000, help="paragraphs to train on")
    parser.add_argument("--clusters", type=int, default=8)
    parser.add_argument("--output-tokens", type=int, default=64, help="of the requests beside")
    parser.add_argument("--json", action="store_true")
    return parser


def _paragraphs() -> Iterator[str]:
    """Yield the paragraphs of the installed packages' texts, each once, always in one order."""
    seen: set[str] = set()
    for path in sorted(set(_texts())):
        for paragraph in path.read_text(errors="replace").split("\n\n"):
            line = " ".join(paragraph.split())
            if len(line) >= LEAST_CHARACTERS and line not in seen:
                seen.add(line)
                yield line


def _texts() -> Iterator[Path]:
    for distribution in distributions():
        for file in distribution.files or ():
            if file.name == "METADATA" or file.suffix in {".md", ".rst"}:
                path = Path(str(distribution.locate_file(file)))
                if path.is_file():
                    yield path


def _through_a_file(gateway: Gateway, texts: list[str]) -> tuple[bool, int]:
    """Say whether a gateway routes the same from its file, and how large that is [bytes]."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gateway.npz"
        save_gateway(gateway, path)
        return load_gateway(path).route_many(texts) == gateway.route_many(
            texts
        ), path.stat().st_size


def _row(
    gateway: Gateway, model: Model, texts: list[str], characters: int, output_tokens: int
) -> Row:
    joined = " ".join(texts)
    starts = (number * (len(joined) - characters) // OF_EACH for number in range(OF_EACH))
    latency = measure(gateway, [joined[start : start + characters] for start in starts])
    request_s = None
    if characters + output_tokens <= model.spec.max_position_embeddings:
        request_s = _request_s(model, joined[:characters], output_tokens)
    return Row(
        characters=characters,
        median_us=1e6 * latency.median_s,
        p90_us=1e6 * latency.p90_s,
        request_ms=None if request_s is None else 1e3 * request_s,
        share=None if request_s is None else latency.median_s / request_s,
    )


def _request_s(model: Model, text: str, output_tokens: int) -> float:
    """Return what one request takes when nobody else is served [s]."""
    prompt = list(text.encode()[: len(text)])
    seconds = []
    for _ in range(ROUNDS + 1):
        begin = time.perf_counter()
        generate(model, [prompt], output_tokens=output_tokens)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def _print(content: dict[str, object], rows: list[Row]) -> None:
    print({key: value for key, value in content.items() if key != "rows"})
    print(f"{'characters':>10}{'median us':>11}{'p90 us':>9}{'request ms':>12}{'share':>9}")
    for row in rows:
        beside = f"{'':>12}{'':>9}"
        if row.request_ms is not None and row.share is not None:
            beside = f"{row.request_ms:>12.0f}{row.share:>9.3%}"
        print(f"{row.characters:>10}{row.median_us:>11.0f}{row.p90_us:>9.0f}{beside}")


if __name__ == "__main__":
    sys.exit(main())
