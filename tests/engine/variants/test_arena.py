"""Non-expert sets: packed without overlap, swapped whole, and host memory that is refused."""

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.model import allocation
from engine.model.checkpoint import random_decoder
from engine.variants import host
from engine.variants.arena import ALIGNMENT, Packing
from engine.variants.host import HostMemory
from engine.variants.reconfigure import AllSets, LooseSets, PackedSets, Sets
from engine.variants.skeleton import meta_weights, non_experts, skeleton
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.units import GIB

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

MIXTRAL = ModelSpec(
    hidden_size=16,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    num_local_experts=4,
    num_experts_per_tok=2,
    vocab_size=20,
    max_position_embeddings=32,
    dtype="float32",
)
QWEN3 = ModelSpec(
    hidden_size=16,
    intermediate_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    num_local_experts=4,
    num_experts_per_tok=2,
    vocab_size=20,
    max_position_embeddings=32,
    dtype="bfloat16",
    model_type="qwen3_moe",
    qk_norm=True,
    tie_word_embeddings=True,
    dense_layers=(1,),
    dense_intermediate_size=24,
)
WAYS: dict[str, Callable[..., Sets]] = {
    "all": AllSets,
    "packed": PackedSets,
    "ahead": partial(PackedSets, ahead=True),
    "loose": LooseSets,
}

shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@given(st.lists(st.tuples(shapes, dtypes), max_size=8))
def test_packed_tensors_are_aligned_and_apart(
    kinds: list[tuple[tuple[int, ...], torch.dtype]],
) -> None:
    """Each is filled with a number of its own, and all still have it afterwards."""
    like = {str(n): torch.empty(shape, dtype=dtype) for n, (shape, dtype) in enumerate(kinds)}
    packing = Packing(like)
    views = packing.views(torch.zeros(packing.size, dtype=torch.uint8))
    for name, view in views.items():
        assert (view.shape, view.dtype) == (like[name].shape, like[name].dtype)
        assert packing.pieces[name].start % ALIGNMENT == 0
        view.fill_(int(name) + 1)
    for name, view in views.items():
        assert (view == int(name) + 1).all()
    assert packing.size <= sum(t.nbytes for t in like.values()) + ALIGNMENT * len(like)


@pytest.mark.parametrize("spec", [MIXTRAL, QWEN3], ids=lambda spec: spec.model_type)
def test_a_set_is_all_but_the_experts(spec: ModelSpec) -> None:
    """As many bytes as the facts reckon with; biases are among them, a tied head is not."""
    like = meta_weights(spec)
    assert sum(weight.nbytes for weight in like.values()) == spec.non_expert_bytes(
        Precision.of_dtype(spec.dtype)
    )


@pytest.mark.parametrize("spec", [MIXTRAL, QWEN3], ids=lambda spec: spec.model_type)
@pytest.mark.parametrize("way", WAYS)
def test_a_skeleton_has_what_is_loaded(way: str, spec: ModelSpec) -> None:
    """Whichever variant is asked for, in any order; its pointers never change."""
    models = [random_decoder(spec, seed) for seed in range(3)]
    sets = WAYS[way](meta_weights(spec), 3, CPU)
    for variant, model in enumerate(models):
        for name, place in sets.room(variant).items():
            place.copy_(non_experts(model)[name])
    skeletons = [skeleton(spec, sets.weights(variant)) for variant in range(3)]
    before = [pointers(each) for each in skeletons]
    for variant in (0, 2, 1, 1, 0):
        sets.expect(variant)
        assert sets.load(variant) >= 0.0
        found, expected = (non_experts(each[variant]) for each in (skeletons, models))
        assert found.keys() == expected.keys()
        for name, weight in found.items():
            assert torch.equal(weight, expected[name]), name
        assert torch.equal(skeletons[variant].frequencies, models[variant].frequencies)
    assert [pointers(each) for each in skeletons] == before
    assert len({str(each) for each in before}) == (3 if way == "all" else 1)


def pointers(model: torch.nn.Module) -> list[int]:
    return [w.data_ptr() for w in model.parameters() if not w.is_meta]


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return what is pinned and unpinned, which this host only pretends to do."""
    calls: list[tuple[str, int]] = []

    def note(call: str, memory: Tensor) -> int:
        calls.append((call, memory.nbytes))
        return 0

    monkeypatch.setattr(host, "register", lambda memory: note("pin", memory))
    monkeypatch.setattr(host, "unregister", lambda memory: note("unpin", memory))
    return calls


def test_memory_for_a_gpu_is_pinned_to_the_byte(pins: list[tuple[str, int]]) -> None:
    """And unpinned when nobody needs it any more; for a CPU, or where told, it stays pageable."""
    memory = HostMemory("a set", 1000, CUDA)
    assert memory.pinned
    assert pins == [("pin", 1000)]
    del memory
    gc.collect()
    assert pins == [("pin", 1000), ("unpin", 1000)]
    assert not HostMemory("a set", 1000, CPU).pinned
    assert not HostMemory("a set", 1000, CUDA, pageable=True).pinned
    assert len(pins) == 2


def test_a_host_that_refuses_to_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the size, and what else can be done."""
    monkeypatch.setattr(host, "register", lambda memory: 2)
    with pytest.raises(EngineError) as refused:
        HostMemory("host memory for 9 expert copies", 3 * 2**20, CUDA)
    assert str(refused.value) == (
        "host memory for 9 expert copies: the host refuses to pin 3 MiB (CUDA error 2); raise the "
        "limit of locked memory (ulimit -l), or use pageable memory"
    )


def test_a_host_without_so_much_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is asked before, as it would give more than it has."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4194304 kB\nMemAvailable: 2097152 kB\n")
    monkeypatch.setattr(allocation, "MEMINFO", meminfo)
    with pytest.raises(EngineError, match=r"sets: 3 GiB do not fit on cpu \(2 GiB free of 4 GiB\)"):
        HostMemory("sets", 3 * GIB, CPU)
