"""Which expert model answers which cluster."""

import warnings
from collections.abc import Mapping
from collections.abc import Sequence as Row

from moesim.errors import EngineError, MoesimWarning


def unnamed(clusters: int) -> tuple[str, ...]:
    """Return names for clusters that have no model yet.

    >>> unnamed(2)
    ('cluster-0', 'cluster-1')
    """
    return tuple(f"cluster-{cluster}" for cluster in range(clusters))


def by_cluster(option: str, text: str, clusters: int) -> tuple[str, ...]:
    """Return models by cluster, as an option lists them; one may have several clusters.

    >>> by_cluster("--experts", "code, chat, chat", 3)
    ('code', 'chat', 'chat')
    """
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise EngineError(f"{option}: {text!r} is not a list of models like code,chat,maths")
    if len(names) != clusters:
        raise EngineError(
            f"{option}: {text!r} has {len(names)} models, the gateway {clusters} clusters; give "
            "one for each, the largest cluster's first; a model may come twice"
        )
    return names


def shares_of(names: Row[str], counts: Row[int]) -> Mapping[str, int]:
    """Return how many prompts each model gets, as `shares` of a scenario's gateway.

    A model without a prompt is left out with a warning: a scenario gives each of its models some.
    """
    shares: dict[str, int] = {}
    for name, count in zip(names, counts, strict=True):
        shares[name] = shares.get(name, 0) + count
    without = [name for name, count in shares.items() if not count]
    if without:
        warnings.warn(
            f"no prompt is for {', '.join(without)}; leave it out of the scenario too",
            MoesimWarning,
            stacklevel=2,
        )
    return {name: count for name, count in shares.items() if count}
