"""The section `transfers` of a profile in a few lines, for the terminal."""

from collections.abc import Iterator

from moesim.cost.profile import Transfers
from moesim.units import format_bytes, format_seconds

PLACES = {"pinned": "pinned", "pageable": "pageable", "host": "within host memory"}


def transfer_lines(transfers: Transfers | None) -> Iterator[str]:
    """Yield a line for each load of one expert, each swap, each store, and the gateway."""
    if transfers is None:
        return
    for load in transfers.expert_loads:
        if load.how == "in_iteration" or load.in_flight == 1:
            how = "in an iteration" if load.how == "in_iteration" else "alone"
            yield (
                f"expert load, {how}, {PLACES[load.memory]}: {format_bytes(load.expert_bytes)} in "
                f"{format_seconds(load.median_s)} (spread {100 * load.spread:.0f} %)"
            )
    for swap in transfers.swaps:
        what, way = swap.what.replace("_", " "), swap.way.replace("_", " ")
        yield (
            f"swap, {what}, {way}, {PLACES[swap.memory]}: {format_bytes(swap.set_bytes)} in "
            f"{format_seconds(swap.median_s)} (spread {100 * swap.spread:.0f} %)"
        )
    for store in transfers.stored:
        kind = "all resident" if store.complete else "one by one"
        ratios = sorted(factor for *_, factor in store.factors)
        yield (
            f"experts in a store of {store.copies} copies, {kind}: "
            f"{ratios[len(ratios) // 2]:.2f} times the model's own (median)"
        )
    if transfers.gateway is not None:
        yield f"gateway: {format_seconds(transfers.gateway.mean_s)} a prompt"
    for note in transfers.notes:
        yield f"note: {note}"
