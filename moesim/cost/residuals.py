"""How wrong a profile may be: the same profile, redrawn within its own errors.

Three things separate a profile from what a run will meet, and each is drawn once a run:

* **Cells.** A cell's median is one of finitely many repetitions. Of normal samples with standard
  deviation s an interquartile range is 1.349 s, and the standard error of a median of n is
  1.2533 s / sqrt(n) (Kenney and Keeping 1962). Each cell is scaled by a lognormal factor of its
  own, of median 1 and of that error relative to the median. Repetitions of one round share what
  the host was doing, so that this understates a little.
* **Whole iterations.** What the tables leave out is common to all operations, so it scales all
  cells alike. One of the residuals that the profile found on iterations it had not seen is drawn
  at random (a bootstrap: Efron 1979). Where only their median absolute value m is on file, the
  factor is lognormal around 1 with sigma m / 0.6745, as the median of a half-normal is 0.6745
  sigma; where nothing is, there is none. A residual is one iteration's and holds here for a whole
  run: runs repeat alike iterations, so their errors do not cancel.
* **The host.** While it was profiled its speed moved by the factor 1 + drift. A run meets it
  anywhere in that range, which has the profile in its middle: a factor (1 + drift)^u with u uniform
  between -1/2 and 1/2.

Loads of experts and swaps are redrawn like cells, by the error of their own median alone. The
router's popularity is taken as measured, and so is a link's speed that a scenario or a datasheet
gives.

Profiles of one origin err together: of two models on rooflines of one device, or in one file, the
second is not another chance. So the last two are drawn from a stream that such profiles share
(`streams`).
"""

from collections.abc import Sequence
from math import log
from typing import TypeVar
from zlib import crc32

import numpy as np

from moesim.cost.profile import Cell, ExpertLoad, Profile, Swap, Transfers, Verdict
from moesim.serving.iterations import Floats

Timed = TypeVar("Timed", ExpertLoad, Swap)

IQR_OF_NORMAL = 1.349
"""Interquartile range of a normal distribution, in standard deviations."""

MEDIAN_ERROR = 1.2533
"""Standard error of a median over that of a mean, for normal samples: sqrt(pi / 2)."""

MEDIAN_OF_HALF_NORMAL = 0.6745
"""Median of the absolute value of a standard normal variable."""

LARGEST_ERROR = 1.0
"""Largest standard deviation of a logarithm that is drawn: off by e, a cell says nothing."""


def streams(profile: Profile, seed: int) -> tuple[np.random.Generator, np.random.Generator]:
    """Return what a profile's own errors are drawn from, and what those of its origin are.

    The same for every profile of one file, whatever models are called by it; the second is the
    same for all that were made together: on one device, from one source, at one time.
    """
    made = profile.provenance
    origin = f"{profile.source}, {made.device}, {made.host_hash}, {made.date}"
    own = f"{origin}, {made.model_source}, {made.model_digest}"
    return _stream(seed, own), _stream(seed, origin)


def _stream(seed: int, name: str) -> np.random.Generator:
    """Return a stream by its name, apart from those that tenants draw from."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(crc32(name.encode()),)))


def resampled(
    profile: Profile, rng: np.random.Generator, origin: np.random.Generator | None = None
) -> Profile:
    """Return the profile as another measurement of the same host might have found it.

    `origin` is what is drawn from for all profiles of its origin, `rng` unless given.
    """
    cells = [cell for operation in profile.operations.values() for cell in operation]
    factors = np.exp(median_errors(cells) * rng.standard_normal(len(cells)))
    common = level(profile.verdict, origin or rng)
    factors *= common
    redrawn = iter(
        # The values are valid as they are: validating them again would take longer than the run.
        Cell.model_construct(
            at=cell.at, median_s=cell.median_s * factor, spread=cell.spread, repeats=cell.repeats
        )
        for cell, factor in zip(cells, factors.tolist(), strict=True)
    )
    changed: dict[str, object] = {
        "operations": {
            name: [next(redrawn) for _ in operation]
            for name, operation in profile.operations.items()
        }
    }
    if profile.transfers is not None:
        changed["transfers"] = _redrawn(profile.transfers, rng)
    return profile.model_copy(update=changed).at_level(common)


def _redrawn(transfers: Transfers, rng: np.random.Generator) -> Transfers:
    """Return loads and swaps, each scaled by a factor of its own."""
    return transfers.model_copy(
        update={
            "expert_loads": _scattered(transfers.expert_loads, rng),
            "swaps": _scattered(transfers.swaps, rng),
        }
    )


def _scattered(timed: list[Timed], rng: np.random.Generator) -> list[Timed]:
    factors = np.exp(median_errors(timed) * rng.standard_normal(len(timed))).tolist()
    return [
        one.model_copy(update={"median_s": one.median_s * factor})
        for one, factor in zip(timed, factors, strict=True)
    ]


def median_errors(cells: Sequence[Cell | ExpertLoad | Swap]) -> Floats:
    """Return the standard errors of the medians, relative to them, (N,).

    >>> median_errors([Cell(at=(1,), median_s=1e-3, spread=0.1349, repeats=100)]).round(5).tolist()
    [0.01253]
    """
    spreads = np.array([cell.spread for cell in cells])
    repeats = np.array([cell.repeats for cell in cells])
    errors = MEDIAN_ERROR * (spreads / IQR_OF_NORMAL) / np.sqrt(repeats)
    return np.asarray(np.minimum(LARGEST_ERROR, errors))


def level(verdict: Verdict, rng: np.random.Generator) -> float:
    """Draw by which factor all durations differ: the tables' own error times the host's drift."""
    drift = float(np.exp(log(1 + verdict.drift) * rng.uniform(-0.5, 0.5)))
    if verdict.iteration_residuals:
        return drift * (1 + float(rng.choice(verdict.iteration_residuals)))
    if verdict.iteration_error_p50 is None:
        return drift
    sigma = min(LARGEST_ERROR, verdict.iteration_error_p50 / MEDIAN_OF_HALF_NORMAL)
    return drift * float(np.exp(sigma * rng.standard_normal()))
