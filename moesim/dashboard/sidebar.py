"""The sidebar: which scenario, with which changes, becomes one question to the simulator."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st
import yaml
from pydantic import BaseModel

from moesim.dashboard.settings import (
    Content,
    Setting,
    describe,
    numbers,
    with_changes,
    with_enough_devices,
)
from moesim.errors import ScenarioError
from moesim.evidence.validation import PROFILE, default_folder
from moesim.facts.catalog import shipped
from moesim.scenario import ROOFLINE, Model, Scenario, Tenant, TraceArrivals, scenario_from

OWN_FILE = "a file of mine"
FIRST = "quickstart"

Changes = dict[tuple[str, ...], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A scenario as set on the page, not yet validated; `run` says that it is to be answered."""

    content: dict[str, Any]
    source: str
    folder: Path | None
    seed: int
    replications: int | None
    run: bool

    def scenario(self) -> Scenario:
        """Validate what was set; ScenarioError names the field and the remedy."""
        return scenario_from(self.content, source=self.source, folder=self.folder)


def ask() -> Question | None:
    """Draw the sidebar and return what is asked, None while no file is chosen."""
    chosen = _chosen()
    if chosen is None:
        return None
    content, source, folder = chosen
    scenario = scenario_from(content, source=source, folder=folder)
    if scenario.description:
        st.caption(scenario.description)
    content, scenario, way = _deployed(content, scenario, source)
    run = _run_now()
    changes = _model_changes(scenario, source)
    for name, tenant in scenario.tenants.items():
        with st.expander(f"Tenant {name}", expanded=len(scenario.tenants) == 1):
            changes |= _tenant_changes(name, tenant, source)
    with st.expander("Deployment", expanded=True):
        changes |= _deployment_changes(scenario, way)
    with st.expander("Duration, seed, runs"):
        changes |= _number_changes(numbers(scenario), source)
        seed = st.number_input("Seed", min_value=0, value=0, help="Another seed, other arrivals.")
        replications = _replications()
    return Question(
        content=_grown(with_changes(content, changes), scenario, changes),
        source=source,
        folder=folder,
        seed=seed,
        replications=replications,
        run=run,
    )


def _chosen() -> tuple[Content, str, Path | None] | None:
    entries = shipped("scenarios")
    names = [*sorted(entries, key=lambda name: name != FIRST), OWN_FILE]
    name = st.selectbox("Scenario", names, key="scenario")
    if name != OWN_FILE:
        return _parsed(_text(entries[name]), name), name, entries[name].parent
    written = st.text_input("Path of a scenario file", key="scenario path").strip()
    uploaded = st.file_uploader("or upload one", type=["yaml", "yml"], key="scenario upload")
    if uploaded is not None:
        text = uploaded.getvalue().decode(errors="replace")
        return _parsed(text, uploaded.name), uploaded.name, None
    if not written:
        return None
    path = Path(written).expanduser()
    return _parsed(_text(path), written), written, path.parent


def _deployed(content: Content, scenario: Scenario, source: str) -> tuple[Content, Scenario, str]:
    """Have one of the file's deployments chosen, where it has several; the last names it."""
    ways = scenario.side_by_side()
    if len(ways) == 1:
        return content, scenario, source
    own, *_ = ways
    name = st.selectbox("Deployment", list(ways), key=f"{source}/deployment kind")
    chosen = content["deployment"] if name == own else content["alternatives"][name]
    rest = {key: value for key, value in content.items() if key != "alternatives"}
    return {**rest, "deployment": chosen}, ways[name], f"{source}/{name}"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as wrong:
        raise ScenarioError(f"{path}: not readable ({wrong})") from None


def _parsed(text: str, source: str) -> Content:
    try:
        content: Content = yaml.safe_load(text)
    except yaml.YAMLError as wrong:
        raise ScenarioError(f"{source}: not valid YAML: {' '.join(str(wrong).split())}") from None
    return content


def _run_now() -> bool:
    live = st.checkbox(
        "Run on every change", value=True, key="live", help="Switch off for long scenarios."
    )
    pressed = st.button("Run", type="primary", width="stretch")
    return live or pressed


def _replications() -> int | None:
    return st.number_input(
        "Runs",
        min_value=1,
        value=None,
        step=1,
        placeholder="automatic",
        key="replications",
        help="1 is a single run without intervals, 20 give intervals that hold nine in ten runs.",
    )


def _model_changes(scenario: Scenario, source: str) -> Changes:
    changes: Changes = {}
    for name, model in scenario.models.items():
        options = list(dict.fromkeys([model.profile, *_known_profiles(), ROOFLINE, OWN_FILE]))
        profile = st.selectbox(
            f"Profile of {name}",
            options,
            key=f"{source}/{name}/profile",
            help=describe(Model, "profile"),
        )
        if profile == OWN_FILE:
            profile = st.text_input(
                "Path of a profile file", model.profile, key=f"{source}/{name}/profile path"
            ).strip()
        if profile != model.profile:
            changes["models", name, "profile"] = profile
    return changes


def _known_profiles() -> list[str]:
    """Return the shipped profiles, and the one of this machine once `make demo` has run."""
    own = default_folder() / PROFILE
    return [*shipped("profiles"), *([str(own)] if own.exists() else [])]


def _tenant_changes(name: str, tenant: Tenant, source: str) -> Changes:
    changes: Changes = {}
    for field in ("arrivals", "prompt_tokens", "output_tokens", "slo"):
        part, path = getattr(tenant, field), ("tenants", name, field)
        st.markdown(f"**{describe(Tenant, field).rstrip('.')}**")
        if isinstance(part, TraceArrivals):
            changes |= _trace_change(part, path, source)
        changes |= _number_changes(numbers(part, path), source)
    return changes


def _trace_change(part: TraceArrivals, path: tuple[str, ...], source: str) -> Changes:
    written = st.text_input(
        "Trace file",
        part.path,
        key=f"{source}/{'.'.join(path)}.path",
        help=describe(TraceArrivals, "path"),
    ).strip()
    return {(*path, "path"): written} if written != part.path else {}


def _deployment_changes(scenario: Scenario, source: str) -> Changes:
    deployment, path = scenario.deployment, ("deployment",)
    settings = numbers(deployment, path) + numbers(deployment.scheduler, (*path, "scheduler"))
    for name in ("experts", "gateway"):
        part = getattr(deployment, name, None)
        if isinstance(part, BaseModel):
            settings += numbers(part, (*path, name))
    return _number_changes(settings, source)


def _number_changes(settings: list[Setting], source: str) -> Changes:
    values = {setting: _number(setting, source) for setting in settings}
    return {setting.path: value for setting, value in values.items() if value != setting.value}


def _number(setting: Setting, source: str) -> float | None:
    kind = int if setting.whole else float
    # Streamlit wants the number, its bounds and its step of one type.
    typed: dict[str, Any] = {
        name: None if number is None else kind(number)
        for name, number in (
            ("min_value", setting.low),
            ("max_value", setting.high),
            ("value", setting.value),
            ("step", setting.step),
        )
    }
    chosen: float | None = st.number_input(
        setting.label,
        **typed,
        format="%d" if setting.whole else "%.6g",
        placeholder="none",
        key=f"{source}/{setting.key}",
        help=f"{setting.description}\n\nIn the file: `{setting.key}`",
    )
    return chosen


def _grown(content: dict[str, Any], scenario: Scenario, changes: Changes) -> dict[str, Any]:
    """Give added replicas devices to run on: the page asks what would be, not what there is."""
    replicas = changes.get(("deployment", "replicas"))
    if replicas is None:
        return content
    grown = scenario.deployment.model_copy(update={"replicas": replicas})
    needed, count = grown.devices(list(scenario.models)), scenario.hardware.count
    if needed > count:
        st.caption(f"Runs on {needed} devices; the file has {count}.")
    return with_enough_devices(content, needed)
