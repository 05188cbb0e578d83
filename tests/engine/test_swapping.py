"""Host memory for blocks: what comes back is what left."""

import pytest
import torch

from engine.model.step import PagedKvCache
from engine.serve.swapping import SwapSpace
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]
)
def test_blocks_come_back_elsewhere_as_they_were(engine_spec: ModelSpec, device: str) -> None:
    """Two sequences leave, all blocks are overwritten at once, and they return to others."""
    cache = PagedKvCache(engine_spec, num_blocks=8, block_size=4, device=device)
    cache.keys.normal_()
    cache.values.normal_()
    keys, values = cache.keys.clone(), cache.values.clone()
    space = SwapSpace(cache, num_blocks=5)
    space.store(7, [6, 0, 3])
    space.store(8, [1])
    assert space.free_blocks == 1
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    assert space.stored(7) == 3
    space.restore(7, [2, 4, 5])
    space.restore(8, [6])
    assert space.free_blocks == 5
    for half, former in ((cache.keys, keys), (cache.values, values)):
        assert torch.equal(half[:, [2, 4, 5, 6]], former[:, [6, 0, 3, 1]])


def test_a_space_that_does_not_fit_is_refused(engine_spec: ModelSpec) -> None:
    """In one line that says what to lower."""
    cache = PagedKvCache(engine_spec, num_blocks=1, block_size=4)
    with pytest.raises(EngineError, match=r"swap space: \d+ blocks: .* do not fit .*swap_blocks"):
        SwapSpace(cache, num_blocks=1 << 50)
