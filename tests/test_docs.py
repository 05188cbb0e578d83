"""What the documentation tells people to write runs."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from moesim.deployment import Deployment
from moesim.scenario import scenario_from
from moesim.serving.policies import POLICIES
from moesim.serving.queues import ORDERS
from moesim.serving.records import COMPLETED
from moesim.simulation.run import simulate

DOCS = Path(__file__).parents[1] / "docs"
SHARING = (DOCS / "sharing.md").read_text()
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


def _kinds() -> dict[str, type[BaseModel]]:
    """Return the kinds of deployment by name."""
    union, _ = get_args(Deployment)
    return {get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in get_args(union)}


@pytest.mark.parametrize("kind", sorted(_kinds()))
def test_the_sharing_page_names_each_kind_s_keys(kind: str) -> None:
    """Those that not every kind has."""
    fields = [set(each.model_fields) for each in _kinds().values()]
    own = set(_kinds()[kind].model_fields) - set.intersection(*fields)
    (row,) = re.findall(rf"^\| `{kind}` \| (.*`.*) \|$", SHARING.split("## How")[0], re.MULTILINE)
    assert own <= set(re.findall(r"`(\w+)`", row))


@pytest.mark.parametrize("kind", sorted(_kinds()))
def test_the_sharing_page_s_examples_run(kind: str) -> None:
    """Two models in four bits, on as many GPUs as it takes, serve everybody."""
    plain, routed = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", SHARING, re.DOTALL))
    examples = {**plain["alternatives"], "expert_router": routed["deployment"]}
    assert set(examples) == set(_kinds())
    model = {"architecture": "mixtral-8x7b", "profile": "roofline", "precision": "int4"}
    asked = ("router",) if kind == "expert_router" else ("base", "tuned")
    tenant = {
        "arrivals": {"kind": "poisson", "rate_per_s": 2},
        "prompt_tokens": {"kind": "fixed", "tokens": 50},
        "output_tokens": {"kind": "fixed", "tokens": 10},
    }
    content = {
        "name": kind,
        "duration_s": 5,
        "models": {"base": model, "tuned": model},
        "tenants": {name: {"model": name, **tenant} for name in asked},
        "hardware": {"device": "h100-sxm-80gb", "count": 8},
        "deployment": examples[kind],
    }
    records = simulate(scenario_from(content)).records
    assert (records["outcome"] == COMPLETED).all()
    assert set(records["model"]) == {"base", "tuned"}


def test_links_between_the_pages_lead_somewhere() -> None:
    links = [
        (page, link)
        for page in DOCS.glob("*.md")
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    ]
    assert links
    for page, link in links:
        assert (page.parent / link).exists(), f"{page.name}: {link}"
