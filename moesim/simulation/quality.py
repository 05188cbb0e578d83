"""The quality of a deployment: what its curve knows of it. No curve, no claim."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moesim.cost.profile import Profile
from moesim.deployment import Consolidated
from moesim.facts.catalog import load_model
from moesim.facts.configs import ARCHITECTURES
from moesim.facts.quality import EVIDENCE, Answer, Curve, load_curve
from moesim.scenario import Scenario

Quality = dict[str, Any]
"""What is known, for metrics and screens alike."""


def quality_of(scenario: Scenario, profiles: Mapping[str, Profile]) -> Quality | None:
    """Return what the scenario's curve says of its deployment; None where it names no curve.

    Only consolidation changes what models answer; otherwise they answer as served alone.
    `value` is None where nothing is known, and `reason` says why.
    """
    if scenario.quality is None:
        return None
    curve = load_curve(scenario.quality.curve, relative_to=scenario.folder)
    ratio, count = _ratio(scenario), len(scenario.models)
    wrong = _mismatch(scenario, curve, profiles)
    answer = Answer(reason=wrong) if wrong else _answer(curve, ratio, count)
    return {
        "curve": curve.name,
        "metric": curve.metric,
        "better": curve.better,
        "value": answer.value,
        "variants": dict(answer.variants),
        "ratio": ratio,
        "models": count,
        "served_alone": ratio == 0,
        "interpolated": answer.interpolated,
        "reason": answer.reason,
        "basis": curve.basis,
        "source": curve.source,
        "evidence": curve.evidence,
        "notes": curve.notes,
        "sentence": _sentence(curve, answer, ratio, count),
    }


def _ratio(scenario: Scenario) -> float:
    """Return which share of the expert positions one copy serves; 0 where models share nothing."""
    deployment = scenario.deployment
    if isinstance(deployment, Consolidated) and len(scenario.models) > 1:
        return deployment.ratio
    return 0.0


def _answer(curve: Curve, ratio: float, count: int) -> Answer:
    if not ratio:
        alone = curve.at(0 if curve.axis == "ratio" else 1)
        why = f"{curve.name} has no figure of a model served alone"
        return alone if alone.reason is None else Answer(reason=why)
    if curve.axis == "models":
        return curve.at(count)
    if curve.variants != count:
        return Answer(reason=f"{curve.name} is of {curve.variants} models, these are {count}")
    return curve.at(ratio)


def _mismatch(scenario: Scenario, curve: Curve, profiles: Mapping[str, Profile]) -> str | None:
    """Say which model is not of the curve's shape, None if all are."""
    if curve.model is None:
        return None
    shape = load_model(curve.model, relative_to=scenario.folder, architectures=ARCHITECTURES)
    for name, profile in profiles.items():
        longest = profile.spec.max_position_embeddings
        if profile.spec != replace(shape, max_position_embeddings=longest):
            return f"{curve.name} is of {curve.model}, models.{name} is of another shape"
    return None


def _sentence(curve: Curve, answer: Answer, ratio: float, count: int) -> str:
    """Say in a line what is known, and where it comes from."""
    if answer.reason is not None:
        known = "as of each model served alone" if not ratio else "not known"
        return f"quality {known}: {answer.reason}"
    values = [f"{answer.value:.4g}"] if answer.value is not None else []
    values += [f"{name} {value:.4g}" for name, value in answer.variants.items()]
    return (
        f"quality: {curve.metric} {', '.join(values)} ({curve.better} is better) "
        f"{_where(curve, answer, ratio, count)}; {curve.basis}, {EVIDENCE[curve.evidence]}: "
        f"{curve.source}"
    )


def _where(curve: Curve, answer: Answer, ratio: float, count: int) -> str:
    if not ratio:
        return "as served alone"
    if curve.axis == "models":
        return f"with {count} models, of the ratio nothing is known"
    return f"at ratio {ratio:g}" + (", between two known ones" if answer.interpolated else "")
