"""Checkpoints and profiles for the step `variants`, made where they are missing."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from shutil import disk_usage

from benchmarks.gpu_queue.asked import Asked
from benchmarks.gpu_queue.cells import NAMES, Ground
from benchmarks.gpu_queue.provenance import Begun
from benchmarks.gpu_queue.released import release
from benchmarks.gpu_queue.room import room_on
from calibration.calibrate import Settings, calibrate, name_of, silent
from calibration.datasheet import device_yaml, measured_device
from calibration.host import Host
from calibration.mig_commands import known_gpus
from calibration.transfers import Asked as Transfers
from engine.model.checkpoint import random_decoder, save_decoder
from engine.slices.at_once import Gate, at_once
from engine.slices.here import parts_of
from moesim.cost.profile import Profile, load_profile
from moesim.errors import CalibrationError
from moesim.facts.catalog import load_device
from moesim.files import write_text
from moesim.units import format_bytes

CARD = "h200-sxm-141gb"
"""Whose memory a rehearsal reckons with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A profile to make on a share; it can be sent to another process."""

    settings: Settings
    out: Path
    host: Host


def ground_for(begun: Begun) -> Ground:
    """Return what the cells stand on."""
    asked = begun.asked
    name, memory = device_of(begun)
    file = asked.out / "variants" / "profile.json"
    if file.exists():
        own_profile(begun, file)
    folders = checkpoints(asked)
    if not file.exists() or own_profile(begun, file).transfers is None:
        say(f"profiling {NAMES[0]} and what sharing costs")
        calibrate(settings_of(asked, folders, Transfers(variants=folders)), file, begun.host)
        release()
    return Ground(
        size=asked.size,
        folders=folders,
        profile_file=file,
        profile=own_profile(begun, file),
        device=name,
        room=room_on(memory),
    )


def own_profile(begun: Begun, file: Path) -> Profile:
    """Return a profile on file; CalibrationError for one of another host or another model.

    What was served before lies beside it, and is of the same host and model.
    """
    found = load_profile(file)
    if found.provenance.host_hash != begun.host.hash:
        raise CalibrationError(f"{file}: was measured on another host; give another --out")
    if found.spec != begun.asked.size.variant:
        raise CalibrationError(f"{file}: is of variants of another shape; give another --out")
    return found


def say(text: str) -> None:
    """Tell whoever watches what is being done, and at what time."""
    print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def checkpoints(asked: Asked) -> dict[str, Path]:
    """Return the variants' checkpoints by name, of random weights, a seed each."""
    spec = asked.size.variant
    # Another shape is another folder: what is there is never of another size.
    kind = f"{asked.device.type}-{spec.num_hidden_layers}x{spec.hidden_size}"
    folders = {name: asked.scratch / kind / name for name in NAMES}
    _require_space(asked, sum(not folder.exists() for folder in folders.values()))
    for seed, (name, folder) in enumerate(folders.items()):
        if not folder.exists():
            say(f"making checkpoint {name}")
            save_decoder(random_decoder(spec, seed=seed, device=asked.device), folder)
            release()
    return folders


def _require_space(asked: Asked, missing: int) -> None:
    """Raise CalibrationError where the checkpoints that are missing have no room."""
    asked.scratch.mkdir(parents=True, exist_ok=True)
    wanted, free = missing * asked.size.variant.weight_bytes, disk_usage(asked.scratch).free
    if wanted > free:
        raise CalibrationError(
            f"--scratch: {asked.scratch}: {missing} checkpoints are {format_bytes(wanted)}, "
            f"{format_bytes(free)} are free there; give another folder"
        )


def settings_of(
    asked: Asked, folders: Mapping[str, Path], transfers: Transfers | None, share: str = ""
) -> Settings:
    """Return what is profiled: the first variant, on the whole device or a share of it."""
    return Settings(
        model=str(folders[NAMES[0]]),
        budget_s=asked.size.variant_profile_s,
        max_num_seqs=asked.size.variant_traffic.max_num_seqs,
        max_batched_tokens=asked.size.max_batched_tokens,
        num_blocks=asked.size.variant_blocks,
        device=asked.device,
        transfers=transfers,
        share=share,
    )


def share_profile(begun: Begun, ground: Ground, count: int) -> Profile:
    """Return the profile of one of so many equal shares, which stands for all: one shape runs."""
    asked, share = begun.asked, Fraction(1, count)
    file = share_file(asked, count)
    if not file.exists():
        say(f"profiling a share of one in {count}")
        part = parts_of([share] * count, asked.device)[0]
        settings = settings_of(asked, ground.folders, None, str(part))
        job = Job(settings=settings, out=file.resolve(), host=begun.host)
        at_once([share], asked.device, profiled, [job])
        release()
    return own_profile(begun, file)


def share_file(asked: Asked, count: int) -> Path:
    """Return where the profile of one of so many equal shares is."""
    return asked.out / "variants" / f"profile-share-{count}.json"


def profiled(job: Job, gate: Gate) -> None:
    """Profile on the share that this process, or stream, has."""
    calibrate(job.settings, job.out, job.host, silent)


def device_of(begun: Begun) -> tuple[str, int]:
    """Return what scenarios call the device, and the bytes of the card that room is reckoned on."""
    if begun.asked.device.type == "cuda":
        known, name = known_gpus(), name_of(begun.asked.device, begun.host)
        if name not in known:
            raise CalibrationError(
                f"variants: {name!r} is no shipped device, whose rates are needed; run on one of: "
                f"{', '.join(known)}"
            )
        return known[name].name, known[name].memory_bytes
    file = begun.asked.out / "variants" / "cpu.yaml"
    if not file.exists():
        write_text(file, device_yaml(measured_device(begun.host, "cpu")))
    return str(file), load_device(CARD).memory_bytes


def read_cell(path: Path) -> dict[str, object] | None:
    """Return what is on file of a cell; None where it was never served."""
    if not path.exists():
        return None
    content: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return content
