"""The expert store: whatever is resident, what a layer makes of its tokens is the same."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.model.checkpoint import random_decoder
from engine.model.experts.loop import loop
from engine.variants.caches import POLICIES, Cache, Lru, LruByLayer, Pinned, cache_of
from engine.variants.copies import Copies
from engine.variants.positions import Position, positions_of
from engine.variants.skeleton import attach
from engine.variants.store import ExpertStore, Residency
from moesim.cost.profile import load_profile
from moesim.deployment import Offloading
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.simulation.residency import reside

SPEC = ModelSpec(
    hidden_size=12,
    intermediate_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=6,
    num_local_experts=6,
    num_experts_per_tok=3,
    vocab_size=16,
    max_position_embeddings=32,
    dtype="float32",
)
POSITIONS = positions_of(SPEC)
CPU = torch.device("cpu")
EXPERT_BYTES = 4 * 3 * 12 * 8


def copies_of(variants: int = 2, shared: int = 5) -> Copies:
    """Return the copies of variants that share every third position, up to so many."""
    sources = {at: n % variants for n, at in enumerate(POSITIONS[::3][:shared])}
    return Copies(POSITIONS, variants, sources)


def filled(copies: Copies, residency: Residency) -> ExpertStore:
    """Return a store of random weights, the same for the same copies."""
    store = ExpertStore(SPEC, copies, residency, CPU)
    for number in range(len(copies)):
        generator = torch.Generator().manual_seed(number)
        for place in store.room(number):
            place.normal_(generator=generator)
    store.open()
    return store


def layer_of(copies: Copies, variant: int, layer: int) -> list[int]:
    """Return the copies of one layer's experts."""
    return [copies.number(variant, at) for at in POSITIONS if at.layer == layer]


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return up to 9 tokens, and the weights and ids of their experts."""
    generator = torch.Generator().manual_seed(seed)
    tokens = 1 + seed % 9
    scores = torch.rand(tokens, SPEC.num_local_experts, generator=generator)
    weights, ids = scores.topk(SPEC.num_experts_per_tok)
    return torch.randn(tokens, SPEC.hidden_size, generator=generator), weights, ids


LEAST = {"pinned": 0, "lru": 1, "lru-by-layer": 3}
RESIDENT = [(cache, slots) for cache in POLICIES for slots in (0, 1, 3, 16, 28, 31)]


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize(("cache", "slots"), [c for c in RESIDENT if c[1] >= LEAST[c[0]]])
def test_any_residency_computes_the_same(cache: str, slots: int, prefetch: bool) -> None:
    """As the reference loop on the layer's whole weights, down to a single slot."""
    copies = copies_of()
    assert len(copies) == 31
    whole = filled(copies, Residency())
    store = filled(copies, Residency(resident=slots / 31, cache=cache, staging=1))
    assert store.gate_up.shape[0] == min(slots + (cache == "pinned"), 31)
    rng = np.random.default_rng(0)
    for seed in range(40):
        own = layer_of(copies, int(rng.integers(2)), int(rng.integers(3)))
        x, weights, ids = batch(seed)
        if prefetch and not store.complete:
            store.expect(rng.choice(31, 4, replace=False).tolist())
        expected = loop(x, weights, ids, whole.gate_up[own], whole.down[own])
        if store.complete:
            slot = torch.tensor(own)[ids]
            found = loop(x, weights, slot, store.gate_up, store.down)
        else:
            found = store.run(own, x, weights, ids)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cache", POLICIES)
def test_the_sum_does_not_depend_on_what_was_there(cache: str) -> None:
    """To the last bit, with three experts a token, in whatever order they arrive."""
    copies = copies_of()
    few = filled(copies, Residency(resident=0.1, cache=cache))
    many = filled(copies, Residency(resident=0.9, cache=cache))
    for seed in range(30):
        own = layer_of(copies, seed % 2, seed % 3)
        assert torch.equal(few.run(own, *batch(seed)), many.run(own, *batch(seed)))


def test_a_worked_count() -> None:
    """Two of four copies pinned: one token at both kinds, then at an absent one named ahead."""
    copies = Copies(POSITIONS[:4], 1, {})
    store = filled(copies, Residency(resident=0.5))
    kept = [number for number in range(4) if number < 2]
    absent = [number for number in range(4) if number >= 2]
    x, weights = torch.ones(1, 12), torch.ones(1, 2)
    store.run([kept[0], absent[0]], x, weights, torch.tensor([[0, 1]]))
    assert (store.statistics.hits, store.statistics.misses) == (1, 1)
    store.expect([kept[1], absent[1]])
    store.run([kept[1], absent[1]], x, weights, torch.tensor([[0, 1]]))
    found = store.statistics
    assert (found.hits, found.misses, found.prefetched, found.wasted) == (2, 2, 1, 0)
    assert found.moved_bytes == 2 * EXPERT_BYTES
    store.expect([absent[0]])  # is in the other staging slot still
    assert store.statistics.moved_bytes == 2 * EXPERT_BYTES


def test_what_is_named_ahead_in_vain_is_counted() -> None:
    """It leaves before anybody used it."""
    store = filled(Copies(POSITIONS, 1, {}), Residency(resident=4 / 18, cache="lru"))
    there = {copy for copy in range(18) if store._cache.find(copy) is not None}
    absent = [copy for copy in range(18) if copy not in there]
    store.expect(absent)
    assert store.statistics.moved_bytes == 2 * EXPERT_BYTES  # half of the slots
    x, weights, ids = torch.ones(1, 12), torch.ones(1, 4), torch.arange(4)[None]
    store.run(absent[4:8], x, weights, ids)
    assert store.statistics.wasted == 2
    assert store.statistics.misses == 4


@pytest.mark.parametrize(("cache", "absent"), [("pinned", 23), ("lru", 31), ("lru-by-layer", 31)])
def test_host_memory_has_what_may_leave(cache: str, absent: int) -> None:
    """In one piece; what stays on the device for good is not there as well."""
    store = filled(copies_of(), Residency(resident=8 / 31, cache=cache))
    assert store._host.bytes.nbytes == absent * EXPERT_BYTES
    assert filled(copies_of(), Residency(cache=cache))._host.bytes.nbytes == 0


def test_guesses_are_brought_behind_what_a_layer_needs() -> None:
    """And are known before anything is queued, or a GPU's host would wait for it to know them."""
    decoder, copies = random_decoder(SPEC, seed=0), copies_of(variants=1, shared=0)
    store = filled(copies, Residency(resident=0.5, cache="lru-by-layer", prefetch=True))
    attach(decoder, store, 0)
    first, second, _ = decoder.moe_layers
    moved: list[int] = []
    move = store._move

    def moving(copy: int, slot: int) -> None:
        moved.append(copies.all[copy].position.layer)
        move(copy, slot)

    def routing(x: Tensor) -> tuple[Tensor, Tensor]:
        moved.append(-1)
        return route(x)

    store._move = moving  # type: ignore[method-assign]
    route, second.route = second.route, routing  # type: ignore[method-assign]
    x = torch.randn(9, SPEC.hidden_size, generator=torch.Generator().manual_seed(0))
    first.experts(x, *first.route(x))
    assert moved == sorted(moved)
    assert set(moved) == {-1, 0, 1}
    named = {copies.number(0, Position(1, int(e))) for e in route(x)[1].unique()}
    assert store._ahead <= named


def accesses(copies: int, count: int) -> list[int]:
    rng = np.random.default_rng(1)
    found: list[int] = rng.integers(copies, size=(2, count)).min(axis=0).tolist()
    return found


def use(cache: Cache, copy: int) -> bool:
    """Use a copy; return whether it was there."""
    if cache.find(copy) is not None:
        return True
    cache.place(copy)
    return False


def test_lru_is_the_last_used() -> None:
    """As a plain list of what was used last."""
    cache, recent = Lru(range(5), range(5)), [4, 3, 2, 1, 0]
    for copy in accesses(12, 500):
        assert use(cache, copy) == (copy in recent)
        recent = [*(other for other in recent if other != copy), copy][-5:]
        slots = dict(cache.held())
        assert sorted(slots) == sorted(recent)
        assert sorted(slots.values()) == [0, 1, 2, 3, 4]


def test_lru_by_layer_is_a_cache_a_layer() -> None:
    """What happens in one layer moves nothing in another."""
    layers = [copy % 3 for copy in range(12)]
    cache = LruByLayer(layers, 7)  # 3, 2 and 2 slots
    recent = {0: [6, 3, 0], 1: [4, 1], 2: [5, 2]}
    for copy in accesses(12, 500):
        own = recent[layers[copy]]
        assert use(cache, copy) == (copy in own)
        recent[layers[copy]] = [*(other for other in own if other != copy), copy][-len(own) :]
        assert sorted(copy for copy, _ in cache.held()) == sorted(chain(*recent.values()))
        assert sorted(slot for _, slot in cache.held()) == list(range(7))


def test_pinned_copies_stay() -> None:
    """The others have the staging slots in turn."""
    cache = Pinned(4, staging=2)
    passing: list[int] = []
    for copy in accesses(9, 300):
        assert use(cache, copy) == (copy < 4 or copy in passing)
        if copy >= 4:
            passing = [*(other for other in passing if other != copy), copy][-2:]
        assert sorted(copy for copy, _ in cache.held()) == [0, 1, 2, 3, *sorted(passing)]


@pytest.mark.parametrize("variants", [1, 2, 3])
@pytest.mark.parametrize("resident", [0.1, 0.4, 0.8])
def test_pinned_copies_are_those_of_the_simulator(resident: float, variants: int) -> None:
    """The most popular, dealt to the variants in turn."""
    profile = load_profile("demo-cpu")
    popularity = {
        Position(layer, expert): share
        for layer, row in enumerate(profile.router.popularity)
        for expert, share in enumerate(row)
    }
    copies = Copies(positions_of(profile.spec), variants, {}, [popularity] * variants)
    residency = reside(
        [profile] * variants,
        10**12,
        precision=Precision.of_dtype(profile.spec.dtype),
        offloading=Offloading(resident=resident),
        kv_blocks=8,
        max_batched_tokens=64,
        max_num_seqs=8,
        reserved_share=0.0,
    )
    kept = copies.all[: residency.demand.resident_copies]
    for variant, seen in enumerate(residency.seen):
        own = {tuple(copy.position) for copy in kept if copy.source == variant}
        assert own == {(int(layer), int(expert)) for layer, expert in np.argwhere(seen)}


def test_every_copy_has_its_users() -> None:
    """A shared one all variants, at its source's number; a private one its own variant."""
    copies = copies_of(variants=3, shared=6)
    assert len(copies) == 6 + 3 * 12
    users = Counter(copies.number(v, at) for v in range(3) for at in POSITIONS)
    assert [users[number] for number in range(len(copies))] == [3] * 6 + [1] * 36
    assert [copy.shared for copy in copies.all] == [True] * 6 + [False] * 36
    owned = [number for variant in range(3) for number in copies.of(variant)]
    assert sorted(owned) == list(range(len(copies)))
    for number, at in copies.of(2).items():
        assert copies.number(2, at) == number


@pytest.mark.parametrize(
    ("policy", "resident", "message"),
    [
        ("mru", 4, "cache: 'mru' is none of pinned, lru, lru-by-layer"),
        ("lru", 0, "resident: lru needs one expert copy on the device at least; keep more"),
        ("lru-by-layer", 2, "resident: 2 expert copies are less than one for each of 3 layers"),
    ],
)
def test_caches_that_cannot_be(policy: str, resident: int, message: str) -> None:
    """One line says why."""
    with pytest.raises(EngineError, match=message):
        cache_of(policy, [0, 1, 2, 0, 1, 2], resident)


@pytest.mark.parametrize("wrong", [{"resident": 1.5}, {"resident": -0.1}, {"staging": 0}])
def test_residencies_that_cannot_be(wrong: dict[str, float]) -> None:
    """The message names the field and its value."""
    ((field, value),) = wrong.items()
    with pytest.raises(EngineError, match=f"{field}: {value} must be"):
        Residency(**wrong)  # type: ignore[arg-type]
