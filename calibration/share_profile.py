"""Profiles of shares: what was measured on part of a device, and what it may stand for."""

from engine.slices.part import Part, read_part
from moesim.cost.profile import Profile
from moesim.errors import CalibrationError


def part_of(profile: Profile) -> Part | None:
    """Return what share of its device a profile was measured on; None for all of it."""
    written = profile.provenance.share
    return read_part(written) if written else None


def require_whole(profile: Profile, option: str) -> None:
    """Raise CalibrationError where a profile is of a share."""
    part = part_of(profile)
    if part is not None:
        raise CalibrationError(
            f"{option}: was measured on {part}; give a profile of the whole device, and this one "
            "as --share-profiles MODEL=FILE"
        )


def require_share(profile: Profile, part: Part, option: str) -> None:
    """Raise CalibrationError where a profile is not of the share that it is to stand for."""
    found = part_of(profile)
    if found is None or found != part:
        raise CalibrationError(
            f"{option}: was measured on {found or 'the whole device'}, the deployment gives it "
            f"{part}; profile it with --share {part.units}/{part.of}"
        )
