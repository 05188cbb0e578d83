"""One profile of several that were made alike: their cells are pooled, anything else is refused.

Alike are profiles of one checkpoint on one host with the same software and settings: what has to
agree for an interrupted profile to go on, but for the number of KV blocks, which follows the memory
that happens to be free. Profiles of other hosts, models or MIG layouts are other profiles.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from calibration.calibrate import TOLERATED_DRIFT
from calibration.merge_cells import between, pooled_by, pooled_router
from moesim.cost.profile import Cell, Profile, Provenance, Transfers, Variant, Verdict
from moesim.errors import CalibrationError
from moesim.facts.catalog import locate

Named = tuple[str, Profile]
"""Where a profile is from, and the profile."""


def merge(named: Sequence[Named]) -> Profile:
    """Return one profile of several repetitions.

    Raises CalibrationError, naming the field and both values, where two are not comparable.
    """
    check_comparable(named)
    profiles = sorted((profile for _, profile in named), key=lambda each: each.provenance.date)
    latest = profiles[-1]
    names = sorted({name for profile in profiles for name in profile.operations})
    operations = {
        name: pooled_by(_place, [profile.operations.get(name, []) for profile in profiles])
        for name in names
    }
    merged = latest.model_copy(
        update={
            "operations": operations,
            "router": pooled_router([profile.router for profile in profiles]),
            "kv": min((profile.kv for profile in profiles), key=lambda kv: kv.num_blocks),
            "provenance": _provenance(latest, profiles),
            "transfers": _transfers(latest, profiles),
            "verdict": _verdict(profiles),
        }
    )
    return Profile.model_validate(merged.model_dump())


def check_comparable(named: Sequence[Named]) -> None:
    """Raise CalibrationError where profiles were not made alike, or hold the same measurement."""
    if len(named) < 2:
        raise CalibrationError("merge: give two profiles or more of the same model and host")
    (first, reference), *others = named
    if reference.source != "measured":
        raise CalibrationError(f"{first}: source: {reference.source!r}; merge measured profiles")
    expected = _setting(reference)
    for name, profile in others:
        found = _setting(profile)
        for field in (*expected, *(field for field in found if field not in expected)):
            if found.get(field) != expected.get(field):
                raise CalibrationError(
                    f"{name}: {field}: {_said(found, field)}, and {_said(expected, field)} in "
                    f"{first}; merge only profiles that were made alike"
                )
    for (one, profile), (other, same) in combinations(named, 2):
        if not set(_measurements(profile)).isdisjoint(_measurements(same)):
            raise CalibrationError(
                f"{other}: operations: the same measurement as in {one}; give each measurement once"
            )
        _check_variants(one, _variants(profile), other, _variants(same))


def check_place(out: Path, names: Sequence[str]) -> None:
    """Raise CalibrationError where writing to `out` would replace one of the profiles."""
    for name in names:
        if out.exists() and out.samefile(locate("profiles", name)):
            raise CalibrationError(
                f"--out {out}: would replace {name}, one of the profiles; choose another file"
            )


def _check_variants(
    one: str, known: Mapping[str, Variant], other: str, found: Mapping[str, Variant]
) -> None:
    """Raise CalibrationError where one name stands for two checkpoints."""
    for name in known.keys() & found.keys():
        digests = found[name].model_digest, known[name].model_digest
        if digests[0] != digests[1]:
            raise CalibrationError(
                f"{other}: transfers.variants.{name}.model_digest: {digests[0]!r}, and "
                f"{digests[1]!r} in {one}; merge only profiles that were made alike"
            )


def _measurements(profile: Profile) -> tuple[str, ...]:
    """Return the hashes of the measurements that a profile holds: of its cells, if but one."""
    return profile.provenance.pooled or (_digest(profile),)


def _digest(profile: Profile) -> str:
    cells = {name: [c.model_dump() for c in row] for name, row in profile.operations.items()}
    return sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()[:16]


def _variants(profile: Profile) -> Mapping[str, Variant]:
    return profile.transfers.variants if profile.transfers else {}


def _setting(profile: Profile) -> dict[str, Any]:
    """Return what has to agree, by field, in the order in which it is looked at."""
    made = profile.provenance
    return {
        "provenance.model_digest": made.model_digest,
        **{f"model.{key}": value for key, value in profile.model.items()},
        "provenance.device": made.device,
        "provenance.device_kind": made.device_kind,
        "provenance.host_hash": made.host_hash,
        **({"provenance.device_hash": made.device_hash} if made.device_hash else {}),
        **({"provenance.share": made.share} if made.share else {}),
        **{f"provenance.software.{key}": value for key, value in made.software.items()},
        "provenance.threads": made.threads,
        "max_batched_tokens": profile.max_batched_tokens,
        "kv.block_size": profile.kv.block_size,
        "decode_graphs": profile.decode_graphs,
        **({"precision": profile.precision.model_dump()} if profile.precision else {}),
        "source": profile.source,
    }


def _said(setting: dict[str, Any], field: str) -> str:
    return repr(setting[field]) if field in setting else "nothing"


def _place(cell: Cell) -> tuple[float, ...]:
    return cell.at


def _provenance(latest: Profile, profiles: Sequence[Profile]) -> Provenance:
    """Return the latest profile's origin; the time is that of all, as the measurements are."""
    duration_s = sum(profile.provenance.duration_s for profile in profiles)
    pooled = tuple(digest for profile in profiles for digest in _measurements(profile))
    return latest.provenance.model_copy(
        update={"duration_s": round(duration_s, 1), "pooled": pooled}
    )


def _transfers(latest: Profile, profiles: Sequence[Profile]) -> Transfers | None:
    """Pool loads and swaps; stores and the gateway, which keep no repeats, are the latest's."""
    parts = [profile.transfers for profile in profiles if profile.transfers is not None]
    if not parts:
        return None
    base = latest.transfers or parts[-1]
    loads = pooled_by(
        lambda load: (load.memory, load.how, load.expert_bytes, load.in_flight),
        [part.expert_loads for part in parts],
    )
    swaps = pooled_by(
        lambda swap: (swap.what, swap.way, swap.memory, swap.set_bytes, swap.tensors),
        [part.swaps for part in parts],
    )
    variants = _pooled_variants([part.variants for part in parts])
    update = {"expert_loads": loads, "swaps": swaps, "variants": variants}
    return base.model_copy(update={**update, "notes": _once(part.notes for part in parts)})


def _pooled_variants(parts: Sequence[Mapping[str, Variant]]) -> dict[str, Variant]:
    """Pool what the routers of each variant did."""
    known = {name: each for part in parts for name, each in part.items()}
    return {
        name: each.model_copy(
            update={"router": pooled_router([part[name].router for part in parts if name in part])}
        )
        for name, each in known.items()
    }


def _verdict(profiles: Sequence[Profile]) -> Verdict:
    """Judge them together: as the worst of them, and by how far they are apart.

    Residuals are those that each profile found with its own tables.
    """
    verdicts = [profile.verdict for profile in profiles]
    worst = max(verdicts, key=lambda verdict: verdict.unstable_cells / max(1, verdict.cells))
    drift = max(*(verdict.drift for verdict in verdicts), between(profiles))
    probes = [verdict.probe_s for verdict in verdicts if verdict.probe_s is not None]
    return worst.model_copy(
        update={
            "stable": all(verdict.stable for verdict in verdicts) and drift <= TOLERATED_DRIFT,
            "iteration_residuals": [r for each in verdicts for r in each.iteration_residuals],
            "iteration_error_p50": _error(verdicts, 50),
            "iteration_error_p90": _error(verdicts, 90),
            "drift": round(drift, 4),
            "probe_s": float(np.mean(probes)) if probes else None,
            "warnings": [*_once(each.warnings for each in verdicts), _origin(profiles, drift)],
        }
    )


def _error(verdicts: Sequence[Verdict], percentile: int) -> float | None:
    """Return a percentile of |predicted/measured - 1| over all residuals that are on file."""
    residuals = [r for verdict in verdicts for r in verdict.iteration_residuals]
    if residuals:
        return float(np.percentile([abs(1 / (1 + r) - 1) for r in residuals], percentile))
    field = f"iteration_error_p{percentile}"
    return max((e for v in verdicts if (e := getattr(v, field)) is not None), default=None)


def _origin(profiles: Sequence[Profile], drift: float) -> str:
    dates = ", ".join(sorted(profile.provenance.date for profile in profiles))
    apart = f"; drift {100 * drift:.0f} %: the host was not alike" * (drift > TOLERATED_DRIFT)
    return f"pooled from {len(profiles)} profiles of {dates}{apart}"


def _once(lists: Iterator[list[str]]) -> list[str]:
    """Return what the lists say, each line once."""
    return list(dict.fromkeys(line for lines in lists for line in lines))
