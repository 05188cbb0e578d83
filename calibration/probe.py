"""How fast the host is right now: one plain decode batch, timed the same way at different times.

A shared host is not equally fast from one minute to the next. The probe is taken when a profile is
made and around each real run of a validation; their ratio explains a miss. Nothing is corrected.
"""

import numpy as np

from calibration.grid import Part, Point
from calibration.operations import measure
from calibration.timing import median_and_spread
from engine.serve.engine import Engine

ITERATIONS = 20
PROBED = 8
"""Sequences of the batch, which take a KV block each or more."""


def probe_s(engine: Engine) -> float:
    """Return the median duration of a small decode batch on an idle engine [s]."""
    limits = engine.config.limits
    sequences = min(PROBED, limits.max_num_seqs)
    context = min(64, limits.max_model_len // 2, engine.config.num_blocks // sequences)
    point = Point((Part(1, context),) * sequences)
    rng = np.random.default_rng(1)
    samples = [measure(engine, point, rng)["iteration"] for _ in range(ITERATIONS)]
    return median_and_spread(samples)[0]
