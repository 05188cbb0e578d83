"""What a run starts from: the files behind a scenario, each read once and checked."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from moesim.cost.kernels.assembling import assembled_profile
from moesim.cost.kernels.tables import Kernels, is_kernels, kernels_from
from moesim.cost.profile import Profile, profile_from, read_profile
from moesim.cost.roofline import roofline_profile
from moesim.errors import MoesimError, ProfileError
from moesim.facts.catalog import load_device, load_model
from moesim.facts.configs import ARCHITECTURES, DECODERS
from moesim.facts.hardware import Device
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.facts.slices import MIG
from moesim.requests import Traces, load_traces
from moesim.scenario import PROFILED, ROOFLINE, Model, Scenario
from moesim.simulation.quality import Quality, quality_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the files behind a scenario say, each read once, for many runs."""

    device: Device | None
    """The scenario's device; None for the one that was profiled."""
    profiles: Mapping[str, Profile]
    """By model."""
    traces: Traces
    quality: Quality | None = None
    """What is known of the deployment's quality."""


def load_inputs(scenario: Scenario, profiles: Mapping[str, Profile] | None = None) -> Inputs:
    """Read the files behind a scenario; raises what `simulate` raises where one does not fit."""
    device = device_of(scenario)
    found = load_profiles(scenario, profiles or {}, device)
    return Inputs(
        device=device,
        profiles=found,
        traces=load_traces(scenario),
        quality=quality_of(scenario, found),
    )


def device_of(scenario: Scenario) -> Device | None:
    """Return the scenario's device; None for the one that was profiled."""
    name = scenario.hardware.device
    with _said_of("hardware.device"):
        return None if name == PROFILED else load_device(name, relative_to=scenario.folder)


@contextmanager
def _said_of(field: str) -> Iterator[None]:
    """Put the scenario's field before what is wrong with the file that it names."""
    try:
        yield
    except MoesimError as wrong:
        raise type(wrong)(f"{field}: {wrong}") from None


def load_profiles(
    scenario: Scenario, given: Mapping[str, Profile], device: Device | None
) -> dict[str, Profile]:
    """Return each model's profile, checked against the model's shape and the device."""
    for name in given:
        if name not in scenario.models:
            raise ProfileError(
                f"profile given for {name!r}, which is not one of the scenario's models: "
                f"{', '.join(scenario.models)}"
            )
    profiles = {}
    for name, model in scenario.models.items():
        # What a roofline cannot do it says itself; only decoders are profiled.
        known = ARCHITECTURES if model.profile == ROOFLINE else DECODERS
        folder = scenario.folder
        with _said_of(f"models.{name}.architecture"):
            spec = load_model(model.architecture, relative_to=folder, architectures=known)
        profile = given.get(name) or _profile_of(scenario, name, spec, device).of_variant(name)
        _same_shape(name, spec, profile)
        if profile.source == "measured":
            _as_measured(model, f"models.{name}", spec, profile)
        if device:
            _same_device(name, device, profile)
        profiles[name] = profile
    return profiles


def takes(scenario: Scenario, name: str, precision: str, profile: Profile, device: Device) -> bool:
    """Whether a model's profile goes with weights in another format, too.

    A measured one is of one format, kernels are of some, and a roofline is of any.
    """
    if profile.source == "roofline":
        return True
    model = scenario.models[name].model_copy(update={"precision": precision})
    if profile.source == "measured":
        return precision_of(model, profile.spec) == profile.formats
    written = scenario.model_copy(update={"models": {name: model}})
    try:
        _profile_of(written, name, profile.spec, device)
    except ProfileError:
        return False
    return True


def _same_device(name: str, device: Device, profile: Profile) -> None:
    """Raise ProfileError where a profile is of another device than the scenario's."""
    made = profile.provenance
    if made.device_kind != device.kind:
        raise ProfileError(
            f"models.{name}.profile: measured on {made.device} ({made.device_kind}), "
            f"hardware.device {device.name} is {device.kind}; profile on that device"
        )
    whole, _, _ = made.device.partition(MIG)
    if profile.source == "measured" and device.reported_as and whole not in device.reported_as:
        raise ProfileError(
            f"models.{name}.profile: measured on {made.device}, hardware.device {device.name} is "
            f"{' or '.join(device.reported_as)}; name the measured device, profile on this one, or "
            "take `profile: roofline`"
        )


def _profile_of(scenario: Scenario, name: str, spec: ModelSpec, device: Device | None) -> Profile:
    """Load a model's profile, or draw its roofline."""
    wanted = scenario.models[name].profile
    if wanted != ROOFLINE:
        with _said_of(f"models.{name}.profile"):
            content = read_profile(wanted, relative_to=scenario.folder)
        if is_kernels(content):
            return _assembled(scenario, name, spec, device, kernels_from(content, wanted))
        return profile_from(content, wanted)
    if device is None:
        raise ProfileError(
            f"models.{name}.profile: roofline needs the datasheet of a hardware.device, which is "
            f"{PROFILED!r}; name the device"
        )
    scheduler = scenario.deployment_of(name).scheduler
    return roofline_profile(
        spec,
        device,
        max_batched_tokens=scheduler.max_batched_tokens,
        max_num_seqs=scheduler.max_num_seqs,
        precision=precision_of(scenario.models[name], spec),
    )


def _assembled(
    scenario: Scenario, name: str, spec: ModelSpec, device: Device | None, kernels: Kernels
) -> Profile:
    """Add a model's profile up from its device's kernels."""
    scheduler = scenario.deployment_of(name).scheduler
    try:
        return assembled_profile(
            kernels,
            spec,
            device or load_device(kernels.device, relative_to=scenario.folder),
            precision=precision_of(scenario.models[name], spec),
            max_batched_tokens=scheduler.max_batched_tokens,
            max_num_seqs=scheduler.max_num_seqs,
        )
    except ProfileError as wrong:
        raise ProfileError(f"models.{name}.{wrong}") from None


def precision_of(model: Model, spec: ModelSpec) -> Precision:
    """Return the formats that a model is served in: those it says, or its checkpoint's."""
    return model.formats(spec.dtype)


def _as_measured(model: Model, field: str, spec: ModelSpec, profile: Profile) -> None:
    """Raise ProfileError where a model is to be in other formats than a profile of its own."""
    own, wanted = profile.formats, precision_of(model, spec)
    for key, asked, measured in (
        ("precision", wanted.experts, own.experts),
        ("kv_precision", wanted.kv, own.kv),
    ):
        if asked != measured:
            raise ProfileError(
                f"{field}.{key}: {asked}, the profile was measured in {measured}; say {measured}, "
                "profile the model so, or take `profile: roofline`"
            )


def _same_shape(name: str, spec: ModelSpec, profile: Profile) -> None:
    """Raise ProfileError where a profile is of another model; its number format may differ."""
    if spec == profile.spec:
        return
    wanted, measured = asdict(spec), asdict(profile.spec)
    for field, value in wanted.items():
        if field != "dtype" and measured[field] != value:
            raise ProfileError(
                f"models.{name}.profile: measured with {field} {measured[field]}, "
                f"the model has {value}; profile this model"
            )
