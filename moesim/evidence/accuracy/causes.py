"""Why a row may be off: what its simulated figure hangs on, found by changing one thing at a time.

A figure's elasticity to a part is by how many percent it moves where the part is a percent slower,
or the KV cache a percent smaller. Of what can be wrong, the part with the greatest is the first
suspect. Beside it stands by how much that part alone would have to be off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log

from moesim.evidence.accuracy.costs import Costs, Slower
from moesim.evidence.accuracy.course import Course, of_course, simulated
from moesim.evidence.accuracy.experiments import Figure
from moesim.evidence.accuracy.paces import Settings, costs_with, with_prompts
from moesim.evidence.accuracy.predictions import settings_of
from moesim.evidence.accuracy.workloads import Workload

STEP = 1.1
"""By which factor each thing is changed."""

PARTS: Mapping[str, Slower] = {
    "layers (weights read, arithmetic, collectives)": Slower(layers=STEP),
    "decode attention": Slower(decode_attention=STEP),
    "prefill attention": Slower(prefill_attention=STEP),
    "head, sampling, host": Slower(sequences=STEP),
}
"""What may be slower than the profile says."""

MEMORY = "KV memory"
"""What else may be less than is reckoned."""

FARTHEST = 10.0
"""Factors beyond this explain nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What a figure hangs on, and the first suspect."""

    suspect: str
    elasticities: Mapping[str, float]
    """By part: relative change of the figure over that of the part; of memory taken away."""
    by: float
    """The factor on the suspect alone with which the prediction would be right; NaN if none is."""
    batch: str
    """What kept the batch from being larger."""

    def __str__(self) -> str:
        by = f", would explain it if x{self.by:.2f}" if self.by == self.by else ""
        moves = abs(self.elasticities[self.suspect])
        return f"{self.suspect} (moves the figure {moves:.2f} % per %{by}); {self.batch}"


def cause_of(
    figure: Figure, predicted: float, costs: Costs, settings: Settings | None = None
) -> Cause:
    """Return what a figure hangs on, near the likeliest settings that it is predicted with.

    Where requests come by a clock an engine with another pace has another batch.
    """
    setting = (settings or settings_of(figure, costs)).likeliest
    costs = costs_with(setting, costs)
    experiment = with_prompts(figure.experiment, setting.prompt_tokens)

    def after(slower: Slower, memory: float) -> Course:
        return simulated(
            experiment,
            costs,
            slower=slower.times(setting.pace),
            memory=memory * setting.memory,
        )

    course = after(Slower(), 1.0)
    before = of_course(figure, course)
    changed = {name: of_course(figure, after(slower, 1.0)) for name, slower in PARTS.items()}
    if not experiment.workload.together:
        changed[MEMORY] = of_course(figure, after(Slower(), 1 / STEP))
    moves = {name: log(value / before) / log(STEP) for name, value in changed.items()}
    suspect = max(moves, key=lambda name: abs(moves[name]))
    return Cause(
        suspect=suspect,
        elasticities=moves,
        by=_explaining(log(figure.row.value / predicted), moves[suspect]),
        batch=limit_of(course, experiment.workload),
    )


def limit_of(course: Course, workload: Workload) -> str:
    """Say what kept the batch of a course from being larger."""
    usage, limits = course.usage, course.limits
    peak = f"{usage.peak_running:,} at once"
    if usage.peak_running >= len(course.records):
        return f"all {usage.peak_running:,} requests at once"
    if workload.users is not None and usage.peak_running >= workload.users:
        return f"all {usage.peak_running:,} users at once"
    if course.full:
        return f"KV cache full with {peak}"
    if usage.peak_running >= limits.max_num_seqs:
        return f"{peak}, the engine's limit"
    return f"{peak}, {course.rounds:.1f} times over"


def _explaining(error: float, moves: float) -> float:
    """Return the factor on a part that makes up for an error; NaN where none could."""
    if not moves or abs(error / moves) > log(FARTHEST):
        return float("nan")
    return exp(error / moves)
