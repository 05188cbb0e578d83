"""A table's rows, predicted and judged: what `moesim accuracy` shows."""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from moesim.errors import ScenarioError
from moesim.evidence.accuracy.costs import Costs
from moesim.evidence.accuracy.experiments import Figure, Understood, understood
from moesim.evidence.accuracy.factors import with_factors
from moesim.evidence.accuracy.paces import Fit, fitted_paces, fitted_prompts, paces_of
from moesim.evidence.accuracy.predictions import Paces, Prediction, Told, predicted
from moesim.evidence.accuracy.served import found_on
from moesim.evidence.accuracy.table import Row, read_table
from moesim.scenario import ROOFLINE

FAMILY = re.compile(r"\s*[:#(].*$|@.*$")
"""What of a source's name tells one run, or one version of a file, from another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which rows: those whose fields contain these texts, in any case, and at most so many."""

    gpu: str = ""
    source: str = ""
    model: str = ""
    limit: int | None = None

    def of(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows chosen; ScenarioError where there is none."""
        asked = {name: getattr(self, name).lower() for name in ("gpu", "source", "model")}
        found = [
            row
            for row in rows
            if all(text in getattr(row, name).lower() for name, text in asked.items())
        ]
        if not found:
            said = ", ".join(f"--{name} {text!r}" for name, text in asked.items() if text)
            raise ScenarioError(
                f"no row {f'with {said}' if said else 'in the table'}; give other rows"
            )
        return found[: self.limit]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Every row that could be predicted, and what became of the others.

    `rows` has a row for each figure: the table's own columns, `measured`, `predicted`, `low`,
    `high`, `error`, `inside`, the same by the roofline alone (at the pace that goes with it, where
    paces are found), and with the cross-validated factor (`moesim.evidence.accuracy.factors`).
    `judged` is false where something was fitted on the row, or it is the load that was asked for.
    """

    table: str
    chosen: int
    rows: pd.DataFrame
    figures: tuple[Figure, ...]
    left_out: Counter[str]
    fits: tuple[Fit, ...]
    costs: Costs
    paces: Paces
    profiles: Mapping[str, str]
    elapsed_s: float

    @property
    def judged(self) -> pd.DataFrame:
        """The rows on which nothing was fitted."""
        return self.rows[self.rows["judged"]]

    @property
    def reckoned(self) -> Mapping[str, tuple[str, ...]]:
        """Formats of experts that were reckoned, no kernels of theirs being timed, by device."""
        systems = {figure.experiment.system for figure in self.figures}
        known = {(s.device, s.precision.experts) for s in systems if self.costs.reckoned(s)}
        return {
            device: tuple(sorted(each for its, each in known if its == device))
            for device, _ in known
        }


def accuracy(
    path: Path, choice: Choice, *, profile: str | None = None, told: Told | None = None
) -> Accuracy:
    """Predict the rows of a table and judge the predictions.

    `profile` is used for all devices; not given, each has its own shipped one, or its roofline.
    """
    started = time.perf_counter()
    told = told or _silent
    chosen = choice.of(read_table(path))
    known = _once(understood(chosen))
    costs, rooflines = Costs(profile), Costs(ROOFLINE)
    told(0.0, "finding paces")
    prompts = fitted_prompts(known.figures, costs)
    fits = fitted_paces(known.figures, costs, prompts)
    paces = paces_of(fits)
    own = predicted(known.figures, costs, paces=paces, told=_part(told, 0), what="simulating")
    used = {figure: _profile(figure, costs, paces) for figure in own.predictions}
    named = {(figure.experiment.system.device, name) for figure, name in used.items()}
    profiles = dict(sorted(named))
    plain = own
    if set(profiles.values()) - {ROOFLINE}:
        plain = predicted(
            tuple(own.predictions),
            rooflines,
            paces=paces_of(fitted_paces(known.figures, rooflines, prompts)),
            told=_part(told, 1),
            what="rooflines",
            draws=1,
        )
    told(1.0, "done")
    on = {figure for fit in fits for figure in fit.figures}
    table = pd.DataFrame(
        [
            _row(
                figure,
                found,
                plain.predictions.get(figure),
                used[figure],
                figure not in on and not is_seen(figure) and not is_load(figure),
            )
            for figure, found in own.predictions.items()
        ],
        columns=COLUMNS,
    ).astype({"scales": bool, "judged": bool})
    return Accuracy(
        table=path.name,
        chosen=len(chosen),
        rows=_judged(table),
        figures=tuple(own.predictions),
        left_out=known.left_out + own.left_out,
        fits=fits,
        costs=costs,
        paces=paces,
        profiles=profiles,
        elapsed_s=time.perf_counter() - started,
    )


def _once(known: Understood) -> Understood:
    """Return what is understood, each figure that a source gives twice once.

    MLPerf's entries are different machines, whatever their figures.
    """
    seen: dict[object, Figure] = {}
    for figure in known.figures:
        row, paced = figure.row, figure.experiment.workload.paced
        given = (family_of(row.source), row.software, figure.metric, row.value, figure.replicas)
        seen.setdefault((figure if paced else figure.experiment, given), figure)
    twice = len(known.figures) - len(seen)
    left_out = known.left_out + Counter({"given twice by one source": twice})
    return Understood(figures=tuple(seen.values()), left_out=left_out)


def family_of(source: str) -> str:
    """Return what the rows of one source have in common.

    >>> family_of("argonne-lcf/LLM-Inference-Bench@4211f5d:Plots/All_results.csv")
    'argonne-lcf/LLM-Inference-Bench'
    """
    return FAMILY.sub("", source) or source


COLUMNS = (
    "line", "source", "family", "model", "gpu", "device", "profile", "n_gpus", "tp", "ep",
    "precision", "isl", "osl", "load", "scenario", "metric", "kind", "figure", "software",
    "note", "version", "measured",
    "bare", "predicted", "low", "high", "roofline", "roofline_low", "roofline_high", "scales",
    "judged",
)  # fmt: skip
"""What is known of a row before it is judged."""


FIGURES = MappingProxyType(
    {"ttft_s": "TTFT", "tpot_s": "TPOT", "turnaround_s": "latency", "span_s": "latency"}
)
"""What kinds of figures are called, where not by their metric's kind."""


def _row(
    figure: Figure,
    found: Prediction,
    plain: Prediction | None,
    profile: str,
    judged: bool,
) -> dict[str, Any]:
    row, workload = figure.row, figure.experiment.workload
    device = figure.experiment.system.device
    own = {
        name: getattr(row, name)
        for name in (
            "line", "source", "model", "gpu", "n_gpus", "tp", "ep", "precision", "isl", "osl",
            "load", "scenario", "metric", "software", "note",
        )
    }  # fmt: skip
    return {
        **own,
        "family": family_of(row.source),
        "device": device,
        "profile": profile,
        "kind": figure.metric.kind,
        "figure": FIGURES.get(figure.metric.of, figure.metric.kind),
        "version": row.software.split(",")[0],
        "measured": row.value,
        "bare": found.bare,
        "predicted": found.value,
        "low": found.low,
        "high": found.high,
        "roofline": plain.value if plain else float("nan"),
        "roofline_low": plain.low if plain else float("nan"),
        "roofline_high": plain.high if plain else float("nan"),
        "scales": not workload.timed and not workload.paced,
        "judged": judged,
    }


def _profile(figure: Figure, costs: Costs, paces: Paces) -> str:
    """Return the profile that a row is predicted by: its device's, or that of its nearest kin."""
    device = figure.experiment.system.device
    settings = paces.get(figure)
    return costs.profile_of(settings.likeliest.kernels if settings else device)


def is_seen(figure: Figure) -> bool:
    """Say whether something was found, or chosen, with a row in sight.

    Of L40S and of A100 over PCIe the all-reduces of four and eight devices were chosen between two
    tables by published rows.
    """
    system = figure.experiment.system
    many = system.part.devices >= 4
    return found_on(figure.row) or (many and system.device in ("l40s-48gb", "a100-pcie-80gb"))


def is_load(figure: Figure) -> bool:
    """Say whether a figure is the load itself: MLPerf's servers have the rate that was sent."""
    workload = figure.experiment.workload
    return workload.paced and workload.timed and figure.metric.kind == "rate"


def _judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Add errors, and whether intervals hold what was measured."""
    rows = with_factors(rows)
    measured = rows["measured"]
    return rows.assign(
        error=rows["predicted"] / measured - 1,
        inside=measured.between(rows["low"], rows["high"]),
        roofline_error=rows["roofline"] / measured - 1,
        roofline_inside=measured.between(rows["roofline_low"], rows["roofline_high"]),
        fitted_error=rows["fitted"] / measured - 1,
        fitted_inside=measured.between(rows["fitted_low"], rows["fitted_high"]),
    )


def _part(told: Told, half: int) -> Callable[[float, str], None]:
    return lambda done, what: told((half + done) / 2, what)


def _silent(done: float, what: str) -> None:
    """Report nothing."""
