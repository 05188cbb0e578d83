"""Absent experts: cases by hand, a counting cache replayed, bounds, and published figures."""

from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.experts import expected_distinct
from moesim.cost.offload import (
    Loading,
    Loads,
    Misses,
    Pinned,
    beyond,
    expected_misses,
    offload_table,
    pinned,
)
from moesim.cost.recency import touched
from moesim.errors import ScenarioError
from moesim.facts.catalog import load_model
from moesim.facts.precision import Precision

UNIFORM = np.full((8, 8), 0.25)
"""Mixtral's routing with a quarter of its layers, were its routers indifferent: 64 positions."""

MIXTRAL = np.full((32, 8), 0.25)


def _skewed() -> np.ndarray:
    """Return weights of the 64 positions that differ tenfold and more; rows sum to one."""
    weights = np.exp(np.random.default_rng(7).normal(0, 0.8, (8, 8)))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _top_2(weights: np.ndarray) -> np.ndarray:
    """Return how often two draws without replacement take each: w_i (1 + sum w_j / (1 - w_j))."""
    ratio = weights / (1 - weights)
    others = ratio.sum(axis=1, keepdims=True) - ratio
    return np.asarray(weights * (1 + others))


WEIGHTS = {"uniform": np.full((8, 8), 1 / 8), "skewed": _skewed()}
SHARES = {"uniform": UNIFORM, "skewed": _top_2(WEIGHTS["skewed"])}
ITERATIONS = {1: 1200, 4: 600, 32: 150}
"""How many are replayed, by their tokens."""


@cache
def _routed(name: str, tokens: int) -> np.ndarray:
    """Draw two experts a layer for each token; return what each iteration hits, (N, L * E)."""
    shape = (ITERATIONS[tokens], 8, tokens, 8)
    keys = np.log(WEIGHTS[name])[:, None, :] + np.random.default_rng(0).gumbel(size=shape)
    picks = np.argpartition(-keys, 1)[..., :2].reshape(len(keys), 8, -1)
    hits = np.zeros((len(keys), 8, 8), dtype=bool)
    np.put_along_axis(hits, picks, True, axis=2)
    return hits.reshape(len(keys), -1)


def test_the_shares_are_what_is_drawn() -> None:
    """The closed form of two draws, against how often they hit: 1200 tokens, 5 errors."""
    found = _routed("skewed", 1).mean(axis=0).reshape(8, 8)
    assert SHARES["skewed"].sum(axis=1) == pytest.approx(np.full(8, 2))
    assert np.all(np.abs(found - SHARES["skewed"]) < 5 * np.sqrt(0.25 / 1200))


@pytest.mark.parametrize("tokens", [1, 4])
def test_lfu_keeps_the_popular_in_the_end(tokens: int) -> None:
    """Counts of all hits decide, absent copies' too: the pinned misses, within 5 % of the hits."""
    hits = _routed("skewed", tokens)
    counts: Counter[int] = Counter()
    missed = []
    for iteration in hits:
        kept = {position for position, _ in counts.most_common(40)}
        touched_now = np.flatnonzero(iteration).tolist()
        missed.append(len(set(touched_now) - kept))
        counts.update(touched_now)
    expected = pinned(SHARES["skewed"], 40).misses([tokens])[0]
    later = np.mean(missed[len(missed) // 3 :])
    assert abs(expected - later) < 0.05 * hits.sum(axis=1).mean()


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("tokens", [1, 4])
def test_how_many_are_touched_varies_as_counted(name: str, tokens: int) -> None:
    """Mean within 4 standard errors; deviation within 15 %: none at all for a single token."""
    counts = _routed(name, tokens).sum(axis=1)
    sizes = np.array([float(tokens)])
    mean, variance = np.sum([touched(layer, sizes) for layer in SHARES[name]], axis=0)
    assert abs(mean[0] - counts.mean()) <= 4 * counts.std() / np.sqrt(len(counts)) + 1e-9
    assert np.sqrt(variance[0]) == pytest.approx(counts.std(), rel=0.15, abs=1e-6)


def test_what_is_never_hit_needs_no_place() -> None:
    """Four experts of which two are wanted: two places do."""
    assert pinned([[1, 0, 1, 0]], 2).misses([0, 1, 50]) == pytest.approx([0, 0, 0])


def test_the_most_popular_are_pinned() -> None:
    """Of equal ones the lower layer's and lower expert; a mask pins whatever it says."""
    shares = [[0.5, 0.2, 0.3], [0.3, 0.5, 0.2]]
    chosen = pinned(shares, 3)
    assert chosen.kept.tolist() == [[True, False, True], [False, True, False]]
    assert chosen.misses([1]) == pytest.approx([0.2 + 0.3 + 0.2])
    masked = Pinned(shares, [[False, True, True], [True, True, True]])
    assert masked.misses([1, 2]) == pytest.approx([0.5, 0.75])


@st.composite
def _cache(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    layers, experts = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    row = st.lists(st.floats(0, 1), min_size=experts, max_size=experts)
    shares = np.array(draw(st.lists(row, min_size=layers, max_size=layers)))
    return shares, draw(st.integers(0, shares.size))


@given(_cache())
def test_misses_lie_between_none_and_all_hits(cache: tuple[np.ndarray, int]) -> None:
    """None without tokens or with all copies resident, all hits with none, and fewer with more."""
    shares, copies = cache
    tokens = np.arange(40)
    hits = expected_distinct(shares.tolist(), tokens.tolist()).sum(axis=0)
    found = pinned(shares, copies).misses(tokens)
    assert found[0] == 0
    assert np.all((found >= -1e-9) & (found <= hits + 1e-9))
    assert pinned(shares, shares.size).misses(tokens) == pytest.approx(0 * hits)
    assert pinned(shares, 0).misses(tokens) == pytest.approx(hits, abs=1e-9)
    if copies:
        fewer = pinned(shares, copies - 1).misses(tokens)
        assert np.all(found <= fewer + 1e-9)


@given(_cache())
def test_more_tokens_miss_more_of_a_pinned_set(cache: tuple[np.ndarray, int]) -> None:
    """And no set of as many copies misses less than the popular ones do in iterations of one."""
    shares, copies = cache
    chosen = pinned(shares, copies)
    assert np.all(np.diff(chosen.misses(range(30))) >= -1e-12)
    other = np.arange(shares.size).reshape(shares.shape) < copies
    assert chosen.misses([1])[0] <= Pinned(shares, other).misses([1])[0] + 1e-9


def _mixtral(**options: float | bool) -> Loading:
    spec = load_model("mixtral-8x7b")
    settings = {"expert_bytes": spec.expert_bytes(Precision()), "bytes_per_s": 25e9, **options}
    return Loading(**settings)  # type: ignore[arg-type]


def _table(resident: Pinned, loading: Loading, layer_s: float, stretch: float = 1.0) -> Loads:
    misses = expected_misses(resident, loading, max_batched_tokens=64)
    return offload_table(misses, loading, layer_s=np.full(65, layer_s), stretch=stretch)


@pytest.mark.parametrize(
    ("resident", "token", "prompt", "token_s", "prompt_s"),
    [
        (210, 11.5, 45.85, 0.162, 0.646),  # 80 GB: 9 to 15 misses a token for 195 to 220
        (90, 41.5, 165.47, 0.585, 2.332),  # 40 GB: 40 to 44 misses a token for 81 to 98
        (227, 7.25, 28.91, 0.102, 0.407),  # the published prompt: 29 copies, about 0.4 s
    ],
)
def test_mixtral_on_part_of_a_gpu(
    resident: int, token: float, prompt: float, token_s: float, prompt_s: float
) -> None:
    """A token misses (256 - C) / 4 copies, 20 tokens (256 - C)(1 - 0.75^20); 14.09 ms each.

    The ranges are those of a published set-up (arXiv 2505.06481), whose layout keeps positions by
    similarity and so, where routing is uniform, any; nothing overlaps.
    """
    loads = _table(pinned(MIXTRAL, resident), _mixtral(), layer_s=0.001)
    assert loads.copies[[1, 20]] == pytest.approx([token, prompt], abs=0.01)
    assert loads.wait_s[[1, 20]] == pytest.approx([token_s, prompt_s], abs=0.001)
    assert loads.link_s == pytest.approx(loads.wait_s)
    assert loads.copies[0] == loads.wait_s[0] == 0


def _by_hand(**options: float | bool) -> Loads:
    """Lay out three layers that miss 2, 2 and 2 copies of 5 s; each layer computes for 6 s."""
    loading = Loading(expert_bytes=40, bytes_per_s=10, latency_s=1, **options)  # type: ignore[arg-type]
    misses = Misses(copied=np.full((3, 1), 2.0), cpu_s=np.zeros(1))
    return offload_table(misses, loading, layer_s=np.full(1, 6.0))


@pytest.mark.parametrize(
    ("options", "link_s", "wait_s"),
    [
        ({}, 30, 30),
        ({"prefetch_accuracy": 1.0, "prefetch_waste": 1.0}, 30, 30),  # nothing overlaps
        ({"overlap": True}, 30, 30),  # nothing is predicted
        ({"overlap": True, "prefetch_accuracy": 0.5}, 30, 10 + 5 + 5),  # one of two hidden
        ({"overlap": True, "prefetch_accuracy": 1.0}, 30, 10 + 4 + 4),  # 10 s behind 6 s
        ({"overlap": True, "prefetch_accuracy": 0.5, "prefetch_waste": 1.0}, 40, 10 + 9 + 9),
    ],
)
def test_what_is_waited_for(options: dict[str, float | bool], link_s: float, wait_s: float) -> None:
    """Nobody predicts the first layer's misses; the others hide what they can behind 6 s."""
    loads = _by_hand(**options)
    assert (loads.link_s[0], loads.wait_s[0]) == pytest.approx((link_s, wait_s))
    assert loads.copies[0] == 6


@given(
    st.lists(st.floats(0, 1), min_size=8, max_size=8),
    st.floats(0.1, 10),
    st.floats(0, 30),
)
def test_whole_copies_are_waited_for(chances: list[float], copy_s: float, window_s: float) -> None:
    """Eight experts, each missed with its chance: between the mean's wait and what really is."""
    numbers = np.array([1.0])  # how likely 0, 1, ... of them are missed
    for chance in chances:
        numbers = np.convolve(numbers, [1 - chance, chance])
    real = numbers @ np.maximum(np.arange(9) * copy_s - window_s, 0)
    found = beyond(np.array([sum(chances)]), copy_s, np.array([window_s]))[0]
    assert max(sum(chances) * copy_s - window_s, 0) - 1e-9 <= found <= real + 1e-9


def test_rare_copies_are_whole() -> None:
    """One layer in four waits for one copy of 4 s, half of it hidden; never all for 1 s of it."""
    assert beyond(np.array([0.25]), 4.0, np.array([2.0])) == pytest.approx([0.5])


@given(
    _cache(),
    st.booleans(),
    st.floats(0, 1),
    st.floats(0, 2),
    st.floats(0, 3),
    st.floats(1, 7),
)
def test_a_busier_link_is_never_faster(
    cache: tuple[np.ndarray, int],
    overlap: bool,
    accuracy: float,
    waste: float,
    layer_s: float,
    stretch: float,
) -> None:
    """A stretched link is waited for longer, by at most what its copies take longer.

    Overlap without waste never waits longer than none; a replica needs no more than the link.
    """
    shares, copies = cache
    options = {"overlap": overlap, "prefetch_accuracy": accuracy, "prefetch_waste": waste}
    loading = Loading(expert_bytes=1, bytes_per_s=1, **options)  # type: ignore[arg-type]
    resident = pinned(shares, copies)
    alone, shared = _table(resident, loading, layer_s), _table(resident, loading, layer_s, stretch)
    more_s = shared.wait_s - alone.wait_s
    assert np.all((more_s >= -1e-9) & (more_s <= (stretch - 1) * alone.link_s + 1e-9))
    assert np.array_equal(shared.link_s, alone.link_s)
    if not waste:
        assert np.all(alone.wait_s <= alone.copies * loading.copy_s + 1e-9)
    compute_s = np.full(65, len(shares) * layer_s)
    whole = compute_s + alone.wait_s
    assert np.all(alone.link_s <= whole * (1 + 1e-9))
    assert 0 <= alone.link_share(compute_s) <= 1


def test_the_share_of_the_link() -> None:
    """Copies for 30 s in an iteration of 70 s, 40 of them without: 0.43, whatever no token does."""
    wait_s = np.array([9.0, 6.0, 30.0])
    loads = Loads(copies=wait_s, link_s=wait_s, cpu_s=wait_s / 2, wait_s=wait_s)
    unhindered_s = np.array([0.0, 94.0, 40.0])
    assert loads.link_share(unhindered_s) == pytest.approx(3 / 7)
    assert loads.cpu_share(unhindered_s) == pytest.approx(1.5 / 7)


def test_a_shared_cpu_stretches_what_it_computes_alone() -> None:
    """Half of 4 experts at 0.01 s on the CPU, the others' copies as before."""
    misses = Misses(copied=np.full((1, 3), 2.0), cpu_s=np.array([0.0, 0.02, 0.04]))
    loading = Loading(expert_bytes=1, bytes_per_s=1)
    alone, beside = (
        offload_table(misses, loading, layer_s=np.zeros(3), cpu_stretch=factor)
        for factor in (1.0, 2.5)
    )
    assert beside.wait_s - alone.wait_s == pytest.approx(1.5 * misses.cpu_s)
    assert np.array_equal(beside.cpu_s, misses.cpu_s)
    with pytest.raises(ScenarioError, match=r"cpu_stretch: 0\.5 must be 1 or more; the CPU"):
        offload_table(misses, loading, layer_s=np.zeros(3), cpu_stretch=0.5)


def test_the_cpu_takes_what_few_tokens_want() -> None:
    """Fiddler's figures (arXiv 2402.07033): 70 ms a copy, 7 ms for each token and expert.

    A hit expert has T / 4 / (1 - 0.75^T) tokens: 9.76 of 39, done in 68 ms, and 10.0001 of 40.
    """
    loading = Loading(expert_bytes=350e6, bytes_per_s=5e9, cpu_s_per_token_expert=0.007)
    loads = _table(pinned(MIXTRAL, 210), loading, layer_s=0.001)
    assert np.all(loads.copies[:40] == 0)
    assert np.all(loads.link_s[:40] == 0)
    assert loads.wait_s[[1, 39]] == pytest.approx([46 / 4 * 0.007, 46 * 39 / 4 * 0.007])
    hits = 46 * (1 - 0.75**40)
    assert loads.copies[40] == pytest.approx(hits)
    assert loads.wait_s[40] == pytest.approx(0.07 * hits)


@given(_cache(), st.floats(0.01, 10))
def test_the_cheaper_way_is_never_dearer(cache: tuple[np.ndarray, int], cpu_s: float) -> None:
    """With a CPU to help, no iteration waits longer; the misses it does not copy it computes."""
    shares, copies = cache
    resident = pinned(shares, copies)
    with_cpu = Loading(expert_bytes=1, bytes_per_s=1, cpu_s_per_token_expert=cpu_s)
    helped = _table(resident, with_cpu, layer_s=0.5)
    alone = _table(resident, Loading(expert_bytes=1, bytes_per_s=1), layer_s=0.5)
    assert np.all(helped.wait_s <= alone.wait_s + 1e-9)
    assert np.all(helped.copies <= alone.copies + 1e-9)


IMPOSSIBLE: list[tuple[dict[str, float], str]] = [
    ({"bytes_per_s": 0}, r"bytes_per_s: 0 must be a number above zero"),
    ({"expert_bytes": float("nan")}, r"expert_bytes: nan must be"),
    ({"cpu_s_per_token_expert": -1}, r"cpu_s_per_token_expert: -1 must be"),
    ({"latency_s": -1e-6}, r"latency_s: -1e-06 must be a number, 0 or more"),
    ({"prefetch_waste": float("inf")}, r"prefetch_waste: inf must be"),
    ({"prefetch_accuracy": 1.5}, r"prefetch_accuracy: 1\.5 must be between 0 and 1"),
]


@pytest.mark.parametrize(("options", "message"), IMPOSSIBLE)
def test_a_loading_that_cannot_be(options: dict[str, float], message: str) -> None:
    """The field and its value are named."""
    with pytest.raises(ScenarioError, match=message):
        Loading(**{"expert_bytes": 1, "bytes_per_s": 1, **options})  # type: ignore[arg-type]


def test_copies_that_cannot_be() -> None:
    """No more than there are experts, no shares above one, one row a layer."""
    with pytest.raises(ScenarioError, match=r"resident copies: 65 must be between 0 and .* 64"):
        pinned(UNIFORM, 65)
    with pytest.raises(ScenarioError, match="shares must be between 0 and 1"):
        pinned([[2.0]], 1)
    with pytest.raises(ScenarioError, match="one row a layer"):
        pinned([0.5, 0.5], 1)


def test_layers_alike_are_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of Mixtral's positions fill layers 0 to 15: two kinds, each as it is alone."""
    asked: list[int] = []
    alone = Pinned.layer_misses

    def counted(self: Pinned, layer: int, tokens: np.ndarray) -> np.ndarray:
        asked.append(layer)
        return alone(self, layer, tokens)

    monkeypatch.setattr(Pinned, "layer_misses", counted)
    resident = pinned(MIXTRAL, 128)
    copied = expected_misses(resident, _mixtral(), max_batched_tokens=9).copied
    assert asked == [0, 16]
    tokens = np.arange(10.0)
    assert all(
        (copied[layer] == alone(resident, layer, tokens).sum(axis=0)).all() for layer in range(32)
    )


def test_tables_that_do_not_fit() -> None:
    """A mask of another shape, durations for other tokens, a link that sharing makes faster."""
    with pytest.raises(ScenarioError, match=r"a mask of shape \(8,\); .*\(8, 8\)"):
        Pinned(UNIFORM, [True] * 8)
    loading = _mixtral()
    misses = expected_misses(pinned(MIXTRAL, 0), loading, max_batched_tokens=4)
    with pytest.raises(ScenarioError, match="layer_s: 4 durations for 5 numbers of tokens"):
        offload_table(misses, loading, layer_s=np.ones(4))
    with pytest.raises(ScenarioError, match=r"stretch: 0\.5 must be 1 or more"):
        offload_table(misses, loading, layer_s=np.ones(5), stretch=0.5)
