"""Whether profile, checkpoints, scenario and host of a validation belong together."""

from calibration.calibrate import name_of, uuid_hash_of
from calibration.host import Host
from calibration.models import model_digest
from calibration.plan import Plan
from calibration.share_profile import require_whole
from calibration.sharing import refuse_unservable
from moesim.deployment import Dedicated, Mps
from moesim.errors import CalibrationError, ScenarioError
from moesim.scenario import Scenario


def check_belonging(plan: Plan, host: Host) -> None:
    """Raise CalibrationError or ScenarioError where what is given is not of one and the same."""
    made = plan.profile.provenance
    require_whole(plan.profile, "--profile")
    if plan.variants:
        _check_names(plan)
        refuse_unservable(plan.scenario)
        if isinstance(plan.scenario.deployment, Mps):
            _check_on_shares(plan, host)
        else:
            _check_variants(plan)
    else:
        _check_alone(plan.scenario)
    if made.host_hash != host.hash:
        raise CalibrationError(
            f"the profile was measured on another host ({made.device}), this one is {host.cpu}; "
            "profile here first: moesim-calibrate profile"
        )
    here = name_of(plan.device, host)
    if made.device != here:
        raise CalibrationError(
            f"the profile was measured on {made.device}, this is {here}; choose that by --gpu, or "
            "profile here first: moesim-calibrate profile"
        )
    if made.device_hash not in (None, uuid_hash_of(plan.device)):
        raise CalibrationError(
            f"the profile was measured on another {made.device} of this host; choose that by "
            "--gpu, or profile here first: moesim-calibrate profile"
        )
    spec, narrowed = plan.profile.spec, plan.profile.narrowed
    if not plan.variants and made.model_digest != model_digest(plan.model, spec, narrowed):
        raise CalibrationError(
            f"--model: {plan.model} is not the checkpoint that was profiled "
            f"({made.model_source}); profile it first"
        )


def _check_alone(scenario: Scenario) -> None:
    deployment = scenario.deployment
    alone = isinstance(deployment, Dedicated) and deployment.replicas == 1
    if len(scenario.models) != 1 or not alone:
        raise ScenarioError(
            f"scenario {scenario.name}: without --variants the engine validates one model on one "
            "replica; give the models' checkpoints as --variants NAME=FOLDER,NAME=FOLDER"
        )


def _check_names(plan: Plan) -> None:
    """Raise where variants are not the scenario's models, or profiles of shares have no use."""
    names, models = set(plan.variants), set(plan.scenario.models)
    if names != models:
        raise ScenarioError(
            f"--variants: {', '.join(sorted(names))} are not the scenario's models "
            f"{', '.join(sorted(models))}; give each a folder by its name"
        )
    for name in plan.share_profiles:
        if name not in models:
            raise ScenarioError(
                f"--share-profiles: {name} is not one of the scenario's models "
                f"{', '.join(sorted(models))}"
            )
    if plan.share_profiles and not isinstance(plan.scenario.deployment, Mps):
        raise ScenarioError(
            f"--share-profiles: nobody has a share in a deployment of kind "
            f"{plan.scenario.deployment.kind}; leave them out, or deploy as mps"
        )


def _check_on_shares(plan: Plan, host: Host) -> None:
    """Raise where a model on a share is not what was profiled, there or on the whole device."""
    transfers, made = plan.profile.transfers, plan.profile.provenance
    whole = {made.model_digest}
    for name, folder in plan.variants.items():
        own = plan.share_profiles.get(name)
        variant = transfers.variants.get(name) if transfers else None
        known = {variant.model_digest} if variant else whole
        if own is not None:
            known = {own.provenance.model_digest}
            if own.provenance.host_hash != host.hash:
                raise CalibrationError(
                    f"--share-profiles: {name}: was measured on another host "
                    f"({own.provenance.device}); profile here first: moesim-calibrate profile "
                    "--share"
                )
        if model_digest(str(folder), plan.profile.spec) not in known:
            raise CalibrationError(
                f"--variants: {name}: {folder} is not the checkpoint that was profiled; profile "
                "again with the same --variants, or give its own profile as --share-profiles"
            )


def _check_variants(plan: Plan) -> None:
    """Raise where variants are not what was profiled."""
    transfers = plan.profile.transfers
    if transfers is None:
        raise CalibrationError(
            "the profile has no transfers, without which nothing is known of swaps and loads here; "
            "profile again with --transfers --variants"
        )
    for name, folder in plan.variants.items():
        known = transfers.variants.get(name)
        if known is None or known.model_digest != model_digest(str(folder), plan.profile.spec):
            raise CalibrationError(
                f"--variants: {name}: {folder} is not the checkpoint that was profiled under that "
                "name; profile again with the same --variants"
            )
