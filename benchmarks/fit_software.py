"""Fit what software adds to kernels, as `moesim/cost/kernels/uncertainty.py` carries it.

    python benchmarks/fit_software.py serving.csv

Every row of a table of published results is predicted by the shipped profiles of kernels alone. By
how much longer (rates: shorter) things were measured to take, row by row, says what an engine adds
on a device: the 5th, 15th, ... 95th percentile, of engines with a dozen rows of rates or times per
token. Printed as it stands in the code.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from moesim.commands import progress_bar
from moesim.errors import MoesimError
from moesim.evidence.accuracy.factors import paced, slowness
from moesim.evidence.accuracy.outcome import Choice, accuracy
from moesim.scenario import ROOFLINE

FEWEST = 12
LEVELS = np.arange(0.05, 0.96, 0.1)


def main() -> int:
    """Print the fits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", metavar="serving.csv", type=Path, help="published results")
    path = parser.parse_args().table
    try:
        with progress_bar() as told:
            rows = accuracy(path, Choice(), told=told).rows
    except MoesimError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    rows = paced(rows[rows["scales"] & (rows["profile"] != ROOFLINE)])
    print("SOFTWARE: tuple[Software, ...] = (")
    for (version, device), group in rows.groupby(["version", "device"], sort=True):
        if len(group) >= FEWEST:
            slower = np.exp(np.quantile(slowness(group), LEVELS))
            values = ", ".join(f"{factor:.2f}" for factor in slower)
            print(f'    Software(\n        "{version}",\n        "{device}",')
            print(f"        ({values}),\n    ),")
    print(")")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
