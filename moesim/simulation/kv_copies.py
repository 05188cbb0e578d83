"""KV blocks copied to host memory and back: neighbours do not share the link for them."""

from collections.abc import Mapping, Sequence

from moesim.serving.columns import Columns
from moesim.simulation.course import Copy
from moesim.simulation.station import Station

Spans = Sequence[tuple[float, float]]


def unshared_link(
    stations: Sequence[Station],
    copies: Mapping[str, Sequence[Copy]],
    loads: Mapping[str, Spans],
    records: Columns,
) -> list[str]:
    """Warn where preempted blocks were copied on a device whose other slices used the link too.

    By how much they would be slowed down is not known before it happens, as it is for experts.
    """
    if not any(copies.values()):
        return []
    missing = set(records["replica"][records["expert_misses"] > 0])

    def on_link(name: str) -> bool:
        return bool(copies[name]) or name in missing or any(took_s for _, took_s in loads[name])

    beside = [
        [replica.name for replica in station.replicas if on_link(replica.name)]
        for station in stations
        if station.beside
    ]
    copying = [name for names in beside for name in names if copies[name]]
    if not copying or sum(map(bool, beside)) < 2:
        return []
    return [
        f"preempted KV blocks of {', '.join(copying)} were copied at swap_gb_per_s whatever else "
        "was on the device's host link: together more may be copied than it carries"
    ]
