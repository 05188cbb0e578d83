"""Scenarios of the tiny model whose requests are written out one by one."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from moesim.scenario import Scenario, scenario_from
from moesim.simulation.run import Result, simulate

Rows = Sequence[tuple[float, int, int]]


@pytest.fixture(scope="session")
def replay(
    tiny_scenario: Callable[[], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Scenario]:
    """Build a scenario of `(arrival, prompt, output)` rows, its deployment changed by keyword."""
    folder: Path = tmp_path_factory.mktemp("traces")

    def build(rows: Rows, *, devices: int = 1, **deployment: Any) -> Scenario:
        lines = ["arrival_s,prompt_tokens,output_tokens", *(",".join(map(str, r)) for r in rows)]
        path = folder / f"{len(list(folder.iterdir()))}.csv"
        path.write_text("\n".join(lines) + "\n")
        content = tiny_scenario()
        content["tenants"]["chat"] |= {
            "arrivals": {"kind": "trace", "path": str(path)},
            "prompt_tokens": {"kind": "trace"},
            "output_tokens": {"kind": "trace"},
        }
        content["hardware"]["count"] = devices
        content["deployment"] |= deployment
        return scenario_from(content)

    return build


@pytest.fixture(scope="session", params=["jumping", "stepping"])
def run(request: pytest.FixtureRequest) -> Callable[..., Result]:
    """Simulate in either way; both must do whatever is asked of one."""
    return partial(simulate, stepwise=request.param == "stepping")
