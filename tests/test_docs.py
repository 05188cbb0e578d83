"""What the documentation tells people to write runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from moesim.scenario import scenario_from
from moesim.serving.policies import POLICIES
from moesim.serving.queues import ORDERS
from moesim.serving.records import COMPLETED
from moesim.simulation.run import simulate

DOCS = Path(__file__).parents[1] / "docs"
SCHEDULING = (DOCS / "scheduling.md").read_text()
WHOLE, *CHANGES = re.findall(r"```yaml\n(.*?)```", SCHEDULING, flags=re.DOTALL)


def _merged(whole: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Put a change into a scenario, key by key; what has a kind of its own replaces the old."""
    merged = dict(whole)
    for key, value in change.items():
        old = whole.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and "kind" not in value:
            merged[key] = _merged(old, value)
        else:
            merged[key] = value
    return merged


@pytest.mark.parametrize("change", ["{}", *CHANGES])
def test_the_scheduling_page_runs(change: str) -> None:
    """Each example, put into the whole scenario, serves everybody, and says something new."""
    whole = yaml.safe_load(WHOLE)
    content = _merged(whole, yaml.safe_load(change))
    assert (content == whole) == (change == "{}")
    records = simulate(scenario_from(content)).records
    assert (records["outcome"] == COMPLETED).all()
    assert set(records["tenant"]) == {"chat", "reports"}


def test_the_scheduling_page_is_complete() -> None:
    """Every policy and every order has its row."""
    for name in (*POLICIES, *ORDERS):
        assert re.search(rf"^\| `{name}` \| ", SCHEDULING, flags=re.MULTILINE), name


def test_links_between_the_pages_lead_somewhere() -> None:
    links = [
        (page, link)
        for page in DOCS.glob("*.md")
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    ]
    assert links
    for page, link in links:
        assert (page.parent / link).exists(), f"{page.name}: {link}"
