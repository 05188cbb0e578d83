"""What `moesim-engine quality` does: two families trained, measured, and written down.

byte-moe is of Mixtral's shape: four variants, by how much they share. byte-switch is a Switch
Transformer: two, three and four variants that share everything, or half of it.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import torch

from engine.quality.corpus import Domain, domains
from engine.quality.family import raise_family
from engine.quality.plan import Plan
from engine.quality.plot import plot
from engine.quality.results import means, number_curve, ratio_curve, write_curve
from engine.quality.study import Measure, Row, by_number, by_ratio
from engine.variants.distances import Tell
from moesim.errors import EngineError
from moesim.facts.catalog import data_folder
from moesim.facts.models import ModelSpec, read_config
from moesim.files import write_text

Study = Callable[[Measure, Tell], list[Row]]
STUDIES: dict[str, Study] = {"byte-moe": by_ratio, "byte-switch": by_number}
"""By the names of their shipped shapes."""
CURVES = {"byte-moe": ratio_curve, "byte-switch": number_curve}
"""What scenarios read of each."""
TRAINING_SHARE = 0.6
"""Of the time, roughly; the rest is measuring."""
RESULTS = "results.json"


def run(plan: Plan, out: Path, tell: Tell) -> dict[str, Any]:
    """Do the experiment in the folder `out`, going on from the models and rows that are there.

    Raises EngineError where it is done already, where models are there of another plan or host, or
    where a host has too little text.
    """
    if (out / RESULTS).exists():
        raise EngineError(f"{out}: has results already; remove it or choose another --out")
    texts = domains(plan.shares)
    _claim(out, plan, texts)
    found = {}
    for index, name in enumerate(STUDIES):
        rows: list[Row] = []
        for seed in range(plan.seeds):
            part = (index * plan.seeds + seed, len(STUDIES) * plan.seeds)
            rows += _rows(name, plan, seed, texts, out, _part(tell, name, *part))
        found[name] = {"parameters": shape(name).parameters, "means": means(rows), "rows": rows}
    return _write(out, plan, texts, found)


def shape(name: str) -> ModelSpec:
    """Return a shipped shape."""
    return read_config(data_folder() / "models" / f"{name}.json")


def _rows(
    name: str, plan: Plan, seed: int, texts: list[Domain], out: Path, tell: Tell
) -> list[Row]:
    """Train and measure a family, or read what was measured before."""
    folder = out / name / f"seed-{seed}"
    file = folder / "rows.json"
    if file.exists():
        return [Row.from_json(row) for row in json.loads(file.read_text())]
    first = seed * (1 + len(texts))  # each model is trained with a seed of its own
    family = raise_family(
        shape(name), folder, texts, plan.courses, first,
        lambda share, doing: tell(TRAINING_SHARE * share, doing),
    )  # fmt: skip
    rows = STUDIES[name](
        Measure(family=family, window=plan.window, seed=seed),
        lambda share, doing: tell(TRAINING_SHARE + (1 - TRAINING_SHARE) * share, doing),
    )
    write_text(file, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return rows


def _part(tell: Tell, name: str, index: int, parts: int) -> Tell:
    return lambda share, doing: tell((index + share) / parts, f"{name}: {doing}")


def _write(
    out: Path, plan: Plan, texts: list[Domain], found: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Write curves and plot, and last the results, by which a folder is known to be done."""
    for name, family in found.items():
        family["curve"] = CURVES[name](name, family["means"], _source(plan))
        write_curve(out / f"{name}.yaml", family["curve"], plan.command)
    write_text(out / "quality.svg", plot(*(family["means"] for family in found.values())))
    results = {
        "format": "moesim-quality",
        "version": 1,
        "command": plan.command,
        "plan": asdict(plan),
        "python": python_version(),
        "torch": torch.__version__,
        "moesim": version("moesim"),
        "domains": {text.name: {"digest": text.digest} for text in texts},
        "families": {
            name: {**family, "rows": [asdict(row) for row in family["rows"]]}
            for name, family in found.items()
        },
    }
    write_text(out / RESULTS, json.dumps(results, indent=1) + "\n")
    return results


def _source(plan: Plan) -> str:
    return (
        f"this project's engine on a CPU, {plan.command}; torch {torch.__version__}, "
        f"Python {python_version()}; docs/quality.md"
    )


def _claim(out: Path, plan: Plan, texts: list[Domain]) -> None:
    """Note down what the models in a folder are trained by; refuse those of another plan."""
    file = out / "plan.json"
    wanted = json.dumps({**asdict(plan), "texts": [text.digest for text in texts]}, indent=1) + "\n"
    if file.exists() and file.read_text() != wanted:
        raise EngineError(f"{out}: has models of another plan or host; choose another --out")
    if out.is_dir() and not file.exists() and any(out.iterdir()):
        raise EngineError(f"{out}: exists already, with other files; choose another --out")
    write_text(file, wanted)
