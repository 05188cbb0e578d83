"""`moesim list`: what ships with moesim."""

from moesim.facts.catalog import SUFFIX, shipped


def list_shipped() -> None:
    """List the shipped scenarios, workloads, models, profiles and devices."""
    for folder in SUFFIX:
        print(f"{folder + ':':<11}{', '.join(shipped(folder)) or '-'}")
