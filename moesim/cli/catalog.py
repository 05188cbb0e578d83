"""`moesim list`: what ships with moesim."""

from moesim.facts.catalog import SUFFIX, shipped


def list_shipped() -> None:
    """List the shipped devices, models, profiles, workloads, scenarios and curves of quality."""
    for folder in SUFFIX:
        print(f"{folder + ':':<11}{', '.join(shipped(folder)) or '-'}")
