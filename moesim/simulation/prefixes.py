"""Prompts that begin alike: names for their full KV blocks, equal where the content is.

A trace names blocks of its own size by hashes; a tenant's `shared_prefix_tokens`, its system
prompt, are the same for all its requests.
"""

from zlib import crc32

import pandas as pd

from moesim.errors import ScenarioError
from moesim.scenario import Scenario, Tenant

Names = tuple[int, ...]


def with_block_names(requests: pd.DataFrame, scenario: Scenario, block_size: int) -> pd.DataFrame:
    """Return requests with a column `prefix`: a name for each full block of the prompt's start.

    Raises ScenarioError where a trace's blocks are no multiple of `block_size` tokens.
    """
    shared = {
        name: shared_names(name, tenant, block_size) for name, tenant in scenario.tenants.items()
    }
    hashes = requests["prefix"] if "prefix" in requests else [None] * len(requests)
    ratio = _ratio(requests, block_size)
    names = [
        _names(hashed, ratio, shared[tenant])[: prompt // block_size]
        for hashed, tenant, prompt in zip(
            hashes, requests["tenant"], requests["prompt_tokens"], strict=True
        )
    ]
    return requests.assign(prefix=pd.Series(names, index=requests.index, dtype=object))


def shared_names(name: str, tenant: Tenant, block_size: int) -> Names:
    """Return names for the full blocks that all prompts of a tenant begin with."""
    # Negative, so that no trace's hash is like them.
    first = -1 - (crc32(name.encode()) << 32)
    return tuple(first - block for block in range(tenant.shared_prefix_tokens // block_size))


def _names(hashed: Names | None, ratio: int, shared: Names) -> Names:
    if not hashed:
        return shared
    return tuple(block * ratio + part for block in hashed for part in range(ratio))


def _ratio(requests: pd.DataFrame, block_size: int) -> int:
    traced = requests.attrs.get("prefix_block")
    if traced is None:
        return 1
    if traced % block_size:
        raise ScenarioError(
            f"deployment.scheduler.prefix_caching: the trace's blocks of {traced} tokens are no "
            f"multiple of the KV cache's {block_size}; choose prompt_tokens.scale so that they are"
        )
    return int(traced) // block_size
