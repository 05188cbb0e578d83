"""A layer's experts on one rank: over visits and the experts they hit.

The tables vary tokens, seldom the experts hit. Of D of a rank's E experts, visited v times in all,
each gets as many visits as if all E were visited v E / D times, and D / E of them are there:

    seconds(v, D) = launch + share(D) x (full(v E / D) - launch)

`full` is the measured duration with all experts hit, level where it is bound by memory. `share`
rises from 0 to 1; it is measured where few balanced tokens hit few experts (one token hits top-k
of them), and a line in between. `launch` is where the line through the two fewest experts starts.
Where weights are what takes the time, this is the time to read D experts; where arithmetic is, it
is the time of v visits, however many experts they fall on.

Where all rows are of skewed visits, the durations are taken down by what balanced visits take less
elsewhere (`LESS_BALANCED`). Where another framework has balanced ones on the same device, the
faster of the two counts: an engine that was tuned takes the kernels that suit the device.

Of a group with dealt experts the most loaded rank counts (`moesim.cost.imbalance`). Where a table
has that rank only with skewed visits, which rank it was is not known; its curve is then drawn from
a rank with all experts, cut as fine, by the same law. What the law leaves out are the tokens whose
visits fall elsewhere: each rank passes over all tokens, reads them and writes their sums, however
few of them its own experts are for.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, log
from typing import NamedTuple

import numpy as np

from moesim.cost.expected import Rates
from moesim.cost.kernels.cleaning import kept, levelled
from moesim.cost.kernels.curves import MICRO, Floats, LogCurve
from moesim.cost.kernels.elementwise import PASS_SHARE, VALUE_BYTES
from moesim.cost.kernels.tables import Moe
from moesim.errors import ProfileError
from moesim.facts.precision import FORMATS

LEAST_S = 1e-9
"""What reading experts takes at least, so that it has a logarithm [s]."""

BALANCED = "balanced"
"""Visits fall on all experts alike."""

BORROWED = "balanced, of "
"""How balanced visits begin that another framework's kernels served."""

LESS_BALANCED = LogCurve.through(
    (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
    (0.99, 0.96, 0.94, 0.93, 0.85, 0.84, 0.88, 0.94, 0.97, 0.98),
)
"""Over the mean visits of an expert: the duration with balanced visits over that with visits skewed
by a power law (exponents 1.01 and 1.2, the faster). Half-way between the medians of two tables of
AIConfigurator: SGLang 0.5.10 on A100 (the same device, other kernels), TensorRT-LLM 1.3.0rc20 on
H100 and H200 (the like kernels, other devices); Mixtral 8x7B and 8x22B, bf16, 1 to 8 ranks."""


class Layer(NamedTuple):
    """The shape of a layer with experts."""

    hidden: int
    inner: int
    experts: int
    top_k: int


class Cut(NamedTuple):
    """How the layer is cut over ranks."""

    tensor_parallel: int
    expert_parallel: int


@dataclass(frozen=True, slots=True)
class Rank:
    """The experts of one rank, by visits and experts hit."""

    experts: float
    """Experts of the rank."""
    full: LogCurve
    """Duration over visits, all experts hit, but for launching [s]."""
    launch_s: float
    """What the layer takes before any expert is read [s]."""
    hits: Floats
    """Numbers of hit experts, from 0 to all."""
    shares: Floats
    """Share of the duration, but for launching, that they take."""
    most: float
    """Visits of the last point; beyond, the duration goes with them."""

    def seconds(self, visits: float, distinct: float) -> float:
        """Return the duration with so many visits, on so many experts of the rank [s]."""
        hit = min(self.experts, max(1e-3, distinct))
        alike = max(visits, 1e-9) * self.experts / hit
        full = float(self.full(np.array([alike]))[0]) * max(1.0, alike / self.most)
        return self.launch_s + full * float(np.interp(hit, self.hits, self.shares))


@dataclass(frozen=True, slots=True)
class Grid:
    """Experts measured over tokens and hit experts, both."""

    rows: dict[int, LogCurve]
    """By experts hit: the duration over visits."""

    def seconds(self, visits: float, distinct: float) -> float:
        """Return the duration, on a line between the numbers of experts measured [s]."""
        known = sorted(self.rows)
        values = [float(self.rows[d](np.array([max(visits, 1e-9)]))[0]) for d in known]
        rising = np.maximum.accumulate(values)
        if distinct < known[0]:
            return float(rising[0] * max(0.0, distinct) / known[0])
        return float(np.interp(distinct, known, rising))

    @property
    def most(self) -> float:
        """Visits of the last point."""
        return float(np.exp(max(curve.log_xs[-1] for curve in self.rows.values())))


@dataclass(frozen=True, slots=True)
class Found:
    """What a rank's experts take, and what that rests on."""

    seconds: Callable[[float, float], float]
    """Over visits and experts hit [s]."""
    basis: str
    """Within the table."""
    most: float
    """Visits of the table's last point."""
    elsewhere_s: float = 0.0
    """What each token takes beside whose visits fall on other ranks' experts [s]."""

    def basis_at(self, visits: float) -> str:
        """Say what answers up to so many visits rest on."""
        return "extrapolated" if visits > self.most * (1 + 1e-9) else self.basis


class Moes:
    """All layers of experts of a device."""

    def __init__(self, curves: Iterable[Moe], rates: Rates) -> None:
        self._rates = rates
        self._by: dict[str, dict[tuple[Layer, Cut], list[Moe]]] = {}
        for curve in curves:
            layer = Layer(curve.hidden, curve.inner, curve.experts, curve.top_k)
            cut = Cut(curve.tensor_parallel, curve.expert_parallel)
            self._by.setdefault(curve.format, defaultdict(list))[layer, cut].append(curve)

    def rank(self, number_format: str, layer: Layer, cut: Cut) -> Found:
        """Return the duration of a rank over its visits and experts hit, and what it rests on.

        Raises ProfileError where no experts in the format were measured.
        """
        known = self._by.get(number_format)
        if not known:
            raise ProfileError(
                f"precision: no experts in {number_format} in these kernels, which have "
                f"{', '.join(self._by) or 'none'}; take one of those, or `profile: roofline`"
            )
        alone = cut._replace(expert_parallel=1)
        if (layer, cut) in known and (cut == alone or _balanced(known[layer, cut])):
            return _found(drawn(known[layer, cut]))
        beside_s = 0.0 if cut == alone else elsewhere_s(layer.hidden, self._rates)
        if (layer, alone) in known:
            return replace(_found(drawn(known[layer, alone])), elsewhere_s=beside_s)
        scaled = self._scaled(known, number_format, layer, cut)
        return Found(scaled, "extrapolated", inf, beside_s)

    def _scaled(
        self,
        known: dict[tuple[Layer, Cut], list[Moe]],
        number_format: str,
        layer: Layer,
        cut: Cut,
    ) -> Callable[[float, float], float]:
        """Scale the nearest measured layer, one expert of the rank after the other."""
        per_expert = log(layer.hidden * layer.inner / cut.tensor_parallel)
        whole = [key for key in known if key[1].expert_parallel == 1]
        if not whole:
            raise ProfileError(
                "kernels.moe: only layers whose experts are dealt to ranks; import tables that "
                "have expert_parallel 1, or take `profile: roofline`"
            )
        near = min(
            whole,
            key=lambda key: abs(
                log(key[0].hidden * key[0].inner / key[1].tensor_parallel) - per_expert
            ),
        )
        other = drawn(known[near]).seconds
        wanted = self._roofline(number_format, layer, cut)
        measured = self._roofline(number_format, *near)

        def seconds(visits: float, distinct: float) -> float:
            hit = min(distinct, near[0].experts)
            alike = visits * hit / max(distinct, 1e-9)
            return other(alike, hit) * wanted(visits, distinct) / measured(alike, hit)

        return seconds

    def _roofline(
        self, number_format: str, layer: Layer, cut: Cut
    ) -> Callable[[float, float], float]:
        parameters = 3 * layer.hidden * layer.inner // cut.tensor_parallel
        flop_per_s = self._rates.arithmetic(number_format, 1.0, 1.0)
        moved = FORMATS[number_format].bytes_of(parameters)

        def seconds(visits: float, distinct: float) -> float:
            flop = 2.0 * parameters * visits
            return max(flop / flop_per_s, moved * distinct / self._rates.bytes_per_s)

        return seconds


def elsewhere_s(hidden: int, rates: Rates) -> float:
    """Return what a rank takes to read a token and to write its sum, neither of which it uses [s].

    Both are passes over the layer's width.
    """
    return 2 * hidden * VALUE_BYTES / (rates.bytes_per_s * PASS_SHARE)


def _found(measured: Rank | Grid) -> Found:
    return Found(measured.seconds, "interpolated", measured.most)


def _balanced(curves: Sequence[Moe]) -> bool:
    return any(c.distribution == BALANCED or c.distinct is not None for c in curves)


def drawn(curves: Sequence[Moe]) -> Rank | Grid:
    """Draw the curves of one layer and cut: balanced ones where there are any."""
    counted = [curve for curve in curves if curve.distinct is not None]
    if counted:
        return _grid(counted)
    balanced = [curve for curve in curves if curve.distribution == BALANCED]
    borrowed = [curve for curve in curves if curve.distribution.startswith(BORROWED)]
    skewed = [curve for curve in curves if curve not in balanced and curve not in borrowed]
    if balanced or not skewed:
        return _rank(balanced or borrowed, skewed=False)
    return _rank(skewed, skewed=True, borrowed=borrowed)


def _grid(curves: Sequence[Moe]) -> Grid:
    rows: dict[int, dict[float, float]] = defaultdict(dict)
    for curve in curves:
        for tokens, distinct, us in zip(curve.tokens, curve.distinct or (), curve.us, strict=True):
            rows[distinct][float(tokens * curve.top_k)] = us * MICRO
    return Grid({distinct: _rising(row) for distinct, row in rows.items()})


def _rising(points: dict[float, float]) -> LogCurve:
    sizes = sorted(points)
    return LogCurve.through(sizes, levelled([points[size] for size in sizes]))


def _rank(curves: Sequence[Moe], *, skewed: bool, borrowed: Sequence[Moe] = ()) -> Rank:
    first = curves[0]
    own = first.experts / first.expert_parallel
    points = _fastest(curves)
    if skewed:
        points = _faster(_balanced_from(points, first), _fastest(borrowed), first.experts)
    few, full = _split(points, first, own, skewed=skewed)
    sizes = np.array(sorted(full))
    seconds = levelled([full[size] for size in sizes])
    few[own] = float(seconds[0])
    launch_s = _launch(few)
    hits = np.array(sorted(few))
    beside = np.maximum.accumulate([max(0.0, few[hit] - launch_s) for hit in hits])
    return Rank(
        experts=own,
        full=LogCurve.through(sizes * _visits_each(first), np.maximum(seconds - launch_s, LEAST_S)),
        launch_s=launch_s,
        hits=np.concatenate([[0.0], hits]),
        shares=np.concatenate([[0.0], np.minimum(1.0, beside / beside[-1])]),
        most=float(sizes[-1] * _visits_each(first)),
    )


def _launch(few: dict[float, float]) -> float:
    """Return where the line through the two fewest hit experts starts, above nothing [s]."""
    if len(few) < 2:
        return 0.0
    least, more = sorted(few)[:2]
    each = max(0.0, (few[more] - few[least]) / (more - least))
    return max(0.0, few[least] - each * least)


def _fastest(curves: Sequence[Moe]) -> dict[int, float]:
    """Return the duration at each number of tokens: the least of several skews, [s].

    They lie within a few per cent of each other but for spikes, which go up.
    """
    points: dict[int, float] = {}
    for curve in curves:
        for tokens, us in zip(curve.tokens, curve.us, strict=True):
            points[tokens] = min(us * MICRO, points.get(tokens, np.inf))
    sizes = sorted(points)
    return {sizes[i]: points[sizes[i]] for i in kept([points[size] for size in sizes])}


def _balanced_from(points: dict[int, float], curve: Moe) -> dict[int, float]:
    """Return durations as balanced visits would have them, from skewed ones, [s]."""
    return {size: seconds * less_balanced(curve, size) for size, seconds in points.items()}


def less_balanced(curve: Moe, tokens: int) -> float:
    """Return the duration with balanced visits over the curve's own."""
    each = tokens * curve.top_k / curve.experts
    if curve.distribution == BALANCED or each < np.exp(LESS_BALANCED.log_xs[0]):
        return 1.0
    return float(LESS_BALANCED(np.array([each]))[0])


def _faster(own: dict[int, float], other: dict[int, float], least: int) -> dict[int, float]:
    """Return the lower of two durations from `least` tokens on, at sizes that both have.

    Beyond the other's last size it is as much faster as it was there.
    """
    last = max((t for t in own if t in other and t >= least), default=None)
    if last is None:
        return own
    beyond = min(1.0, other[last] / own[last])
    both = {t: min(s, other.get(t, s)) if t >= least else s for t, s in own.items()}
    return {t: s * beyond if t > last else s for t, s in both.items()}


def _split(
    points: dict[int, float], curve: Moe, own: float, *, skewed: bool
) -> tuple[dict[float, float], dict[int, float]]:
    """Return durations by hit experts where few are, and by tokens where all are.

    Balanced, t tokens hit t x top-k experts, of which the rank has its share. Skewed, one token
    still hits top-k where all are on the rank, and it takes as many tokens as experts to hit all.
    """
    few: dict[float, float] = {}
    full: dict[int, float] = {}
    for tokens, seconds in points.items():
        hit = tokens * curve.top_k / curve.expert_parallel
        if skewed and tokens > 1:
            hit = own if tokens >= curve.experts else 0.0
        if hit >= own:
            full[tokens] = seconds
        elif hit >= 1:
            few[hit] = seconds
    if not full:
        raise ProfileError(
            f"kernels.moe: experts {curve.experts}, top_k {curve.top_k}: no point at which all "
            "experts are hit; import tables with more tokens"
        )
    return few, full


def _visits_each(curve: Moe) -> float:
    """Return the rank's visits for each token."""
    return curve.top_k / curve.expert_parallel
