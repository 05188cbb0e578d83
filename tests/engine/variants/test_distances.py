"""Distances, against whole loaded models and against vectors by hand."""

import shutil
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.model.loading import load_model
from engine.variants.distances import distances, summed_distance
from engine.variants.positions import expert_places
from engine.variants.stored import StoredExperts
from moesim.errors import EngineError


def silent(_: float, __: str) -> None:
    """Tell nobody."""


def flat(matrices: tuple[Tensor, ...]) -> Tensor:
    """Return an expert's weights in one row, in float64."""
    return torch.cat([matrix.flatten() for matrix in matrices]).double()


@pytest.mark.parametrize("count", [2, 3])
def test_the_sum_of_the_norms_over_pairs(folders: dict[str, Path], count: int) -> None:
    """Of whole experts of whole models, in float64."""
    chosen = list(folders.values())[:count]
    experts = [expert_places(load_model(folder)) for folder in chosen]
    found = distances([StoredExperts(folder) for folder in chosen], silent)
    assert list(found) == sorted(experts[0])
    for position, distance in found.items():
        rows = [flat(places[position]) for places in experts]
        expected = sum((a - b).norm().item() for a, b in combinations(rows, 2))
        assert distance == pytest.approx(expected, rel=1e-6)
    assert len(set(found.values())) == len(found)


def test_by_hand() -> None:
    """Experts (0, 0 | 0), (3, 0 | 4) and (3, 0 | 0) of two matrices: 5 + 3 + 4.

    The root is of the whole expert: by matrix the first pair would be 3 + 4 apart.
    """
    first = (torch.tensor([0.0, 0.0]), torch.tensor([3.0, 0.0]), torch.tensor([3.0, 0.0]))
    second = (torch.tensor([0.0]), torch.tensor([4.0]), torch.tensor([0.0]))
    assert summed_distance([first, second]) == pytest.approx(5 + 3 + 4)


def test_half_precision_is_compared_in_float() -> None:
    """256 less 1 + 1/128 is 254.9921875, for which bfloat16 has too few digits."""
    a, b = (torch.tensor([value], dtype=torch.bfloat16) for value in (256.0, 1.0078125))
    assert summed_distance([(a, b)]) == 254.9921875


def test_a_model_is_no_way_from_itself(separate: dict[str, Path]) -> None:
    twice = [StoredExperts(separate["ada"]), StoredExperts(separate["ada"])]
    assert set(distances(twice, silent).values()) == {0.0}


def test_what_is_done_is_told(separate: dict[str, Path]) -> None:
    """Six positions, the first at nothing."""
    told: list[tuple[float, str]] = []
    pair = [StoredExperts(separate[name]) for name in ("ada", "bob")]
    distances(pair, lambda share, doing: told.append((share, doing)))
    assert [round(share * 6) for share, _ in told] == [0, 1, 2, 3, 4, 5]
    assert told[-1][1] == "layer 1 expert 2"


def test_one_variant_is_too_few(separate: dict[str, Path]) -> None:
    with pytest.raises(EngineError, match="1 given; consolidation needs two or more"):
        distances([StoredExperts(separate["ada"])], silent)


def test_other_shapes_are_named(separate: dict[str, Path], other_shape: Path) -> None:
    pair = [StoredExperts(separate["ada"]), StoredExperts(other_shape)]
    with pytest.raises(EngineError, match="intermediate_size: 20 is not 12 as in"):
        distances(pair, silent)


def test_other_architectures_are_named(
    separate: dict[str, Path], switches: dict[str, Path]
) -> None:
    pair = [StoredExperts(separate["ada"]), StoredExperts(switches["ada"])]
    with pytest.raises(EngineError, match="give variants of one shape"):
        distances(pair, silent)


def test_weights_that_are_not_finite_are_placed(separate: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "nan"
    shutil.copytree(separate["bob"], folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.block_sparse_moe.experts.0.w2.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"layer 1 expert 0: distance nan; a checkpoint has"):
        distances([StoredExperts(separate["ada"]), StoredExperts(folder)], silent)
