"""One cache of the last used: expected misses beside a cache that is replayed copy by copy."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from moesim.cost.offload import Loading
from moesim.cost.recency import Recency, Run

LAYERS, EXPERTS, EACH = 12, 8, 2
ALL = LAYERS * EXPERTS
PROMPT, OUTPUT = 20, 15

LOADING = Loading(expert_bytes=1.0, bytes_per_s=1.0)
EVEN = np.full((LAYERS, EXPERTS), EACH / EXPERTS)
NOTHING = np.zeros((LAYERS, EXPERTS), dtype=bool)

ORDERS = {
    "alternating": [place % 2 for place in range(50)],
    "random": np.random.default_rng(1).integers(0, 2, 60).tolist(),
    "runs": [place // 20 % 2 for place in range(60)],
    "three": [place % 3 for place in range(50)],
}


def iterations(turns: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield request, variant and tokens of each iteration, a request at a time."""
    for request, variant in enumerate(turns):
        yield request, variant, PROMPT
        for _ in range(OUTPUT - 1):
            yield request, variant, 1


def replayed(
    turns: Sequence[int],
    room: int,
    shared: np.ndarray = NOTHING,
    *,
    by_layer: bool = False,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Return the misses of each request, after a warm-up of ten, of caches as the engine has them.

    A layer's experts that are there run first, then the absent ones as they are copied.
    """
    rng = np.random.default_rng(0)
    sizes = (
        [room] if not by_layer else [room // LAYERS + (n < room % LAYERS) for n in range(LAYERS)]
    )
    caches: list[OrderedDict[tuple[int, int, int], None]] = [OrderedDict() for _ in sizes]
    missed = np.zeros(len(turns))
    for request, variant, tokens in iterations(turns):
        for layer in range(LAYERS):
            part = layer if by_layer else 0
            cache = caches[part]
            routed = {
                expert
                for _ in range(tokens)
                for expert in rng.choice(EXPERTS, EACH, replace=False, p=weights)
            }
            copies = [(-1 if shared[layer, e] else variant, layer, e) for e in sorted(routed)]
            absent = [copy for copy in copies if copy not in cache]
            for copy in copies:
                if copy in cache:
                    cache.move_to_end(copy)
            for copy in absent:
                missed[request] += 1
                cache[copy] = None
                if len(cache) > sizes[part]:
                    cache.popitem(last=False)
    return missed[10:]


def expected(recency: Recency, turns: Sequence[int]) -> np.ndarray:
    """Return the expected misses of each request, after a warm-up of ten."""
    history, missed = list[Run](), np.zeros(len(turns))
    for request, variant, tokens in iterations(turns):
        misses = recency.misses(variant, recency.past(variant, history[-40:]))
        missed[request] += misses.copied[:, tokens].sum()
        count = 1
        if history and history[-1][:2] == (variant, tokens):
            count += history.pop().iterations
        history.append(Run(variant, tokens, count))
    return missed[10:]


def recency(
    variants: int, room: int, shared: np.ndarray = NOTHING, *, by_layer: bool = False
) -> Recency:
    return Recency(
        [EVEN] * variants, shared, room, [LOADING] * variants, most_tokens=32, by_layer=by_layer
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("share", [0.4, 0.5, 0.6, 0.75])
def test_variants_in_turns_miss_what_one_cache_does(order: str, share: float) -> None:
    """Within 15 % of the replay, or a copy in fifty where there are few misses, on average."""
    turns = ORDERS[order]
    variants = max(turns) + 1
    room = round(share * variants * ALL)
    found = expected(recency(variants, room), turns).mean()
    assert found == pytest.approx(replayed(turns, room).mean(), rel=0.15, abs=0.02 * ALL)


@pytest.mark.parametrize("order", ["alternating", "random"])
@pytest.mark.parametrize("ratio", [0.25, 0.75, 1.0])
def test_shared_copies_are_warm_for_all(order: str, ratio: float) -> None:
    """Shared positions lie evenly over the layers; half of all copies have a place."""
    shared = (np.arange(ALL) * ratio % 1 < ratio).reshape(LAYERS, EXPERTS)
    room = (2 * ALL - int(shared.sum())) // 2
    found = expected(recency(2, room, shared), ORDERS[order]).mean()
    assert found == pytest.approx(
        replayed(ORDERS[order], room, shared).mean(), rel=0.15, abs=0.02 * ALL
    )


@pytest.mark.parametrize("order", ["alternating", "random"])
@pytest.mark.parametrize("share", [0.5, 0.75])
def test_each_layer_may_have_a_cache_of_its_own(order: str, share: float) -> None:
    """Then a layer's copies compete with each other alone."""
    room = round(share * 2 * ALL)
    found = expected(recency(2, room, by_layer=True), ORDERS[order]).mean()
    assert found == pytest.approx(
        replayed(ORDERS[order], room, by_layer=True).mean(), rel=0.15, abs=0.02 * ALL
    )


@pytest.mark.parametrize("share", [0.25, 0.5, 0.82, 0.94])
def test_a_lone_prompt_among_decodes(share: float) -> None:
    """One model, a request at a time: the prompt finds what the decodes before it left."""
    room, turns = round(share * ALL), [0] * 40
    found = expected(recency(1, room), turns).mean()
    assert found == pytest.approx(replayed(turns, room).mean(), rel=0.15, abs=0.02 * ALL)


@pytest.mark.parametrize("share", [0.4, 0.6])
def test_popular_copies_are_there_longer(share: float) -> None:
    """The first of eight experts is drawn five times as often as the last."""
    weights = np.linspace(5, 1, EXPERTS) / np.linspace(5, 1, EXPERTS).sum()
    pairs = weights[:, None] * weights / (1 - weights)[:, None]  # [first, second]
    np.fill_diagonal(pairs, 0.0)
    popularity = np.tile(weights + pairs.sum(axis=0), (LAYERS, 1))
    room, turns = round(share * 2 * ALL), ORDERS["random"]
    cache = Recency([popularity] * 2, NOTHING, room, [LOADING] * 2, most_tokens=32)
    found = expected(cache, turns).mean()
    assert found == pytest.approx(
        replayed(turns, room, weights=weights).mean(), rel=0.15, abs=0.02 * ALL
    )


def test_the_computer_takes_what_it_has_sooner() -> None:
    """One token of an expert takes a tenth of its copy on the CPU, eleven and more take longer."""
    both = Loading(expert_bytes=1.0, bytes_per_s=1.0, cpu_s_per_token_expert=0.1)
    one = Recency([EVEN], NOTHING, 0, [both], most_tokens=60)
    misses = one.misses(0, ())
    assert misses.copied[:, 1].sum() == 0
    assert misses.cpu_s[1] == pytest.approx(0.1 * EACH * LAYERS)
    assert misses.copied[:, 60].sum() == pytest.approx(ALL, rel=1e-6)


def test_no_room_at_all() -> None:
    """Whatever is hit is missed: two experts a layer of one token, all of many."""
    misses = recency(2, 0).misses(1, recency(2, 0).past(1, [Run(1, 20, 3), Run(0, 1, 9)]))
    assert misses.copied[:, [0, 1, 32]].sum(axis=0) == pytest.approx([0, 2 * LAYERS, ALL], rel=1e-3)


def test_more_room_never_misses_more() -> None:
    """Of any size of the next iteration, after the same ones."""
    history = [Run(0, 20, 1), Run(0, 1, 14), Run(1, 20, 1), Run(1, 2, 9), Run(0, 3, 4)]
    before = np.full(33, np.inf)
    for room in range(0, 2 * ALL, 16):
        cache = recency(2, room)
        now = cache.misses(0, cache.past(0, history)).copied.sum(axis=0)
        assert (now <= before + 1e-9).all()
        before = now
